"""GALIP's discriminator: it looks at a picture through the tapped layers of a frozen CLIP (CVPR 2023, sec. 3.1)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import SLOPE, FeatureBlock, ReduceBlock
from ..clip.bridge import ClipBridge
from ..config import ModelConfig


class FeatureDiscriminator(nn.Module):
    """Tapped CLIP features (B, taps, W, g, g) -> (B, channels, g, g): collects the layers from low to high."""

    def __init__(self, bridge: ClipBridge, config: ModelConfig) -> None:
        super().__init__()
        self.collect = nn.ModuleList(FeatureBlock(bridge.width) for _ in bridge.taps[1:])
        self.reduce = ReduceBlock(bridge.width, config.disc_channels)

    def forward(self, features: Tensor) -> Tensor:
        x = features[:, 0]  # (B, W, g, g)
        for index, block in enumerate(self.collect, start=1):
            x = block(x, features[:, index])
        return self.reduce(x)  # (B, channels, g, g)


class ConditionalHead(nn.Module):
    """Collected features (B, channels, g, g) and sentence (B, E) -> logit (B,): real and matching, or not.

    Two convolutions without padding that shrink the grid to one value; 4x4 both on a 7x7 grid, as published. The
    published head repeats the sentence over the grid and convolves features and sentence together. Equal and cheaper:
    convolve the features, and add what the sentence gives, which is the same at every place. A step then computes both
    parts once for real and mismatched pairs. It is also more exact: over a batch, the hinge losses' pulls on a
    sentence's weights cancel, to exactly zero here, else to rounding noise that Adam blows up to whole steps.
    """

    def __init__(self, bridge: ClipBridge, config: ModelConfig) -> None:
        super().__init__()
        kernel = min(4, bridge.grid)
        self.joint = nn.Conv2d(config.disc_channels + bridge.embed_dim, config.head_channels, kernel, bias=False)
        self.act = nn.LeakyReLU(SLOPE)
        self.logit = nn.Conv2d(config.head_channels, 1, bridge.grid - kernel + 1, bias=False)
        self.channels = config.disc_channels

    def seen(self, features: Tensor) -> Tensor:
        """What the picture gives: (B, channels, g, g) -> (B, head, g - 3, g - 3)."""
        return F.conv2d(features, self.joint.weight[:, : self.channels])

    def said(self, sentence: Tensor) -> Tensor:
        """What the sentence gives, at every place: (B, E) -> (B, head, 1, 1)."""
        return F.linear(sentence, self.joint.weight[:, self.channels :].sum((2, 3)))[:, :, None, None]

    def compare(self, seen: Tensor, said: Tensor) -> Tensor:
        """Both parts -> logits (B,)."""
        return self.logit(self.act(seen + said)).flatten()

    def forward(self, features: Tensor, sentence: Tensor) -> Tensor:
        return self.compare(self.seen(features), self.said(sentence))
