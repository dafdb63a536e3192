"""The generator: noise and caption -> fusion blocks -> frozen CLIP with prompts -> generator blocks -> picture.

GALIP's and RATLIP's differ in how the caption reaches the affines (`model.conditioning`) and in what stands behind the
convolutions (`model.attention`); everything else is the same.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import (
    AFFINES,
    SLOPE,
    STATE_DIM,
    Affine,
    BatchAffine,
    FusionBlock,
    GeneratorBlock,
    RecurrentCondition,
    hand_out,
)
from ..clip.bridge import ClipBridge
from ..config import ModelConfig

REFERENCE_SIZES = (8, 16, 32, 64, 128, 224)  # the published network, whose "256" gives 224 x 224
BRIDGE_SHARE = 0.1  # weight of CLIP's output beside the features that entered it


def block_sizes(grid: int, image_size: int | str) -> tuple[int, ...]:
    """The side of every generator block's output.

    Doublings of CLIP's grid where the image size is one (a first block at the grid itself), since doubling with the
    nearest pixel leaves no pattern; else powers of two up to the image size; for "reference" the published sizes
    (those above the grid, for a CLIP with a finer one than ViT-B/32's 7 x 7).

    Raises:
        ValueError: for an image not larger than CLIP's grid.
    """
    if image_size == "reference":
        return tuple(size for size in REFERENCE_SIZES if size > grid)
    if image_size <= grid:
        raise ValueError(f"model.image_size = {image_size} must be larger than CLIP's grid of {grid} x {grid} patches")
    sizes = [grid]
    while sizes[-1] < image_size:
        sizes.append(2 * sizes[-1])
    if sizes[-1] == image_size:
        return tuple(sizes)
    power = 1 << grid.bit_length()  # the smallest power of two above the grid
    sizes = [power]
    while sizes[-1] < image_size:
        sizes.append(2 * sizes[-1])
    return (*sizes[:-1], image_size)


def block_channels(channels: int, blocks: int) -> list[tuple[int, int]]:
    """(in, out) channels of every generator block: halving towards `channels`, at most 8 x `channels`."""
    widths = [channels * min(2**step, 8) for step in range(blocks, -1, -1)]
    return list(zip(widths[:-1], widths[1:], strict=True))


class Generator(nn.Module):
    """Noise (B, Z) and sentence embedding (B, E) -> picture (B, 3, H, W), about [-1, 1] (no tanh).

    In eval mode a picture does not depend on its neighbours in the batch, but for `conditioning: recurrent-reference`,
    which keeps RATLIP's published function (see `BatchAffine`) and warns of it once.

    The CLIP is the caller's and frozen: it is neither registered as a submodule nor part of the state dict.
    """

    def __init__(self, bridge: ClipBridge, config: ModelConfig) -> None:
        super().__init__()
        self._bridge = (bridge,)  # in a tuple, so that CLIP is no part of this module's state
        self.noise_dim = config.noise_dim
        condition_dim = config.noise_dim + bridge.embed_dim
        code = config.code_channels
        sizes = block_sizes(bridge.grid, config.image_size)
        channels = block_channels(config.channels, len(sizes))
        self.image_size = sizes[-1]
        self.code_shape = (code, bridge.grid, bridge.grid)

        self.batch_dependent = config.conditioning == "recurrent-reference"
        self._warned = False
        affine = BatchAffine if self.batch_dependent else Affine  # in the fusion blocks only, as published
        # the width of what a block's affines get
        given_dim = STATE_DIM if config.conditioning == "recurrent" else condition_dim

        self.code = nn.Linear(config.noise_dim, code * bridge.grid**2)
        self.fusion = nn.ModuleList(
            FusionBlock(given_dim, code, affine, config.attention) for _ in range(config.fusion_blocks)
        )
        self.to_clip = nn.Conv2d(code, bridge.width, 5, padding=2)
        self.prompts = nn.Linear(condition_dim, bridge.prompt_layers * bridge.width)
        self.from_clip = nn.Conv2d(bridge.width, channels[0][0], 5, padding=2)
        self.blocks = nn.ModuleList(
            GeneratorBlock(given_dim, *widths, size, config.smooth_shortcut, config.attention)
            for widths, size in zip(channels, sizes, strict=True)
        )
        self.to_rgb = nn.Conv2d(channels[-1][1], 3, 3, padding=1)
        self.recurrent = None
        if config.conditioning == "recurrent":
            steps = AFFINES * (len(self.fusion) + len(self.blocks))
            self.recurrent = RecurrentCondition(config.noise_dim, bridge.embed_dim, steps)

    @property
    def bridge(self) -> ClipBridge:
        return self._bridge[0]

    def forward(
        self, noise: Tensor, sentence: Tensor, late: tuple[Tensor, Tensor] | None = None, late_from: int = 0
    ) -> Tensor:
        """(B, Z), (B, E) -> (B, 3, H, W).

        Style mixing: the generator blocks from number `late_from` on get noise and sentence from `late`, if given.
        """
        self._warn_of_neighbours(len(noise))
        condition = torch.cat([noise, sentence], dim=1)  # (B, Z + E)
        given = self._given(noise, sentence)
        if late is not None:
            first = len(self.fusion) + late_from
            given[first:] = self._given(*late)[first:]
        given = iter(given)
        x = self.code(noise).unflatten(1, self.code_shape)  # (B, code, g, g)
        for block in self.fusion:
            x = block(x, next(given))
        entering = self.to_clip(x)  # (B, W, g, g)
        prompts = self.prompts(condition).unflatten(1, (-1, self.bridge.width))  # (B, P, W)
        x = self.from_clip(entering + BRIDGE_SHARE * self.bridge.map_features(entering, prompts))  # (B, 8 nf, g, g)
        for block in self.blocks:
            x = block(x, next(given))  # (B, channels, size, size)
        return self.to_rgb(F.leaky_relu(x, SLOPE))  # (B, 3, H, W)

    def _given(self, noise: Tensor, sentence: Tensor) -> list[Tensor]:
        """What every fusion and generator block gets: (B, Z + E) or (B, affines, STATE_DIM)."""
        given = self.recurrent(noise, sentence) if self.recurrent else torch.cat([noise, sentence], dim=1)
        return hand_out(given, len(self.fusion) + len(self.blocks))

    def _warn_of_neighbours(self, batch: int) -> None:
        if self.batch_dependent and not self.training and batch > 1 and not self._warned:
            self._warned = True
            warnings.warn(
                "model.conditioning = 'recurrent-reference' reads a batch as a sequence, as RATLIP's published code "
                "does: pictures depend on the others of their batch and on their order; draw them one by one",
                stacklevel=4,
            )
