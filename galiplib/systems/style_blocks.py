"""StyleGAN2's layers (Karras et al., CVPR 2020) in plain torch operations, their styles told by noise and text.

Learning rates are equalised: weights start at variance 1 (over a slow layer's rate) and are scaled where they are used.
Shapes: B pictures, W style width, E sentence width; names are those of the authors' files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import SLOPE
from ..gathering import gather, own

GAIN = math.sqrt(2)  # what a leaky ReLU takes from the size of what passes
SLOW = 0.01  # learning rate of the layers between noise or text and the styles, as a share
FILTER = (0.125, 0.375, 0.375, 0.125)  # [1, 3, 3, 1], in both directions


def activate(x: Tensor, clamp: float = math.inf) -> Tensor:
    """Leaky ReLU, in place; its gain is in `x` already, for it commutes with that."""
    x = F.leaky_relu_(x, SLOPE)
    return x if clamp == math.inf else x.clamp(-clamp, clamp)


def smooth(x: Tensor, padding: int) -> Tensor:
    """The low-pass filter, (B, C, h, w) -> (B, C, h + 2 padding - 3, w + 2 padding - 3)."""
    channels, row = x.shape[1], torch.tensor(FILTER, dtype=x.dtype, device=x.device)
    kernel = torch.outer(row, row).expand(channels, 1, 4, 4)
    return F.conv2d(x, kernel, padding=padding, groups=channels)


def enlarge(x: Tensor) -> Tensor:
    """Pictures (B, C, h, w) -> (B, C, 2h, 2w): zeros between the pixels, then the filter."""
    channels, row = x.shape[1], 2 * torch.tensor(FILTER, dtype=x.dtype, device=x.device)
    return F.conv_transpose2d(x, torch.outer(row, row).expand(channels, 1, 4, 4), stride=2, padding=1, groups=channels)


class Dense(nn.Module):
    """(B, in) -> (B, out), with a leaky ReLU unless `linear`; `rate` is that of its learning, as a share."""

    def __init__(self, wide: int, out: int, rate: float = 1.0, linear: bool = False, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, wide) / rate)
        self.bias = nn.Parameter(torch.full((out,), bias))
        self.rate, self.linear = rate, linear

    def forward(self, x: Tensor) -> Tensor:
        gain = self.rate if self.linear else self.rate * GAIN
        x = torch.addmm(gain * self.bias, x, self.weight.t(), alpha=gain * self.weight.shape[1] ** -0.5)
        return x if self.linear else activate(x)


class Conv(nn.Module):
    """A convolution of the discriminator that keeps the side, or halves it behind the filter (`down`).

    Without a bias it is linear; else a leaky ReLU follows. `gain` is what its output is multiplied by.
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int = 3, down: bool = False, gain: float = 1.0,
        bias: bool = True, clamp: float = math.inf,
    ) -> None:  # fmt: skip
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels_out, channels_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(channels_out)) if bias else None
        self.down, self.gain, self.clamp = down, gain * (GAIN if bias else 1.0), clamp * gain

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight.shape[2]
        stride, padding = (2, 0) if self.down else (1, kernel // 2)
        if self.down:  # all of it, for a filter with a stride goes back slowly in bf16
            x = smooth(x, 1 + kernel // 2)
        weight = self.weight * (self.gain * self.weight[0].numel() ** -0.5)
        if self.bias is None:
            return F.conv2d(x, weight, stride=stride, padding=padding)
        return activate(F.conv2d(x, weight, self.gain * self.bias, stride=stride, padding=padding), self.clamp)


class DiscriminatorBlock(nn.Module):
    """Half the side, residual; the first one begins with the pixels."""

    def __init__(self, channels_in: int, channels_out: int, from_pixels: bool, clamp: float) -> None:
        super().__init__()
        if from_pixels:
            self.fromrgb = Conv(3, channels_in, 1, clamp=clamp)
        self.conv0 = Conv(channels_in, channels_in, clamp=clamp)
        self.conv1 = Conv(channels_in, channels_out, down=True, gain=0.5**0.5, clamp=clamp)
        self.skip = Conv(channels_in, channels_out, 1, down=True, gain=0.5**0.5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, 2h, 2h), or pixels -> (B, channels_out, h, h)."""
        if hasattr(self, "fromrgb"):
            x = self.fromrgb(x)
        return self.skip(x) + self.conv1(self.conv0(x))


def minibatch_deviation(x: Tensor, group: int = 4) -> Tensor:
    """Maps (B, C, h, h) with one more: how much the pictures of a group of four, or less, differ (B, C + 1, h, h)."""
    maps = gather(x.float())
    size = max(size for size in range(1, group + 1) if len(maps) % size == 0)
    parts = maps.unflatten(0, (size, -1))  # (size, B / size, C, h, h)
    spread = ((parts - parts.mean(0)).square().mean(0) + 1e-8).sqrt().mean((1, 2, 3))  # (B / size,)
    spread = own(spread.to(x.dtype).repeat(size))  # (B,)
    return torch.cat([x, spread[:, None, None, None].expand(-1, 1, *x.shape[2:])], dim=1)


class Epilogue(nn.Module):
    """The last map (B, C, g, g) -> how real the picture is (B,), and its feature, to be compared with texts (B, E)."""

    def __init__(self, channels: int, side: int, text_dim: int, clamp: float) -> None:
        super().__init__()
        self.conv = Conv(channels + 1, channels, clamp=clamp)
        self.fc = Dense(channels * side**2, channels)
        self.out, self.fts = Dense(channels, 1, linear=True), Dense(channels, text_dim, linear=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.fc(self.conv(minibatch_deviation(x)).flatten(1))
        return self.out(x).float().squeeze(1), self.fts(x).float()


class Styled(nn.Module):
    """What makes a layer's style of w and text: LAFITE's change to StyleGAN2 (CVPR 2022, sec. 3.3)."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, style_dim: int, text_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels_out, channels_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(channels_out))
        self.pre_0, self.pre_1 = (Dense(text_dim, text_dim, SLOW) for _ in range(2))
        self.affine_0 = Dense(text_dim + style_dim, channels_in, linear=True, bias=1.0)

    def style(self, w: Tensor, text: Tensor) -> Tensor:
        """(B, W), (B, E) -> a factor of every channel that comes in (B, channels_in)."""
        return self.affine_0(torch.cat([self.pre_1(self.pre_0(text)), w], dim=1))


class StyledConv(Styled):
    """3x3 convolution with weights multiplied by the style and normalised anew ("demodulation"), noise, leaky ReLU.

    Instead of making weights for every picture, its input is multiplied, and its output divided: one convolution.
    """

    noise_const: Tensor

    def __init__(
        self, channels_in: int, channels_out: int, side: int, style_dim: int, text_dim: int, up: bool, clamp: float
    ) -> None:
        super().__init__(channels_in, channels_out, 3, style_dim, text_dim)
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise_const", torch.randn(side, side))
        self.side, self.up, self.clamp = side, up, clamp

    def forward(self, x: Tensor, w: Tensor, text: Tensor, noise: Tensor | None) -> Tensor:
        """(B, channels_in, h, h), (B, W), (B, E), noise (B, 1, side, side) or None: its own -> (B, ., side, side)."""
        style = self.style(w, text)
        x = x * style[:, :, None, None].to(x.dtype)
        if self.up:  # to 2h + 1, and smoothed to 2h; the filter makes up for the zeros between
            x = smooth(F.conv_transpose2d(x, 4 * self.weight.transpose(0, 1), stride=2), 1)
        else:
            x = F.conv2d(x, self.weight, padding=1)
        scale = GAIN * (style.square() @ self.weight.square().sum((2, 3)).t() + 1e-8).rsqrt()  # (B, channels_out)
        noise = (self.noise_const if noise is None else noise) * (GAIN * self.noise_strength)
        x = torch.addcmul(noise.to(x.dtype), x, scale[:, :, None, None].to(x.dtype))
        return activate(x.add_(GAIN * self.bias[:, None, None]), self.clamp)


class ToRGB(Styled):
    """What a map adds to the picture, a styled 1x1 convolution without demodulation: (B, C, h, h) -> (B, 3, h, h)."""

    def __init__(self, channels: int, style_dim: int, text_dim: int, clamp: float) -> None:
        super().__init__(channels, 3, 1, style_dim, text_dim)
        self.clamp = clamp

    def forward(self, x: Tensor, w: Tensor, text: Tensor) -> Tensor:
        style = self.style(w, text) * x.shape[1] ** -0.5
        weight = (self.weight.flatten(1) * style[:, None]).to(x.dtype).transpose(1, 2)  # (B, C, 3)
        pixels = torch.baddbmm(self.bias.to(x.dtype), x.permute(0, 2, 3, 1).flatten(1, 2), weight)  # (B, h*h, 3)
        rgb = pixels.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
        return rgb if self.clamp == math.inf else rgb.clamp(-self.clamp, self.clamp)


class Mapping(nn.Module):
    """Noise (B, Z), of whatever length -> w (B, W), by eight slow layers; `w_avg` follows the mean of w."""

    w_avg: Tensor

    def __init__(self, noise_dim: int, style_dim: int, layers: int = 8) -> None:
        super().__init__()
        self.register_buffer("w_avg", torch.zeros(style_dim))
        for layer in range(layers):
            self.add_module(f"fc{layer}", Dense(style_dim if layer else noise_dim, style_dim, SLOW))

    def forward(self, noise: Tensor) -> Tensor:
        w = noise * (noise.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.children():
            w = layer(w)
        return w

    @torch.no_grad()
    def follow(self, w: Tensor) -> None:
        """Move the average by a step's w (B, W)."""
        self.w_avg.lerp_(gather(w.float()).mean(0), 0.005)


class GeneratorBlock(nn.Module):
    """Doubles map and picture, but for the first one, which begins with a constant map; adds to the picture."""

    def __init__(
        self, channels_in: int, channels: int, side: int, style_dim: int, text_dim: int, clamp: float
    ) -> None:  # fmt: skip
        super().__init__()
        if channels_in:
            self.conv0 = StyledConv(channels_in, channels, side, style_dim, text_dim, up=True, clamp=clamp)
        else:
            self.const = nn.Parameter(torch.randn(channels, side, side))
        self.conv1 = StyledConv(channels, channels, side, style_dim, text_dim, up=False, clamp=clamp)
        self.torgb = ToRGB(channels, style_dim, text_dim, clamp)
        self.convs = 2 if channels_in else 1

    def forward(
        self, x: Tensor | None, image: Tensor | None, ws: Tensor, text: Tensor, noise: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        """Map and picture of half the side, w of each convolution and of the colours, text, noise -> map, picture."""
        if x is None:
            x = self.conv1(self.const.expand(text.shape[0], -1, -1, -1), ws[:, 0], text, noise[0])
        else:
            x = self.conv1(self.conv0(x, ws[:, 0], text, noise[0]), ws[:, 1], text, noise[1])
        rgb = self.torgb(x, ws[:, self.convs], text).float()
        return x, rgb if image is None else enlarge(image) + rgb
