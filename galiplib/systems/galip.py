"""GALIP (Tao et al., CVPR 2023): a GAN whose generator and discriminator both look through a frozen CLIP.

Generator: noise and caption -> fusion blocks -> frozen CLIP with prompts -> generator blocks -> picture (sec. 3.2).
Discriminator: the tapped layers of the frozen CLIP, collected, and a head that compares with the caption (sec. 3.1).

Shapes: B images, E sentence width, Z noise length, C condition width, W width of CLIP's image encoder, g its grid.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import augmentation
from ..blocks import SLOPE, Affine, GeneratorBlock, MakeConv, TextFusion, block_channels, conv3x3, split_condition
from ..clip.bridge import ClipBridge
from ..config import Config, GalipConfig
from ..losses import as_leaf, beyond_range, clip_similarity, gradient_penalty, matching_losses
from ..precision import autocast
from ..system import Batch, Losses, Noise, Phase, Role, Step, System, TextToImage
from .projected import second_discriminator

REFERENCE_SIZES = (8, 16, 32, 64, 128, 224)  # the published network, whose "256" gives 224 x 224
BRIDGE_SHARE = 0.1  # weight of CLIP's output beside the features that entered it


def block_sizes(grid: int, image_size: int | Literal["reference"]) -> tuple[int, ...]:
    """The side of every generator block's output.

    Doublings of CLIP's grid where the image size is one, since doubling with the nearest pixel leaves no pattern; else
    powers of two up to the image size; for "reference" the published sizes that lie above the grid. Raises ValueError
    for an image not larger than the grid.
    """
    if image_size == "reference":
        return tuple(size for size in REFERENCE_SIZES if size > grid)
    if image_size <= grid:
        raise ValueError(f"model.image_size = {image_size} must be larger than CLIP's grid of {grid} x {grid} patches")
    doubled = grid * 2 ** math.ceil(math.log2(image_size / grid))
    first = grid if doubled == image_size else 1 << grid.bit_length()  # the smallest power of two above the grid
    sizes = (first << step for step in range(image_size.bit_length()))
    return (*(size for size in sizes if size < image_size), image_size)


class FusionBlock(nn.Module):
    """A residual of two text-fused 3x3 convolutions: writes the caption into the noise map before CLIP."""

    def __init__(
        self, condition_dim: int, channels: int, affine: type[nn.Module] = Affine, conv: MakeConv = conv3x3
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, channels // 2)
        self.fuse1 = TextFusion(condition_dim, channels // 2, affine)
        self.conv2 = conv(channels // 2, channels)
        self.fuse2 = TextFusion(condition_dim, channels, affine)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, channels, g, g), (B, C) or (B, 4, C) -> (B, channels, g, g)."""
        first, second = split_condition(condition, 2)
        residual = self.fuse1(self.conv1(x), first)  # (B, channels / 2, g, g)
        return x + self.fuse2(self.conv2(residual), second)


