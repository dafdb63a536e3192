"""GALIP's discriminator: it looks at a picture through the tapped layers of a frozen CLIP (CVPR 2023, sec. 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .blocks import SLOPE, FeatureBlock, ReduceBlock
from .clip_bridge import ClipBridge
from .config import ModelConfig


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

    Two convolutions without padding that shrink the grid to one value; 4x4 both on a 7x7 grid, as published.
    """

    def __init__(self, bridge: ClipBridge, config: ModelConfig) -> None:
        super().__init__()
        kernel = min(4, bridge.grid)
        self.joint = nn.Conv2d(config.disc_channels + bridge.embed_dim, config.head_channels, kernel, bias=False)
        self.act = nn.LeakyReLU(SLOPE, inplace=True)
        self.logit = nn.Conv2d(config.head_channels, 1, bridge.grid - kernel + 1, bias=False)

    def forward(self, features: Tensor, sentence: Tensor) -> Tensor:
        spread = sentence[:, :, None, None].expand(-1, -1, *features.shape[2:])  # (B, E, g, g)
        x = self.act(self.joint(torch.cat([features, spread], dim=1)))  # (B, head, g - 3, g - 3)
        return self.logit(x).flatten()  # (B,)
