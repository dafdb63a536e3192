"""RAT-GAN (Ye et al., "Recurrent Affine Transformation for Text-to-image Synthesis", 2022): a cell through all affines.

A recurrent cell that starts in the noise reads the sentence again before every affine; between the affines stand
DF-GAN's convolutions as they were in 2020, each residual behind a gate. Without the cell (`model.recurrent`) it is the
DF-GAN of 2020. Shapes: B pictures of H x W pixels, E sentence width, Z noise length, S `model.state_dim`, nf
`model.channels`, g the smallest map's side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import augmentation
from ..blocks import SLOPE, Affine, GeneratorBlock, conv3x3, split_condition
from ..clip.bridge import ClipBridge
from ..config import Config, RatganConfig
from ..losses import matching_aware_penalty, matching_losses
from ..precision import autocast
from ..system import Batch, Losses, Phase, Step, TextToImage
from .dfgan import DFGAN, Discriminator, HalvingBlock, Head, geometry

MOST = 16  # the discriminator's widest maps, in nf


class Cell(nn.Module):
    """The long short-term memory that all affines share; it has one bias, as published."""

    def __init__(self, noise_dim: int, embed_dim: int, state_dim: int) -> None:
        super().__init__()
        self.hidden, self.memory = nn.Linear(noise_dim, state_dim), nn.Linear(noise_dim, state_dim)
        self.lstm = nn.LSTM(embed_dim, state_dim, batch_first=True)
        second = cast(Tensor, self.lstm.bias_hh_l0)  # beside it the bias would learn twice as fast
        second.requires_grad_(False).zero_()

    def forward(self, noise: Tensor, sentence: Tensor, steps: int) -> Tensor:
        """(B, Z), (B, E) -> the state after every step (B, steps, S), of which none depends on another picture."""
        start = self.hidden(noise)[None], self.memory(noise)[None]  # (1, B, S) both
        return self.lstm(sentence[:, None].expand(-1, steps, -1).contiguous(), start)[0]


class Fusion(nn.Module):
    """Affines, a LeakyReLU behind each: pointwise, so it commutes with nearest upsampling."""

    def __init__(self, condition_dim: int, channels: int, hidden: int, count: int) -> None:
        super().__init__()
        self.affines = nn.ModuleList(Affine(condition_dim, channels, hidden) for _ in range(count))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, channels, h, h), (B, C) or (B, count, C) -> (B, channels, h, h)."""
        for affine, given in zip(self.affines, split_condition(condition, len(self.affines)), strict=True):
            x = F.leaky_relu(affine(x, given), SLOPE, inplace=True)
        return x