class Generator(TextToImage):
    """Noise (B, Z) and sentence embedding (B, E) -> picture (B, 3, H, W), about [-1, 1] (no tanh).

    `affine` is that of the fusion blocks, `given_dim` the width of what all get, by default noise and sentence.
    """

    def __init__(
        self, bridge: ClipBridge, config: GalipConfig, affine: type[nn.Module] = Affine, conv: MakeConv = conv3x3,
        given_dim: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(bridge)
        self.noise_dim, self.noise_gain = config.noise_dim, config.noise_gain
        condition_dim = config.noise_dim + bridge.embed_dim
        given_dim = given_dim or condition_dim
        code = config.code_channels
        sizes = block_sizes(bridge.grid, config.image_size)
        channels = block_channels(config.channels, len(sizes))
        self.image_size, self.late_blocks = sizes[-1], len(sizes)
        self.code_shape = (code, bridge.grid, bridge.grid)
        self.code = nn.Linear(config.noise_dim, code * bridge.grid**2)
        self.fusion = nn.ModuleList(FusionBlock(given_dim, code, affine, conv) for _ in range(config.fusion_blocks))
        self.to_clip = nn.Conv2d(code, bridge.width, 5, padding=2)
        self.prompts = nn.Linear(condition_dim, bridge.prompt_layers * bridge.width)
        self.from_clip = nn.Conv2d(bridge.width, channels[0][0], 5, padding=2)
        self.blocks = nn.ModuleList(
            GeneratorBlock(given_dim, *widths, size, config.smooth_shortcut, conv)
            for widths, size in zip(channels, sizes, strict=True)
        )
        self.to_rgb = conv3x3(channels[-1][1], 3)

    def forward(
        self, noise: Tensor, sentence: Tensor, late: tuple[Tensor, Tensor] | None = None, late_from: int = 0
    ) -> Tensor:
        """(B, Z), (B, E) -> (B, 3, H, W); blocks from number `late_from` on get noise and sentence of `late`."""
        noise = self.noise_gain * noise
        conditions = self.conditions(noise, sentence)
        if late is not None:
            first = len(self.fusion) + late_from
            conditions[first:] = self.conditions(self.noise_gain * late[0], late[1])[first:]
        given = iter(conditions)
        x = self.code(noise).unflatten(1, self.code_shape)  # (B, code, g, g)
        for block in self.fusion:
            x = block(x, next(given))
        entering = self.to_clip(x)  # (B, W, g, g)
        condition = torch.cat([noise, sentence], dim=1)  # (B, Z + E)
        prompts = self.prompts(condition).unflatten(1, (-1, self.bridge.width))  # (B, P, W)
        x = self.from_clip(entering + BRIDGE_SHARE * self.bridge.map_features(entering, prompts))  # (B, 8 nf, g, g)
        for block in self.blocks:
            x = block(x, next(given))  # (B, channels, size, size)
        return self.to_rgb(F.leaky_relu(x, SLOPE))  # (B, 3, H, W)

    def conditions(self, noise: Tensor, sentence: Tensor) -> list[Tensor]:
        """What every fusion block and generator block gets, (B, given_dim) or (B, affines, given_dim)."""
        return [torch.cat([noise, sentence], dim=1)] * (len(self.fusion) + len(self.blocks))


def residual_convs(channels_in: int, channels_out: int) -> nn.Sequential:
    """Two 3x3 convolutions without bias, LeakyReLU behind each: (B, channels_in, g, g) -> (B, channels_out, g, g)."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.LeakyReLU(SLOPE, inplace=True),
        nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
        nn.LeakyReLU(SLOPE, inplace=True),
    )


class FeatureBlock(nn.Module):
    """Adds the next tapped CLIP layer to the features: x + gamma * residual(x) + beta * tap (GALIP, CLIP-based D)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.residual = residual_convs(channels, channels)
        self.gamma, self.beta = (nn.Parameter(torch.zeros(1)) for _ in range(2))

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


class FeatureDiscriminator(nn.Module):
    """Tapped CLIP features (B, taps, W, g, g) -> (B, channels, g, g): collects the layers from low to high."""

    def __init__(self, bridge: ClipBridge, config: GalipConfig) -> None:
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

    Two convolutions without padding, 4x4 both on a 7x7 grid; as published of features and repeated sentence together.
    Equal and cheaper: convolve the features, and add what the sentence gives at every place, both once for real and
    mismatched pairs. And the hinges' pulls on a sentence's weights cancel exactly, not to noise that Adam blows up.
    """

    def __init__(self, bridge: ClipBridge, config: GalipConfig) -> None:
        super().__init__()
        kernel = min(4, bridge.grid)
        self.joint = nn.Conv2d(config.disc_channels + bridge.embed_dim, config.head_channels, kernel, bias=False)
        self.act = nn.LeakyReLU(SLOPE)
        self.logit = nn.Conv2d(config.head_channels, 1, bridge.grid - kernel + 1, bias=False)
        self.channels = config.disc_channels

    def project_features(self, features: Tensor) -> Tensor:
        """What the picture gives: (B, channels, g, g) -> (B, head, g - 3, g - 3)."""
        return F.conv2d(features, self.joint.weight[:, : self.channels])

    def project_text(self, sentence: Tensor) -> Tensor:
        """What the sentence gives, at every place: (B, E) -> (B, head, 1, 1)."""
        return F.linear(sentence, self.joint.weight[:, self.channels :].sum((2, 3)))[:, :, None, None]

    def logits(self, features: Tensor, text: Tensor) -> Tensor:
        """What both projections gave -> logits (B,)."""
        return self.logit(self.act(features + text)).flatten()

    def forward(self, features: Tensor, sentence: Tensor) -> Tensor:
        return self.logits(self.project_features(features), self.project_text(sentence))


class Fakes(NamedTuple):
    """Generated pictures (B, 3, H, W), and how CLIP sees them: tapped (B, taps, W, g, g), embeddings (B, E)."""

    pictures: Tensor
    features: Tensor
    embedding: Tensor
    beyond: Tensor  # `beyond_range`, before augmentation
    seen: Tensor  # the pictures, augmented


class GALIP(System):
    """Generator, discriminator (a second one with `model.projected`) and head, one step of each on the same fakes."""

    generator_class: ClassVar[type[Generator]] = Generator

    def __init__(self, bridge: ClipBridge, config: Config) -> None:
        super().__init__(bridge, config)
        settings: Any = config.model  # a GalipConfig, or one that builds on it
        self.generator: TextToImage = self.generator_class(bridge, settings)
        self.discriminator = FeatureDiscriminator(bridge, settings)
        self.head = ConditionalHead(bridge, settings)
        self.projected = second_discriminator(bridge, config, self.generator.image_size)

    @classmethod
    def make_generator(cls, bridge: ClipBridge, config: Any) -> TextToImage:
        return cls.generator_class(bridge, config)

    def learners(self, role: Role) -> Sequence[nn.Module]:
        return [*super().learners(role), *([self.projected] if self.projected and role == "discriminator" else [])]

    def phases(self) -> Sequence[Phase]:
        return Phase("d", "discriminator", self.discriminator_losses), Phase("g", "generator", self.generator_losses)

    def judge(self, features: Tensor, sentence: Tensor) -> Tensor:
        """Tapped features (B, taps, W, g, g) and sentences (B, E) -> logits (B,)."""
        return self.head(self.discriminator(features), sentence)

    def draw(self, size: int, random: Callable[[int], torch.Generator]) -> Noise:
        return super().draw(size, random) | augmentation.draw(self.config, size, random(3))

    def drawn(self, batch: Batch) -> slice | Tensor:
        """The rows whose captions are drawn: all, but for the energy score (`ProjectedDiscriminator.rows`)."""
        return self.projected.rows(batch) if self.projected else slice(None)

    def draw_fakes(self, batch: Batch) -> Tensor:
        """The generator's pictures for a batch, (B, 3, H, W)."""
        sentence = batch.text.sentence[self.drawn(batch)]
        return self.generator(batch.noise["z"].to(sentence.device), sentence)

    def fakes(self, batch: Batch) -> Fakes:
        """The generator's pictures, as they are drawn and as CLIP sees them."""
        with autocast(self.config.precision, batch.images.device):
            return self.look_at(self.draw_fakes(batch), batch.noise.get("generated"))

    def look_at(self, pictures: Tensor, drawn: Tensor | None = None) -> Fakes:
        """What CLIP sees of generated pictures (B, 3, H, W), augmented by `drawn` (B, 7)."""
        seen = augmentation.augment(pictures, drawn, self.config)
        tapped, embedding = self.bridge.encode_image(seen)
        return Fakes(pictures, tapped, embedding, beyond_range(pictures), seen)

    def discriminator_losses(self, batch: Batch, step: Step) -> Losses:
        """Real with its caption, real with another's, generated, and the penalty (eq. 1; DF-GAN, eq. 2)."""
        config, head, device = self.config, self.head, batch.images.device
        made = step.once("fakes", lambda: self.fakes(batch), graph=False)
        penalised = step.number % config.penalty_every == 0
        with autocast(config.precision, device):
            images = augmentation.augment(batch.images, batch.noise.get("real"), config)
            with torch.no_grad():  # the penalty asks for gradients towards the features, not towards the pixels
                features, sentence = self.bridge.tap_image(images), batch.text.sentence
            text, _ = batch.with_next(head.project_text)
            seen = head.project_features(self.discriminator(made.features.detach()))
            logit_fake = head.logits(seen, text[self.drawn(batch)])
        if penalised:  # its graph is the real pairs': in fp32 then, all of it
            features, sentence = as_leaf(features), as_leaf(sentence)
            batch = replace(batch, text=replace(batch.text, sentence=sentence))
        with autocast("fp32" if penalised else config.precision, device):
            seen = head.project_features(self.discriminator(features))
            text, mismatched = batch.with_next(head.project_text)
            logit_real, logit_mismatch = head.logits(seen, text), head.logits(seen, mismatched)
        loss, noted = matching_losses(logit_real, logit_mismatch, logit_fake)
        noted["penalty"] = torch.zeros_like(loss)
        if penalised:
            weight = config.penalty_weight * config.penalty_every
            noted["penalty"] = gradient_penalty(logit_real, features, sentence, weight, config.penalty_power)
        losses = Losses(loss + noted["penalty"], noted)
        return self.projected.beside_d(losses, batch, step, images, made.seen) if self.projected else losses

    def generator_losses(self, batch: Batch, step: Step) -> Losses:
        """Fool the updated discriminator, look to CLIP like the caption, stay in range (eq. 2)."""
        made = step.once("fakes", lambda: self.fakes(batch), graph=True)
        losses = self.losses_of(made, batch)
        return self.projected.beside_g(losses, batch, step, made.seen) if self.projected else losses

    def losses_of(self, fakes: Fakes, batch: Batch) -> Losses:
        """What the generator's phase minimises for these fakes."""
        config, sentence = self.config, batch.text.sentence[self.drawn(batch)]
        with autocast(config.precision, batch.images.device):
            logit = self.judge(fakes.features, sentence)
        similarity = clip_similarity(fakes.embedding.float(), sentence)
        loss = -logit.mean() - config.clip_weight * similarity
        if config.recipe == "stable":
            loss = loss + config.range_weight * fakes.beyond
        embedding = F.normalize(fakes.embedding.detach().float(), dim=1).mean(0)  # (E,)
        return Losses(loss, {"loss_g": loss, "similarity": similarity, "beyond": fakes.beyond, "embedding": embedding})

    def summary(self, noted: dict[str, Tensor]) -> dict[str, float]:
        """`diversity`: 1 - |mean of the fakes' normalised CLIP embeddings|^2, 0 if alike, less in small batches."""
        embedding = noted.pop("embedding")
        return super().summary(noted) | {"diversity": 1 - embedding.square().sum().item()}

    def compile_networks(self, backend: str = "inductor") -> None:
        """The generator, and the CLIP that training looks through; evaluations have other batch shapes."""
        super().compile_networks(backend)
        compiled = copy.copy(self.bridge)
        for name in ("encode_image", "tap_image"):
            setattr(compiled, name, torch.compile(getattr(compiled, name), dynamic=False, backend=backend))
        self._bridge = (compiled,)
