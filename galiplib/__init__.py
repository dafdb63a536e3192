"""GALIP in notebooks: a text-to-image GAN whose generator and discriminator both look through a frozen CLIP."""

from .checkpoints.loading import export_reference, load_discriminator, load_generator
from .clip.bridge import ClipBridge
from .clip.files import load_clip
from .config import Config, ConfigError, load_config, profiles
from .files import WeightsError
from .runs.run import Run
from .sampling.sample import sample
from .systems.galip import Generator

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
