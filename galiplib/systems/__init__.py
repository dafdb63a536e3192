"""The text-to-image GANs, one a file; a registry of names."""

from importlib import import_module

from ..system import System

SYSTEMS = {
    "galip": "galip.GALIP",
    "ratlip": "ratlip.RATLIP",
    "residual": "picture_input.ResidualGALIP",
    "features": "picture_input.FeatureGALIP",
    "dfgan": "dfgan.DFGAN",
    "ratgan": "ratgan.RATGAN",
    "attngan": "attngan.AttnGAN",
    "lafite": "lafite.LAFITE",
}


def system_class(name: str) -> type[System]:
    """The class of a system, loaded when first asked for; `config.MODELS` lists the names."""
    module, _, kind = SYSTEMS[name].partition(".")
    return getattr(import_module(f".{module}", __name__), kind)
