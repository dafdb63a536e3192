"""The building blocks of GALIP's generator and discriminator (Tao et al., CVPR 2023, sec. 3.2 and 3.3).

Shapes: B images, E sentence width, Z noise length, W width of the CLIP vision transformer, g its patch grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2  # of every LeakyReLU in generator and discriminator


def mlp(condition_dim: int, channels: int) -> nn.Sequential:
    """Condition (B, C) -> one value per channel (B, channels)."""
    return nn.Sequential(nn.Linear(condition_dim, channels), nn.ReLU(), nn.Linear(channels, channels))


class Affine(nn.Module):
    """Scale and shift every channel by what the condition says; starts as the identity (DF-GAN, CVPR 2022)."""

    def __init__(self, condition_dim: int, channels: int) -> None:
        super().__init__()
        self.gamma = mlp(condition_dim, channels)
        self.beta = mlp(condition_dim, channels)
        for branch, start in ((self.gamma, 1.0), (self.beta, 0.0)):
            nn.init.zeros_(branch[-1].weight)
            nn.init.constant_(branch[-1].bias, start)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, channels, H, W), (B, C) -> (B, channels, H, W)."""
        gamma = self.gamma(condition)[:, :, None, None]  # (B, channels, 1, 1)
        beta = self.beta(condition)[:, :, None, None]
        return torch.addcmul(beta, gamma, x)


class TextFusion(nn.Module):
    """Affine, LeakyReLU, affine, LeakyReLU: pointwise, so it commutes with nearest upsampling."""

    def __init__(self, condition_dim: int, channels: int) -> None:
        super().__init__()
        self.affine0 = Affine(condition_dim, channels)
        self.affine1 = Affine(condition_dim, channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, channels, H, W), (B, C) -> (B, channels, H, W)."""
        x = F.leaky_relu(self.affine0(x, condition), SLOPE, inplace=True)
        return F.leaky_relu(self.affine1(x, condition), SLOPE, inplace=True)


class FusionBlock(nn.Module):
    """A residual of two text-fused 3x3 convolutions: writes the caption into the noise map before CLIP."""

    def __init__(self, condition_dim: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels // 2, 3, padding=1)
        self.fuse1 = TextFusion(condition_dim, channels // 2)
        self.conv2 = nn.Conv2d(channels // 2, channels, 3, padding=1)
        self.fuse2 = TextFusion(condition_dim, channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, channels, g, g), (B, C) -> (B, channels, g, g)."""
        residual = self.fuse1(self.conv1(x), condition)  # (B, channels / 2, g, g)
        return x + self.fuse2(self.conv2(residual), condition)


def kernel_of_doubled(weight: Tensor) -> Tensor:
    """A 3x3 kernel (O, C, 3, 3) for maps doubled to the nearest -> its equal for the small map, (C, O, 4, 4).

    Each output pixel sees only 2x2 different input pixels, so the 3x3 kernel spread over them is a transposed
    convolution with a 4x4 kernel and stride 2: 16 products where upsampling first takes 36.
    """
    kernel = F.pad(weight.flip(2, 3).transpose(0, 1), (1, 1, 1, 1))  # (C, O, 5, 5)
    kernel = kernel[..., :-1, :] + kernel[..., 1:, :]  # (C, O, 4, 5)
    return kernel[..., :-1] + kernel[..., 1:]  # (C, O, 4, 4)


def conv_of_doubled(conv: nn.Conv2d | nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """A 3x3 convolution of `x` doubled to the nearest, without the large map: (B, C, H, W) -> (B, O, 2H, 2W).

    Equal up to rounding. A transposed convolution has its kernel spread already (`fast.for_sampling`).
    """
    if isinstance(conv, nn.ConvTranspose2d):
        return conv(x)
    return F.conv_transpose2d(x, kernel_of_doubled(conv.weight), conv.bias, stride=2, padding=1)


class GeneratorBlock(nn.Module):
    """Upsample to `size`, then a residual of two text-fused 3x3 convolutions.

    Pointwise work and the 1x1 shortcut commute with nearest upsampling, so they run on the small map. The published
    shortcut upsamples to the nearest pixel and so carries CLIP's grid as squares into the picture, which a short
    training does not smooth away; with `smooth_shortcut` it interpolates linearly.
    """

    def __init__(
        self, condition_dim: int, channels_in: int, channels_out: int, size: int, smooth_shortcut: bool = False
    ) -> None:
        super().__init__()
        self.size = size
        self.mode = "bilinear" if smooth_shortcut else "nearest"
        self.fuse1 = TextFusion(condition_dim, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.fuse2 = TextFusion(condition_dim, channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def _upsample(self, x: Tensor, mode: str = "nearest") -> Tensor:
        return x if x.shape[-1] == self.size else F.interpolate(x, size=(self.size, self.size), mode=mode)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, channels_in, h, h), (B, C) -> (B, channels_out, size, size)."""
        fused = self.fuse1(x, condition)  # (B, channels_in, h, h)
        if 2 * x.shape[-1] == self.size:
            residual = conv_of_doubled(self.conv1, fused)  # (B, channels_out, size, size)
        else:
            residual = self.conv1(self._upsample(fused))
        residual = self.conv2(self.fuse2(residual, condition))
        return self._upsample(self.shortcut(x), self.mode) + residual


class FeatureBlock(nn.Module):
    """Adds the next tapped CLIP layer to the features: x + gamma * residual(x) + beta * tap (GALIP, CLIP-based D)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.residual = residual_convs(channels, channels)
        self.gamma = nn.Parameter(torch.zeros(1))
        self.beta = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, tap: Tensor) -> Tensor:
        """(B, W, g, g), (B, W, g, g) -> (B, W, g, g)."""
        return x + self.gamma * self.residual(x) + self.beta * tap


class ReduceBlock(nn.Module):
    """Brings the features to the head's channels: shortcut(x) + gamma * residual(x)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.residual = residual_convs(channels_in, channels_out)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, W, g, g) -> (B, channels_out, g, g)."""
        return self.shortcut(x) + self.gamma * self.residual(x)


def residual_convs(channels_in: int, channels_out: int) -> nn.Sequential:
    """Two 3x3 convolutions without bias, LeakyReLU behind each: (B, channels_in, g, g) -> (B, channels_out, g, g)."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.LeakyReLU(SLOPE, inplace=True),
        nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
        nn.LeakyReLU(SLOPE, inplace=True),
    )
