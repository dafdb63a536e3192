"""DF-GAN (Tao et al., CVPR 2022): one stage of text-fused blocks against one discriminator that looks at the pixels.

Of CLIP its training knows the sentences only; published with DAMSM's, 256 wide, it takes any.
Shapes: B pictures of H x W pixels, E sentence width, Z noise length, nf `model.channels`, g the smallest map's side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import augmentation
from ..blocks import SLOPE, GeneratorBlock, block_channels, conv3x3
from ..clip.bridge import ClipBridge
from ..config import Config, ConfigError, ModelConfig
from ..losses import as_leaf, gradient_penalty, matching_losses
from ..precision import autocast
from ..system import Batch, Losses, Noise, Phase, Step, System, TextToImage


def geometry(config: ModelConfig, most: int = 8) -> tuple[list[int], list[tuple[int, int]]]:
    """Sides of the generator's maps, doubling up to the picture's; (in, out) channels of its blocks, at most `most` nf.

    The smallest side is the picture's, halved until it is 7 or less: 4 for powers of two, as published; 7 for the 56
    pixels of mini birds (7, 14, 28, 56). The discriminator goes the same way back.

    Raises:
        ConfigError: for an image size that is not 4, 5, 6 or 7 times a power of two.
    """
    sides = [256 if config.image_size == "reference" else config.image_size]
    while sides[0] > 7 and sides[0] % 2 == 0:
        sides.insert(0, sides[0] // 2)
    if len(sides) == 1 or not 4 <= sides[0] <= 7:
        raise ConfigError(f"model.image_size = {sides[-1]} must be 4, 5, 6 or 7 times a power of two, such as 56 or 64")
    return sides, block_channels(config.channels, len(sides) - 1, most)


class Generator(TextToImage):
    """Noise (B, Z) and sentence (B, E) -> picture (B, 3, H, W) in [-1, 1], which depends on no other of its batch."""

    def __init__(self, bridge: ClipBridge, config: ModelConfig) -> None:
        super().__init__(bridge)
        sides, channels = geometry(config)
        self.noise_dim, self.image_size, self.late_blocks = config.noise_dim, sides[-1], len(channels)
        self.code_shape = (channels[0][0], sides[0], sides[0])
        self.code = nn.Linear(config.noise_dim, channels[0][0] * sides[0] ** 2)
        self.blocks = nn.ModuleList(
            GeneratorBlock(config.noise_dim + bridge.embed_dim, *widths, side)
            for widths, side in zip(channels, sides[1:], strict=True)
        )
        self.to_rgb = conv3x3(channels[-1][1], 3)

    def forward(
        self, noise: Tensor, sentence: Tensor, late: tuple[Tensor, Tensor] | None = None, late_from: int = 0
    ) -> Tensor:
        """(B, Z), (B, E) -> (B, 3, H, W).

        Style mixing: the blocks from number `late_from` on get noise and sentence from `late`, if given.
        """
        early = torch.cat([noise, sentence], dim=1)  # (B, Z + E)
        mixed = early if late is None else torch.cat(late, dim=1)
        x = self.code(noise).unflatten(1, self.code_shape)  # (B, 8 nf, g, g)
        for number, block in enumerate(self.blocks):
            x = block(x, early if number < late_from else mixed)  # (B, channels, side, side)
        return torch.tanh(self.to_rgb(F.leaky_relu(x, SLOPE)))  # (B, 3, H, W)


class HalvingBlock(nn.Module):
    """Half the side: shortcut(x) + gamma * residual(x)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 4, stride=2, padding=1, bias=False),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.LeakyReLU(SLOPE, inplace=True),
        )
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, 2h, 2h) -> (B, channels_out, h, h); the 1x1 shortcut commutes with the mean before it."""
        return self.shortcut(F.avg_pool2d(x, 2)) + self.gamma * self.residual(x)


class Discriminator(nn.Module):
    """Pictures (B, 3, H, W) -> features (B, `most` nf, g, g); without its last block twice as wide."""

    def __init__(self, config: ModelConfig, most: int = 8, without_last: bool = False) -> None:
        super().__init__()
        channels = geometry(config, most)[1][without_last:]
        self.from_rgb = conv3x3(3, config.channels)
        self.blocks = nn.Sequential(*(HalvingBlock(narrow, wide) for wide, narrow in reversed(channels)))

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(self.from_rgb(images))


class Head(nn.Module):
    """Features (B, `most` nf, g, g) and sentence (B, E) -> logit (B,): real and matching, or not ("one-way output").

    The published head repeats the sentence over the map and convolves both together. Equal and cheaper: convolve each,
    and add; a step then computes each part once for matching and mismatched pairs.
    """

    def __init__(self, bridge: ClipBridge, config: ModelConfig, most: int = 8) -> None:
        super().__init__()
        sides, channels = geometry(config, most)
        self.grid, self.channels = sides[0], channels[0][0]
        self.joint = nn.Conv2d(self.channels + bridge.embed_dim, 2 * config.channels, 3, padding=1, bias=False)
        self.logit = nn.Conv2d(2 * config.channels, 1, self.grid, bias=False)

    def project_features(self, features: Tensor) -> Tensor:
        """What the picture gives: (B, `most` nf, g, g) -> (B, 2 nf, g, g)."""
        return F.conv2d(features, self.joint.weight[:, : self.channels], padding=1)

    def project_text(self, sentence: Tensor) -> Tensor:
        """What the sentence gives, less at the edges: (B, E) -> (B, 2 nf, g, g)."""
        repeated = sentence[:, :, None, None].expand(-1, -1, self.grid, self.grid)
        return F.conv2d(repeated, self.joint.weight[:, self.channels :], padding=1)

    def logits(self, features: Tensor, text: Tensor) -> Tensor:
        """What both projections gave -> logits (B,)."""
        return self.logit(F.leaky_relu(features + text, SLOPE)).flatten()

    def forward(self, features: Tensor, sentence: Tensor) -> Tensor:
        return self.logits(self.project_features(features), self.project_text(sentence))


class DFGAN(System):
    """Generator, discriminator and head: one step of each on the same fakes."""

    def __init__(self, bridge: ClipBridge, config: Config) -> None:
        super().__init__(bridge, config)
        self.generator = self.make_generator(bridge, config.model)
        self.discriminator, self.head = self.make_judges(bridge, config.model)
        if config.data.image_size != self.generator.image_size:
            raise ConfigError(
                f"data.image_size = {config.data.image_size} must be model.image_size = {self.generator.image_size}: "
                "the discriminator compares their pixels"
            )

    @classmethod
    def make_generator(cls, bridge: ClipBridge, config: Any) -> TextToImage:
        return Generator(bridge, config)

    @staticmethod
    def make_judges(bridge: ClipBridge, config: Any) -> tuple[Discriminator, Head]:
        """Discriminator and head."""
        return Discriminator(config), Head(bridge, config)

    def phases(self) -> Sequence[Phase]:
        losses_d, losses_g = self.discriminator_losses, self.generator_losses
        return Phase("d", "discriminator", losses_d), Phase("g", "generator", losses_g)

    def draw(self, size: int, random: Callable[[int], torch.Generator]) -> Noise:
        return super().draw(size, random) | augmentation.draw(self.config, size, random(3))

    def judge(self, images: Tensor, sentence: Tensor) -> Tensor:
        """(B, 3, H, W), (B, E) -> logits (B,)."""
        return self.head(self.discriminator(images), sentence)

    def fakes(self, batch: Batch) -> Tensor:
        """The generator's pictures for a batch as the discriminator sees them, (B, 3, H, W)."""
        with autocast(self.config.precision, batch.images.device):
            pictures = self.generator(batch.noise["z"].to(batch.images.device), batch.text.sentence)
            return augmentation.augment(pictures, batch.noise.get("generated"), self.config)

    def discriminator_losses(self, batch: Batch, step: Step) -> Losses:
        """Real with its caption, with another's, generated; the penalty on pixels and sentence (eq. 1 and 2)."""
        config, head = self.config, self.head
        fakes = step.once("fakes", lambda: self.fakes(batch), graph=False).detach()
        images = augmentation.augment(batch.images, batch.noise.get("real"), config)
        with autocast(config.precision, images.device):
            logit_fake = self.judge(fakes, batch.text.sentence)
        penalised = step.number % config.penalty_every == 0
        if penalised:  # its graph is the real pairs': in fp32 then, all of it
            images, sentence = as_leaf(images), as_leaf(batch.text.sentence)
            batch = replace(batch, text=replace(batch.text, sentence=sentence))
        with autocast("fp32" if penalised else config.precision, images.device):
            features = head.project_features(self.discriminator(images))
            text, mismatched = batch.with_previous(head.project_text)  # pairs of picture i + 1 and sentence i
            logit_real, logit_mismatch = head.logits(features, text), head.logits(features, mismatched)
        loss, noted = matching_losses(logit_real, logit_mismatch, logit_fake)
        noted["penalty"] = torch.zeros_like(loss)
        if penalised:
            weight = config.penalty_weight * config.penalty_every
            noted["penalty"] = gradient_penalty(logit_real, images, sentence, weight, config.penalty_power)
        return Losses(loss + noted["penalty"], noted)

    def generator_losses(self, batch: Batch, step: Step) -> Losses:
        """Fool the updated discriminator."""
        fakes = step.once("fakes", lambda: self.fakes(batch), graph=True)
        with autocast(self.config.precision, fakes.device):
            loss = -self.judge(fakes, batch.text.sentence).mean()
        return Losses(loss, {"loss_g": loss})
