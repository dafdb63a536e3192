"""What people notice in pictures at a glance, as numbers: softness, colour, a rim, and all of a caption being alike.

None says by itself what is good: each is read beside its value for real pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .features import Extractor
from .judge import JUDGED
from .measures import Measured

GREY = (0.299, 0.587, 0.114)  # of red, green, blue in a picture's brightness (ITU-R BT.601)
BANDS = {"energy_eighth": 1 / 8, "energy_quarter": 1 / 4, "energy_half": 1 / 2, "fine_energy": math.inf}
RIM = 3  # lines of pixels at each side that are compared with each other
OPEN = "a blue bird with yellow wings"  # of mini birds; it leaves open what `VARIED` has
OPEN_PICTURES = 200
VARIED = {"effective_backgrounds": "background", "effective_bellies": "belly"}


def noticed(images: Tensor) -> dict[str, Tensor]:
    """Pictures (B, 3, H, W) in [-1, 1] -> name -> of each (B,), float64 on the CPU.

    energy_eighth, energy_quarter, energy_half, fine_energy: `spectrum`, shares up to an eighth, a quarter, half of the
    Nyquist frequency, each from where the one before ends, and above half; colourfulness; saturation; rim.
    """
    images = images.float()
    found = dict(zip(BANDS, spectrum(images, list(BANDS.values())[:-1]).unbind(1), strict=True))
    found |= {"colourfulness": colourfulness(images), "saturation": saturation(images), "rim": rim(images)}
    return {name: values.double().cpu() for name, values in found.items()}


def spectrum(images: Tensor, edges: Sequence[float]) -> Tensor:
    """Pictures (B, 3, H, W) -> shares of their energy between `edges` of frequency (B, edges + 1), which sum to 1.

    Of grey pictures without their mean, by the cosine transform (DCT-II): it continues a picture by its mirror image,
    so that no edge is counted that isn't in it. Frequencies are radial, over Nyquist's (half a wave a pixel) along
    either side. A picture of one grey has no energy: all its shares are 0.
    """
    grey = (images * images.new_tensor(GREY).view(3, 1, 1)).sum(1)  # (B, H, W)
    down, right = (_cosines(side).to(images) for side in grey.shape[1:])
    energy = (down @ (grey - grey.mean((1, 2), keepdim=True)) @ right.T).square().flatten(1)  # (B, H W), by frequency
    height, width = (torch.arange(side, device=images.device) / side for side in grey.shape[1:])
    band = torch.bucketize(torch.hypot(height[:, None], width), images.new_tensor(edges)).flatten()
    sums = [energy[:, band == number].sum(1) for number in range(len(edges) + 1)]
    return torch.stack(sums, 1) / energy.sum(1, keepdim=True).clamp_min(1e-6)


def _cosines(side: int) -> Tensor:
    """The orthonormal DCT-II of `side` values, (side, side): a row a frequency."""
    place = torch.arange(side, dtype=torch.float64)
    waves = torch.cos(math.pi / side * place[:, None] * (place + 0.5)) * (2 / side) ** 0.5
    waves[0] *= 0.5**0.5
    return waves


def colourfulness(images: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] -> (B,): 0 grey, 33 moderately, 82 highly, 109 extremely colourful.

    Of the opponents red - green and (red + green) / 2 - blue in 0..255: root of the sum of the variances, and 0.3 times
    that of the squared means (Hasler and Suesstrunk, Measuring colourfulness in natural images, 2003, sec. 7).
    """
    red, green, blue = (images * 127.5 + 127.5).flatten(2).unbind(1)
    pairs = torch.stack([red - green, (red + green) / 2 - blue])  # (2, B, H W)
    spread, offset = pairs.var(2, correction=0).sum(0).sqrt(), pairs.mean(2).square().sum(0).sqrt()
    return spread + 0.3 * offset


def saturation(images: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] -> mean saturation of HSV (B,): 0 grey, 1 pure colours; black counts as 0."""
    unit = images * 0.5 + 0.5
    most = unit.amax(1)
    return ((most - unit.amin(1)) / most.clamp_min(1e-6)).mean((1, 2))


def rim(images: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] -> how much the outermost pixels differ from those behind them, of 255 (B,).

    Means of whole lines along a side don't see what is drawn there, but what goes along all of it: the two steps
    between those of the three outermost lines, absolute, in sum; mean over sides and channels.
    """
    rows, columns = images.mean(3), images.mean(2)  # (B, 3, H), (B, 3, W)
    sides = torch.stack([line[..., :RIM] for one in (rows, columns) for line in (one, one.flip(2))], 1)  # (B, 4, 3, 3)
    return sides.diff(dim=3).abs().sum(3).mean((1, 2)) * 127.5


# ---------------------------------------------------------------- pictures of one caption


class PixelFeatures(Extractor):
    """The pixels themselves, of pictures of a shape (3, H, W)."""

    name = "pixels"

    def __init__(self, shape: Sequence[int]) -> None:
        self.dim = math.prod(shape)

    def extract(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def pixel_spread(pixels: Tensor, groups: Sequence[int]) -> Tensor:
    """Pixels (N, D) in [-1, 1], numbers of captions -> of each caption the standard deviation of a pixel, of 255."""
    own = torch.as_tensor(groups)
    return torch.stack([pixels[own == group].std(0).mean() for group in own.unique()]) * 127.5


def effective_number(values: Tensor) -> Measured:
    """Classes (N,) of pictures -> as varied as so many equally frequent ones: the exponential of the entropy.

    The error is that of the entropy's estimate from N, passed on.
    """
    shares = values.unique(return_counts=True)[1].double() / len(values)
    entropy = torch.special.entr(shares).sum()
    variance = (shares * shares.log().square()).sum() - entropy.square()
    number = entropy.exp().item()
    return Measured(number, number * (variance.clamp_min(0) / len(values)).sqrt().item(), len(values))


def variety(answers: Tensor) -> dict[str, Measured]:
    """The judge's answers (N, 4) on pictures of `OPEN` -> `effective_number` of what it leaves open: of 4, of 10."""
    return {name: effective_number(answers[:, JUDGED.index(attribute)]) for name, attribute in VARIED.items()}
