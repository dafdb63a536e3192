"""The building blocks of GALIP's generator and discriminator (Tao et al., CVPR 2023, sec. 3.2 and 3.3), and RATLIP's.

Shapes: B images, E sentence width, Z noise length, C condition width, W width of the CLIP vision transformer, g its
patch grid. A block takes its condition as (B, C), the same for all its affines, or as (B, affines, C), one for each.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2  # of every LeakyReLU in generator and discriminator, but for:
ATTENTION_SLOPE = 0.01  # of the one in front of RATLIP's shuffle attention
ATTENTION_GROUPS = 8  # of RATLIP's shuffle attention
STATE_DIM = 64  # of RATLIP's recurrent cells
AFFINES = 4  # of a fusion block and of a generator block


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


class BatchAffine(nn.Module):
    """RATLIP's affine as its published code computes it: the batch goes through an LSTM as if it were a sequence.

    One scale and shift, from the last image's state, serve all images: each depends on all, and on their order.
    """

    def __init__(self, condition_dim: int, channels: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(condition_dim, STATE_DIM)
        self.affine = Affine(STATE_DIM, channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, channels, H, W), (B, C) -> (B, channels, H, W)."""
        _, (last, _) = self.rnn(condition)  # (1, STATE_DIM): B is the time axis
        return self.affine(x, last)


