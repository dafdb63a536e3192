"""GALIP in notebooks: a text-to-image GAN whose generator and discriminator both look through a frozen CLIP."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and mypy; when the program runs, `__getattr__` does it
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
    "ClipBridge", "Config", "ConfigError", "Generator", "Run", "WeightsError", "export_reference", "load_clip",
    "load_config", "load_discriminator", "load_generator", "profiles", "sample",
]  # fmt: skip
_MODULES = {
    "checkpoints.loading": ("export_reference", "load_discriminator", "load_generator"),
    "clip.bridge": ("ClipBridge",),
    "clip.files": ("load_clip",),
    "config": ("Config", "ConfigError", "load_config", "profiles"),
    "files": ("WeightsError",),
    "runs.run": ("Run",),
    "sampling.sample": ("sample",),
    "systems.galip": ("Generator",),
}


def __getattr__(name: str) -> Any:
    """A name of `__all__`, its module loaded when it is first asked for (PEP 562)."""
    for module, names in _MODULES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f".{module}", __name__), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
