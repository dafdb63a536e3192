"""What is measured: GALIP at the size of profile mini and at ViT-B/32's, by the reference and by galiplib.

Random weights at ViT-B/32's size, for time depends on no weight; mini has its shipped CLIP. All compute the same
function (the published one: nearest shortcuts, the reference input of CLIP, a penalty every step) unless they say so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from galiplib import load_config
from galiplib.build import make_system
from galiplib.clip.bridge import CLIP, ClipBridge
from galiplib.clip.files import load_clip
from galiplib.config import Config, build_config
from galiplib.precision import resolve_precision
from galiplib.system import Batch, Text
from galiplib.systems.galip import block_sizes
from galiplib.training import Optimizers, train_step
from reference import Reference

SIZES = ("mini", "vit")
NAMES = {"mini": "mini, 56 px", "vit": "ViT-B/32, 224 px"}
BATCH = {"mini": 32, "vit": 8}
CAPTIONS = (
    "a red bird with black wings and a white belly", "a small blue bird in the snow",
    "this bird has yellow wings, a green belly and a short beak", "a white bird with pink wings at sunset",
)  # fmt: skip


def fast(device: torch.device) -> str:
    """The precision that galiplib's "auto" takes here."""
    return resolve_precision("auto", device)


def config_of(size: str, precision: str, recipe: str = "paper", image_size: int | None = None) -> Config:
    if size == "vit":
        clip, train = {"name": "ViT-B/32", "convention": "reference"}, {"recipe": recipe, "precision": precision}
        return build_config({"clip": clip, "train": train, "model": {"image_size": image_size or "reference"}})
    settings = {
        "model.smooth_shortcut": False, "clip.convention": "reference", "train.recipe": recipe,
        "train.precision": precision, "model.image_size": image_size or 56,
    }  # fmt: skip
    return load_config("mini:galip", settings)


def clip_of(size: str) -> CLIP:
    if size == "mini":
        return load_clip("mini")
    torch.manual_seed(0)
    return CLIP(512, 224, 12, 768, 32, 77, 49408, 512, 8, 12).float()


def bridge_of(size: str, device: torch.device) -> ClipBridge:
    return ClipBridge(clip_of(size), "reference").to(device)


def captions(batch: int) -> list[str]:
    return [CAPTIONS[index % len(CAPTIONS)] for index in range(batch)]


def step_of(
    subject: str, size: str, bridge: ClipBridge, batch: int, image_size: int | None = None
) -> tuple[Callable[[], object], str, int]:
    """A training step -> the call, its precision, and how many parameters its optimizers update.

    Args:
        subject: "reference fp32" or "reference fp16"; "ours fp32" or "ours bf16", the paper recipe; "profile bf16" or
            "profile fp32", galiplib with the profile's own settings (mini: penalty every 4th step, EMA); "compiled
            bf16", ours with `train.compile`.
    """
    whose, precision = subject.split()
    device = bridge.pixel_mean.device
    config = config_of(size, precision if whose != "reference" else "fp32", "stable" if whose == "profile" else "paper",
                       image_size)  # fmt: skip
    side = block_sizes(bridge.grid, config.model.image_size)[-1]
    images = torch.rand(batch, 3, side, side, device=device) * 2 - 1
    noise = torch.randn(batch, config.model.noise_dim, device=device)
    tokens = bridge.tokenize(captions(batch)).to(device)
    if whose == "reference":
        theirs = Reference(bridge, config, precision)
        trained = (theirs.netG, theirs.netD, theirs.netC)
        return lambda: theirs.step(images, tokens, noise), precision, count(trained)
    networks = make_system(bridge, config)
    trained = (networks.generator, networks.discriminator, networks.head)
    with torch.no_grad():
        sentence = bridge.encode_text(tokens)
    if whose == "compiled":
        networks.compile_networks()
    optimizers = Optimizers(networks, config.train)
    number, drawn = iter(range(1, 10**9)), Batch(images, Text(sentence), {"z": noise})
    return (
        lambda: train_step(networks, optimizers, drawn, config.train, next(number)),
        precision,
        count(trained),
    )


def count(modules: Sequence[nn.Module]) -> int:
    """Their parameters."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())
