"""RATLIP (Lin et al., 2024): GALIP with recurrent affine transformations and shuffle attention, in both readings.

`conditioning: recurrent` is what its paper means, `recurrent-reference` what its published code computes.
"""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import Affine, FinishedConv, conv3x3, split_condition
from ..clip.bridge import ClipBridge
from ..config import RatlipConfig
from ..gathering import BatchNorm
from .galip import GALIP, Generator

ATTENTION_SLOPE = 0.01  # of the LeakyReLU in front of the shuffle attention
ATTENTION_GROUPS = 8
STATE_DIM = 64  # of the recurrent cells
AFFINES = 4  # of a fusion block and of a generator block


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


class ShuffleAttention(nn.Module):
    """Weighs half the channels of each group by their means, half by their places, then mixes the groups.

    Zhang and Yang, "SA-Net", ICASSP 2021, with the published eight groups; fewer where the channels don't divide into
    eight pairs of halves (the largest number of groups that does). All groups share the few parameters.
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


class AttentiveConv(FinishedConv):
    """RATLIP's 3x3 convolution: without bias, then batch norm (in training images meet), LeakyReLU, attention."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.norm = BatchNorm(channels_out)
        self.attention = ShuffleAttention(channels_out)

    def finish(self, x: Tensor) -> Tensor:
        return self.attention(F.leaky_relu(self.norm(x), ATTENTION_SLOPE))


class RatlipGenerator(Generator):
    """GALIP's generator with RATLIP's affines and convolutions; warns once if pictures depend on their neighbours."""

    def __init__(self, bridge: ClipBridge, config: RatlipConfig) -> None:
        recurrent = config.conditioning == "recurrent"
        by_batch = config.conditioning == "recurrent-reference"
        affine = BatchAffine if by_batch else Affine  # in the fusion blocks only, as published
        conv = AttentiveConv if config.attention else conv3x3
        super().__init__(bridge, config, affine, conv, STATE_DIM if recurrent else None)
        self.batch_dependent, self._warned = by_batch, False
        self.recurrent: RecurrentCondition | None = None
        if recurrent:
            steps = AFFINES * (len(self.fusion) + len(self.blocks))
            self.recurrent = RecurrentCondition(config.noise_dim, bridge.embed_dim, steps)

    def conditions(self, noise: Tensor, sentence: Tensor) -> list[Tensor]:
        if self.batch_dependent and not self._warned and not self.training and len(noise) > 1:
            self._warned = True
            warnings.warn(
                "model.conditioning = 'recurrent-reference' reads a batch as a sequence, as RATLIP's published code "
                "does: pictures depend on the others of their batch and on their order; draw them one by one",
                stacklevel=5,
            )
        if self.recurrent is None:
            return super().conditions(noise, sentence)
        return split_condition(self.recurrent(noise, sentence), len(self.fusion) + len(self.blocks))


class RATLIP(GALIP):
    """Trained as GALIP is."""

    generator_class = RatlipGenerator