class GatedBlock(GeneratorBlock):
    """Upsample to `size`, then shortcut(x) + gamma * residual(x), with half of the affines before each convolution."""

    def __init__(
        self, condition_dim: int, channels_in: int, channels_out: int, size: int, config: RatganConfig
    ) -> None:
        super().__init__(condition_dim, channels_in, channels_out, size)
        self.fuse1 = Fusion(condition_dim, channels_in, config.state_dim, config.affines // 2)
        self.fuse2 = Fusion(condition_dim, channels_out, config.state_dim, config.affines // 2)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, channels_in, h, h), (B, C) or (B, affines, C) -> (B, channels_out, size, size)."""
        first, second = split_condition(condition, 2)
        residual = self.conv2(self.fuse2(self._conv_of_upsampled(self.fuse1(x, first)), second))
        return self._upsample(self.shortcut(x)) + self.gamma * residual


class Generator(TextToImage):
    """Noise (B, Z) and sentence (B, E) -> picture (B, 3, H, W) in [-1, 1], which depends on no other of its batch."""

    def __init__(self, bridge: ClipBridge, config: RatganConfig) -> None:
        super().__init__(bridge)
        sides, channels = geometry(config)
        widths = [(channels[0][0], channels[0][0]), *channels]  # the first block stays at the smallest side
        self.noise_dim, self.image_size, self.late_blocks = config.noise_dim, sides[-1], len(widths)
        self.code_shape = (channels[0][0], sides[0], sides[0])
        self.steps = config.affines * len(widths)
        self.cell = Cell(config.noise_dim, bridge.embed_dim, config.state_dim) if config.recurrent else None
        given = config.state_dim if config.recurrent else bridge.embed_dim
        self.code = nn.Linear(config.noise_dim, channels[0][0] * sides[0] ** 2)
        self.blocks = nn.ModuleList(
            GatedBlock(given, *pair, side, config) for pair, side in zip(widths, sides, strict=True)
        )
        self.to_rgb = conv3x3(channels[-1][1], 3)

    def conditions(self, noise: Tensor, sentence: Tensor) -> list[Tensor]:
        """What every block gets: (B, affines, S), or the sentence (B, E)."""
        if self.cell is None:
            return [sentence] * len(self.blocks)
        return split_condition(self.cell(noise, sentence, self.steps), len(self.blocks))

    def forward(
        self, noise: Tensor, sentence: Tensor, late: tuple[Tensor, Tensor] | None = None, late_from: int = 0
    ) -> Tensor:
        """(B, Z), (B, E) -> (B, 3, H, W); blocks from number `late_from` on get the conditions of `late`, if given."""
        conditions = self.conditions(noise, sentence)
        if late is not None:
            conditions[late_from:] = self.conditions(*late)[late_from:]
        x = self.code(noise).unflatten(1, self.code_shape)  # (B, 8 nf, g, g)
        for block, condition in zip(self.blocks, conditions, strict=True):
            x = block(x, condition)  # (B, channels, side, side)
        return torch.tanh(self.to_rgb(F.leaky_relu(x, SLOPE)))  # (B, 3, H, W)


class AttentiveHead(Head):
    """The paper's head, which looks one block earlier: weighs places by the caption, adds it there, halves.

    Its authors switched it off in 2023, for stability; their files of 2022 have it.
    """

    def __init__(self, bridge: ClipBridge, config: RatganConfig) -> None:
        super().__init__(bridge, config, MOST)
        both = geometry(config, MOST)[1][0][1] + bridge.embed_dim
        self.attention = nn.Sequential(
            nn.Conv2d(both, 2 * config.channels, 3, padding=1, bias=False), nn.LeakyReLU(SLOPE),
            nn.Conv2d(2 * config.channels, 1, 1, bias=False), nn.Sigmoid(),
        )  # fmt: skip
        self.block = HalvingBlock(both, self.channels)

    def project_features(self, features: Tensor) -> Tensor:
        """All of a picture's, (B, channels, 2g, 2g): there is no part that doesn't ask for the sentence."""
        return features

    def project_text(self, sentence: Tensor) -> Tensor:
        return sentence

    def weights(self, features: Tensor, sentence: Tensor) -> Tensor:
        """How much of the caption each place gets, (B, 1, 2g, 2g), 1 in all."""
        repeated = sentence[:, :, None, None].expand(-1, -1, *features.shape[2:])
        seen = self.attention(torch.cat([features, repeated], dim=1))  # (B, 1, 2g, 2g)
        return seen.flatten(2).softmax(2).view_as(seen)

    def logits(self, features: Tensor, text: Tensor) -> Tensor:
        """(B, channels, 2g, 2g), (B, E) -> (B,)."""
        placed = text[:, :, None, None] * self.weights(features, text)  # (B, E, 2g, 2g)
        halved = self.block(torch.cat([features, placed], dim=1))  # (B, 16 nf, g, g)
        return super().logits(super().project_features(halved), super().project_text(text))


class RATGAN(DFGAN):
    """DF-GAN's losses with the penalty as a step of its own: the discriminator twice, the generator once.

    The authors' batches are in falling length of their captions, so that mismatches are of a length; ours in no order.
    """

    @classmethod
    def make_generator(cls, bridge: ClipBridge, config: RatganConfig) -> Generator:
        return Generator(bridge, config)

    @staticmethod
    def make_judges(bridge: ClipBridge, config: RatganConfig) -> tuple[Discriminator, Head]:
        head = AttentiveHead(bridge, config) if config.attention else Head(bridge, config, MOST)
        return Discriminator(config, MOST, config.attention), head

    def __init__(self, bridge: ClipBridge, config: Config) -> None:
        super().__init__(bridge, config)
        self.reference = cast(RatganConfig, config.model).reference

    def phases(self) -> Sequence[Phase]:
        d, g = super().phases()
        return d, Phase("d_penalty", "discriminator", self.penalty_losses, self.config.penalty_every), g

    def discriminator_losses(self, batch: Batch, step: Step) -> Losses:
        """Real with its caption, with the next one's, generated."""
        fakes = step.once("fakes", lambda: self.fakes(batch), graph=False).detach()
        images = augmentation.augment(batch.images, batch.noise.get("real"), self.config)
        with autocast(self.config.precision, images.device):
            features = self.head.project_features(self.discriminator(images))
            text, mismatched = batch.with_next(self.head.project_text)
            logit_real, logit_mismatch = self.head.logits(features, text), self.head.logits(features, mismatched)
            logit_fake = self.judge(fakes, batch.text.sentence)
        pairs = len(features) - self.reference  # as published, the last picture meets no other's caption
        loss, noted = matching_losses(logit_real, logit_mismatch[:pairs], logit_fake)
        return Losses(loss, noted | {"penalty": torch.zeros_like(loss)})

    def penalty_losses(self, batch: Batch, step: Step) -> Losses:
        """The penalty on pixels and sentence (DF-GAN, eq. 2) alone, of the discriminator as just updated."""
        config, images = self.config, augmentation.augment(batch.images, batch.noise.get("real"), self.config)
        weight = config.penalty_weight * config.penalty_every
        loss = matching_aware_penalty(self.judge, images, batch.text.sentence, weight, config.penalty_power)
        return Losses(loss, {"penalty": loss})
