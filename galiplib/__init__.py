"""GALIP in notebooks: a text-to-image GAN whose generator and discriminator both look through a frozen CLIP."""

from .clip_bridge import ClipBridge
from .clip_files import load_clip
from .config import Config, ConfigError, load_config, profiles
from .files import WeightsError
from .generator import Generator
from .loading import export_reference, load_discriminator, load_generator
from .runs import Run
from .sampling import sample

__version__ = "0.1.0"
__all__ = [
    "ClipBridge",
    "Config",
    "ConfigError",
    "Generator",
    "Run",
    "WeightsError",
    "export_reference",
    "load_clip",
    "load_config",
    "load_discriminator",
    "load_generator",
    "profiles",
    "sample",
]