class RecurrentCondition(nn.Module):
    """One LSTM cell carries the caption from affine to affine (Ye et al., "Recurrent Affine Transformation", 2022).

    It starts in a state made of the noise and reads the sentence again at every step; image by image, so that none
    depends on its neighbours. RATLIP's paper (Lin et al., 2024) describes its affines so.
    """

    def __init__(self, noise_dim: int, embed_dim: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.start = nn.Linear(noise_dim, 2 * STATE_DIM)
        self.cell = nn.LSTM(embed_dim, STATE_DIM, batch_first=True)

    def forward(self, noise: Tensor, sentence: Tensor) -> Tensor:
        """(B, Z), (B, E) -> the state after every step (B, steps, STATE_DIM)."""
        hidden, memory = (part[None].contiguous() for part in self.start(noise).chunk(2, dim=1))  # (1, B, STATE_DIM)
        return self.cell(sentence[:, None].expand(-1, self.steps, -1), (hidden, memory))[0]


def hand_out(condition: Tensor, parts: int) -> list[Tensor]:
    """What each of `parts` gets: all of (B, C), or in turn its share of (B, affines, C); the last one's is (B, C)."""
    if condition.dim() == 2:
        return [condition] * parts
    return [part.squeeze(1) for part in condition.chunk(parts, dim=1)]


class TextFusion(nn.Module):
    """Affine, LeakyReLU, affine, LeakyReLU: pointwise, so it commutes with nearest upsampling."""

    def __init__(self, condition_dim: int, channels: int, affine: type[nn.Module] = Affine) -> None:
        super().__init__()
        self.affine0 = affine(condition_dim, channels)
        self.affine1 = affine(condition_dim, channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, channels, H, W), (B, C) or (B, 2, C) -> (B, channels, H, W)."""
        first, second = hand_out(condition, 2)
        x = F.leaky_relu(self.affine0(x, first), SLOPE, inplace=True)
        return F.leaky_relu(self.affine1(x, second), SLOPE, inplace=True)


class ShuffleAttention(nn.Module):
    """Weighs half the channels of each group by their means, half by their places, then mixes the groups.

    Zhang and Yang, "SA-Net", ICASSP 2021, with the published eight groups; fewer where the channels don't divide into
    eight pairs of halves (the largest number of groups that does). All groups share the few parameters.

    Raises:
        ValueError: for an odd number of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels % 2:
            raise ValueError(f"shuffle attention halves its channels: {channels} is odd")
        self.groups = math.gcd(ATTENTION_GROUPS, channels // 2)
        width = channels // (2 * self.groups)
        self.channel_weight = nn.Parameter(torch.zeros(1, width, 1, 1))
        self.channel_bias = nn.Parameter(torch.ones(1, width, 1, 1))
        self.place_weight = nn.Parameter(torch.zeros(1, width, 1, 1))
        self.place_bias = nn.Parameter(torch.ones(1, width, 1, 1))
        self.norm = nn.GroupNorm(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, channels, H, W)."""
        grouped = x.unflatten(1, (self.groups, -1)).flatten(0, 1)  # (B * groups, 2 * width, H, W)
        left, right = grouped.chunk(2, dim=1)  # (B * groups, width, H, W) both
        left = left * torch.sigmoid(self.channel_weight * left.mean((2, 3), keepdim=True) + self.channel_bias)
        right = right * torch.sigmoid(self.place_weight * self.norm(right) + self.place_bias)
        together = torch.cat([left, right], dim=1).unflatten(0, (-1, self.groups)).flatten(1, 2)  # (B, channels, H, W)
        return together.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)  # channel i beside i + channels / 2


class AttentiveConv(nn.Module):
    """RATLIP's 3x3 convolution: without bias, then batch norm, LeakyReLU, shuffle attention.

    In training the batch norm takes the statistics of the batch, so that images depend on their neighbours there; in
    eval mode it takes the running ones.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels_out)
        self.attention = ShuffleAttention(channels_out)

    def finish(self, x: Tensor) -> Tensor:
        """What comes behind the convolution: (B, channels_out, H, W) -> the same."""
        return self.attention(F.leaky_relu(self.norm(x), ATTENTION_SLOPE))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, H, W) -> (B, channels_out, H, W)."""
        return self.finish(self.conv(x))


def conv3x3(channels_in: int, channels_out: int, attention: bool) -> nn.Conv2d | AttentiveConv:
    """GALIP's 3x3 convolution, or RATLIP's."""
    return AttentiveConv(channels_in, channels_out) if attention else nn.Conv2d(channels_in, channels_out, 3, padding=1)


class FusionBlock(nn.Module):
    """A residual of two text-fused 3x3 convolutions: writes the caption into the noise map before CLIP."""

    def __init__(
        self, condition_dim: int, channels: int, affine: type[nn.Module] = Affine, attention: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels // 2, 3, padding=1)
        self.fuse1 = TextFusion(condition_dim, channels // 2, affine)
        self.conv2 = conv3x3(channels // 2, channels, attention)
        self.fuse2 = TextFusion(condition_dim, channels, affine)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, channels, g, g), (B, C) or (B, 4, C) -> (B, channels, g, g)."""
        first, second = hand_out(condition, 2)
        residual = self.fuse1(self.conv1(x), first)  # (B, channels / 2, g, g)
        return x + self.fuse2(self.conv2(residual), second)


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

    Equal up to rounding. A transposed convolution has its kernel spread already (`bf16.to_bf16`).
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
        self, condition_dim: int, channels_in: int, channels_out: int, size: int, smooth_shortcut: bool = False,
        attention: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.size = size
        self.mode = "bilinear" if smooth_shortcut else "nearest"
        self.fuse1 = TextFusion(condition_dim, channels_in)
        self.conv1 = conv3x3(channels_in, channels_out, attention)
        self.fuse2 = TextFusion(condition_dim, channels_out)
        self.conv2 = conv3x3(channels_out, channels_out, attention)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def _upsample(self, x: Tensor, mode: str = "nearest") -> Tensor:
        return x if x.shape[-1] == self.size else F.interpolate(x, size=(self.size, self.size), mode=mode)

    def _conv_of_upsampled(self, x: Tensor) -> Tensor:
        if 2 * x.shape[-1] != self.size:
            return self.conv1(self._upsample(x))
        if isinstance(self.conv1, AttentiveConv):
            return self.conv1.finish(conv_of_doubled(self.conv1.conv, x))
        return conv_of_doubled(self.conv1, x)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, channels_in, h, h), (B, C) or (B, 4, C) -> (B, channels_out, size, size)."""
        first, second = hand_out(condition, 2)
        residual = self._conv_of_upsampled(self.fuse1(x, first))  # (B, channels_out, size, size)
        residual = self.conv2(self.fuse2(residual, second))
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
