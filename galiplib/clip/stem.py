"""A small CLIP's first layer with a head start: the frozen first blocks of an ImageNet network beside its patches.

What edges, feathers and petals are takes a transformer from scratch most of its training, and the network knows it.
"""

from __future__ import annotations

from typing import cast

import torch
from clip.model import CLIP
from torch import Tensor, nn

from ..efficientnet import TEACHER, EfficientNetLite, InvertedResidual, SameConv
from ..files import WeightsError
from .bridge import PIXEL_MEAN, PIXEL_STD

STRIDE = 8  # of the last map that is used, in pixels
# Lite0 up to there: (inputs, outputs, kernel, stride) of its inverted residuals; all but the first are six times wider
WIDTH, BLOCKS = 32, ((32, 16, 3, 1), (16, 24, 3, 2), (24, 24, 3, 1), (24, 40, 5, 2), (40, 40, 5, 1))


class LiteStem(nn.Conv2d):
    """CLIP's patch convolution plus a 1 x 1 convolution of Lite0's map of stride 8, which is frozen and standardised.

    CLIP's normalised pixels (B, 3, S, S) -> (B, width, S / 8, S / 8); `weight` and `kernel_size` are the patches'.

    Args:
        width: of the CLIP's image encoder.
        patch_size: must be 8, as the map's stride.
    """

    pixels: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, patch_size: int) -> None:
        if patch_size != STRIDE:
            raise WeightsError(f"the stem {TEACHER} has patches of {STRIDE} pixels: clip.patch_size = {patch_size}")
        super().__init__(3, width, patch_size, patch_size, bias=False)
        blank = _blank()
        front = [SameConv(blank, "_conv_stem", "_bn0", 2), nn.ReLU6()]
        front += [InvertedResidual(blank, f"_blocks.{i}", stride) for i, (*_, stride) in enumerate(BLOCKS)]
        self.front = nn.Sequential(*front).requires_grad_(False)
        channels = BLOCKS[-1][1]
        self.mix = nn.Conv2d(channels, width, 1)
        pixels = torch.stack([torch.tensor(PIXEL_STD), torch.tensor(PIXEL_MEAN)])[:, :, None, None]
        self.register_buffer("pixels", pixels, persistent=False)
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("scale", torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        seen = self.front(EfficientNetLite.preprocess((x * self.pixels[0] + self.pixels[1]) * 2 - 1, x.shape[-1]))
        return super().forward(x) + self.mix((seen - self.mean) * self.scale)  # (B, width, S / 8, S / 8)

    @torch.no_grad()
    def learn_from(self, network: EfficientNetLite, images: Tensor) -> None:
        """Take the weights of Lite0, and the mean and deviation that its map has of images (B, 3, S, S) in [-1, 1]."""
        own = [layer for stage in network.stages for layer in cast(nn.Sequential, stage)]
        for mine, theirs in zip(self.front, own, strict=False):  # what lies behind is not needed
            mine.load_state_dict(theirs.state_dict())
        seen = self.front(network.preprocess(images, images.shape[-1]))
        deviation, mean = torch.std_mean(seen, (0, 2, 3))
        self.mean.copy_(mean[:, None, None])
        self.scale.copy_(1 / deviation.clamp_min(1e-3)[:, None, None])


def _blank() -> dict[str, Tensor]:
    """Zeros in the shapes of Lite0's weights, by their names, to be filled."""
    state: dict[str, Tensor] = {}

    def add(conv: str, norm: str, *shape: int) -> None:
        state[f"{conv}.weight"] = torch.zeros(shape)
        state.update({f"{norm}.{n}": torch.zeros(shape[0]) for n in ("weight", "bias", "running_mean", "running_var")})

    add("_conv_stem", "_bn0", WIDTH, 3, 3, 3)
    for index, (inputs, outputs, kernel, _) in enumerate(BLOCKS):
        name, wide = f"_blocks.{index}", inputs * (6 if index else 1)
        if index:
            add(f"{name}._expand_conv", f"{name}._bn0", wide, inputs, 1, 1)
        add(f"{name}._depthwise_conv", f"{name}._bn1", wide, 1, kernel, kernel)
        add(f"{name}._project_conv", f"{name}._bn2", outputs, wide, 1, 1)
    return state


def give_stem(model: CLIP, name: str) -> CLIP:
    """A CLIP with the stem that its geometry names, unless it is ""; raises WeightsError for one that doesn't fit."""
    if name not in ("", TEACHER):
        raise WeightsError(f"unknown stem {name!r} of a small CLIP: {TEACHER} is one")
    if name:
        patches = model.visual.conv1
        model.visual.conv1 = LiteStem(patches.out_channels, patches.kernel_size[0]).to(patches.weight)
    return model
