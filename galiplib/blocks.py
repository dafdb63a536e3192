"""The blocks that several systems are built of: text-conditioned affines, and convolutions of doubled maps.

Shapes: B images, C condition width. A block takes its condition as (B, C), the same for all its affines, or as
(B, affines, C), one for each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2  # of every LeakyReLU in generators and discriminators
MakeConv = Callable[[int, int], nn.Module]  # channels in, channels out -> a 3x3 convolution


def mlp(condition_dim: int, channels: int, hidden: int) -> nn.Sequential:
    """Condition (B, C) -> one value per channel (B, channels)."""
    return nn.Sequential(nn.Linear(condition_dim, hidden), nn.ReLU(), nn.Linear(hidden, channels))


class Affine(nn.Module):
    """Scale and shift every channel by what the condition says; starts as the identity (DF-GAN, CVPR 2022)."""

    def __init__(self, condition_dim: int, channels: int, hidden: int | None = None) -> None:
        super().__init__()
        self.gamma = mlp(condition_dim, channels, hidden or channels)
        self.beta = mlp(condition_dim, channels, hidden or channels)
        for branch, start in ((self.gamma, 1.0), (self.beta, 0.0)):
            last = cast(nn.Linear, branch[-1])
            nn.init.zeros_(last.weight)
            nn.init.constant_(last.bias, start)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, channels, H, W), (B, C) -> (B, channels, H, W)."""
        gamma = self.gamma(condition)[:, :, None, None]  # (B, channels, 1, 1)
        beta = self.beta(condition)[:, :, None, None]
        return torch.addcmul(beta, gamma, x)


def split_condition(condition: Tensor, parts: int) -> list[Tensor]:
    """What each of `parts` gets: all of (B, C), or in turn its share of (B, affines, C); the last one's is (B, C)."""
    if condition.dim() == 2:
        return [condition] * parts
    return [part[:, 0] if part.shape[1] == 1 else part for part in condition.chunk(parts, dim=1)]


class TextFusion(nn.Module):
    """Affine, LeakyReLU, affine, LeakyReLU: pointwise, so it commutes with nearest upsampling."""

    def __init__(self, condition_dim: int, channels: int, affine: type[nn.Module] = Affine) -> None:
        super().__init__()
        self.affine0 = affine(condition_dim, channels)
        self.affine1 = affine(condition_dim, channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, channels, H, W), (B, C) or (B, 2, C) -> (B, channels, H, W)."""
        first, second = split_condition(condition, 2)
        x = F.leaky_relu(self.affine0(x, first), SLOPE, inplace=True)
        return F.leaky_relu(self.affine1(x, second), SLOPE, inplace=True)


def kernel_of_doubled(weight: Tensor) -> Tensor:
    """A 3x3 kernel (O, C, 3, 3) for maps doubled to the nearest -> its equal for the small map, (C, O, 4, 4).

    Each output pixel sees only 2x2 different input pixels, so the 3x3 kernel spread over them is a transposed
    convolution with a 4x4 kernel and stride 2: 16 products where upsampling first takes 36.
    """
    kernel = F.pad(weight.flip(2, 3).transpose(0, 1), (1, 1, 1, 1))  # (C, O, 5, 5)
    kernel = kernel[..., :-1, :] + kernel[..., 1:, :]  # (C, O, 4, 5)
    return kernel[..., :-1] + kernel[..., 1:]  # (C, O, 4, 4)


def conv3x3(channels_in: int, channels_out: int) -> nn.Conv2d:
    """A 3x3 convolution that keeps height and width."""
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


class FinishedConv(nn.Module, ABC):
    """A 3x3 convolution `conv` with more behind it, such as RATLIP's: (B, C, H, W) -> (B, O, H, W)."""

    conv: nn.Conv2d | nn.ConvTranspose2d

    @abstractmethod
    def finish(self, x: Tensor) -> Tensor:
        """What comes behind the convolution: (B, O, H, W) -> the same."""

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(self.conv(x))


def conv_of_doubled(conv: nn.Module, x: Tensor) -> Tensor:
    """A 3x3 convolution of `x` doubled to the nearest, equal up to rounding: (B, C, H, W) -> (B, O, 2H, 2W)."""
    if isinstance(conv, FinishedConv):
        return conv.finish(conv_of_doubled(conv.conv, x))
    if isinstance(conv, nn.ConvTranspose2d):
        return conv(x)  # its kernel is spread already (`bf16.to_bf16`)
    if isinstance(conv, nn.Conv2d):
        return F.conv_transpose2d(x, kernel_of_doubled(conv.weight), conv.bias, stride=2, padding=1)
    raise TypeError(f"{type(conv).__name__} is no convolution")


class GeneratorBlock(nn.Module):
    """Upsample to `size`, then a residual of two text-fused 3x3 convolutions: DF-GAN's block, and those built on it.

    Pointwise work and the 1x1 shortcut commute with nearest upsampling, so they run on the small map. GALIP's published
    shortcut carries CLIP's grid as squares into the picture; with `smooth_shortcut` it interpolates linearly.
    """

    def __init__(
        self, condition_dim: int, channels_in: int, channels_out: int, size: int, smooth_shortcut: bool = False,
        conv: MakeConv = conv3x3,
    ) -> None:  # fmt: skip
        super().__init__()
        self.size = size
        self.mode = "bilinear" if smooth_shortcut else "nearest"
        self.fuse1: nn.Module = TextFusion(condition_dim, channels_in)
        self.conv1 = conv(channels_in, channels_out)
        self.fuse2: nn.Module = TextFusion(condition_dim, channels_out)
        self.conv2 = conv(channels_out, channels_out)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def _upsample(self, x: Tensor, mode: str = "nearest") -> Tensor:
        return x if x.shape[-1] == self.size else F.interpolate(x, size=(self.size, self.size), mode=mode)

    def _conv_of_upsampled(self, x: Tensor) -> Tensor:
        if 2 * x.shape[-1] == self.size:
            return conv_of_doubled(self.conv1, x)
        return self.conv1(self._upsample(x))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, channels_in, h, h), (B, C) or (B, 4, C) -> (B, channels_out, size, size)."""
        first, second = split_condition(condition, 2)
        residual = self._conv_of_upsampled(self.fuse1(x, first))  # (B, channels_out, size, size)
        return self._upsample(self.shortcut(x), self.mode) + self.conv2(self.fuse2(residual, second))


def block_channels(channels: int, blocks: int, most: int = 8) -> list[tuple[int, int]]:
    """(in, out) channels of every generator block: halving towards `channels`, at most `most` x `channels`."""
    widths = [channels * min(2**step, most) for step in range(blocks, -1, -1)]
    return list(zip(widths[:-1], widths[1:], strict=True))
