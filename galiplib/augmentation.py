"""Random changes to pictures, real and generated alike, before they are judged (DiffAugment, Zhao et al., 2020).

The generator's mistakes then cling to no fixed grid, tint or detail, and a small data set lasts longer. All of it is
differentiable, and everything random is drawn up front.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import TrainConfig


def draw(config: TrainConfig, batch: int, random: torch.Generator) -> dict[str, Tensor]:
    """What is done to a step's "real" and "generated" pictures, a row (7,) each; {} if all is switched off.

    A row: offsets in pixels down and right; brightness in [-.5, .5], saturation in [0, 2], contrast in [.5, 1.5] at
    full strength; the centre of the square that is blanked, as shares of height and width.
    """
    if not (config.shift or config.colour or config.cutout):
        return {}
    offsets = torch.randint(-config.shift, config.shift + 1, (2, batch, 2), generator=random)
    spread = (torch.rand(2, batch, 3, generator=random) - 0.5) * torch.tensor([1.0, 2.0, 1.0])
    colour = torch.tensor([0.0, 1.0, 1.0]) + config.colour * spread
    cutout = torch.rand(2, batch, 2, generator=random)
    real, generated = torch.cat([offsets.to(colour), colour, cutout], dim=2)  # (B, 7) both
    return {"real": real, "generated": generated}


def augment(images: Tensor, drawn: Tensor | None, config: TrainConfig) -> Tensor:
    """Pictures (B, 3, H, W) in about [-1, 1] -> changed ones, each by its own row of `drawn` (B, 7), if any."""
    if drawn is None:
        return images
    offsets, colour, cutout = drawn.split([2, 3, 2], dim=1)
    images = change_colour(images, colour.to(images)) if config.colour else images
    images = shift(images, offsets.long()) if config.shift else images
    return cut_out(images, cutout.to(images), config.cutout) if config.cutout else images


def shift(images: Tensor, offsets: Tensor) -> Tensor:
    """Move every picture (B, 3, H, W) by its own offsets (B, 2) in pixels, edges repeated (translation)."""
    reach = int(offsets.abs().max())
    if reach == 0:
        return images
    height, width = images.shape[2:]
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    corners = (offsets + reach).tolist()
    return torch.stack([p[:, y : y + height, x : x + width] for p, (y, x) in zip(padded, corners, strict=True)])


def change_colour(images: Tensor, amounts: Tensor) -> Tensor:
    """Brightness, saturation and contrast of pictures (B, 3, H, W) by amounts (B, 3): added, multiplied, multiplied."""
    brightness, saturation, contrast = (amount[:, None, None, None] for amount in amounts.unbind(1))
    images = images + brightness
    images = torch.lerp(images.mean(1, keepdim=True), images, saturation)  # from grey, (B, 1, H, W)
    return torch.lerp(images.mean((1, 2, 3), keepdim=True), images, contrast)  # from the mean, (B, 1, 1, 1)


def cut_out(images: Tensor, centres: Tensor, share: float) -> Tensor:
    """Blank a square in pictures (B, 3, H, W), its side `share` of theirs, around centres (B, 2) in shares."""
    height, width = images.shape[2:]
    down = (torch.arange(height, device=images.device) / height - centres[:, :1]).abs() < share / 2  # (B, H)
    right = (torch.arange(width, device=images.device) / width - centres[:, 1:]).abs() < share / 2  # (B, W)
    return images.masked_fill((down[:, :, None] & right[:, None, :])[:, None], 0.0)
