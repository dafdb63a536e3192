"""The energy score: what asks pictures of one caption to differ as real ones do."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def describe(images: Tensor, maps: list[Tensor]) -> list[Tensor]:
    """Pictures (B, 3, H, W) and their maps -> descriptions for the energy score, each (B, D, places).

    Colours of 8 x 8 patches, place by place and all at once; every map averaged, and place by place.
    """
    patches = F.avg_pool2d(images, 8)  # (B, 3, H / 8, W / 8)
    found = [patches.flatten(2), patches.flatten(1)[:, :, None]]
    for seen in maps:
        found += [seen.mean((2, 3))[:, :, None], (F.avg_pool2d(seen, 2) if seen.shape[-1] > 14 else seen).flatten(2)]
    return found


def energy_score(first: list[Tensor], second: list[Tensor], real: list[Tensor]) -> Tensor:
    """Two pictures of each caption and a real one, as descriptions (B, D, places) -> a scalar.

    d(first, real) + d(second, real) - d(first, second), in units of what two real pictures differ by: a proper score
    (Gneiting and Raftery, 2007; as a generator's loss: Bellemare et al., 2017). It is least where both are drawn as
    the real pictures of the caption are, though none has more than one: who draws a caption always alike pays for both
    distances and gains nothing from the third. The unit is measured on what is given, a part of a batch: parts or
    processes that share one have units of their own.
    """

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return ((a - b).float().square().sum(1) + 1e-8).sqrt().mean()  # the square root has no slope at 0

    terms = [
        (distance(a, x) + distance(b, x) - distance(a, b)) / distance(x, x.roll(1, 0)).detach()
        for a, b, x in zip(first, second, real, strict=True)
    ]
    return torch.stack(terms).mean()
