"""LAFITE (Zhou et al., CVPR 2022): StyleGAN2 with captions in its styles, and contrasts with CLIP in both losses.

It can learn without captions: CLIP embeds picture and caption nearby, so a perturbed embedding of the picture serves.
Shapes: B pictures of H x W pixels, E sentence width, Z length of noise and of w, N styles of a picture, P noise pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import augmentation
from ..clip.bridge import ClipBridge
from ..config import Config, ConfigError, LafiteConfig
from ..gathering import gather
from ..losses import clip_similarity
from ..precision import autocast
from ..system import Batch, Losses, Noise, Phase, Role, Step, System, TextToImage
from .style_blocks import DiscriminatorBlock, Epilogue, GeneratorBlock, Mapping

PERTURBED = 0.1, 0.75  # share of noise in the features of a caption, and of a picture that stands for one
R1_EVERY, PATH_EVERY = 16, 4  # steps from one lazy phase to the next
PATH_WEIGHT, STYLE_MIXING = 2.0, 0.9  # of the path length; share of steps with two styles
CLAMP = 256.0  # of what the published networks compute in half precision, before a layer's gain


def geometry(config: LafiteConfig) -> list[tuple[int, int]]:
    """(side, channels) of the maps, from the smallest: 4 px as published, or 5 to 7, such as 7, 14, 28, 56.

    Raises:
        ConfigError: for an image size that is not 4, 5, 6 or 7 times a power of two.
    """
    sides = [256 if config.image_size == "reference" else config.image_size]
    while sides[0] > 7 and sides[0] % 2 == 0:
        sides.insert(0, sides[0] // 2)
    if len(sides) == 1 or not 4 <= sides[0] <= 7:
        raise ConfigError(f"model.image_size = {sides[-1]} must be 4, 5, 6 or 7 times a power of two, such as 56 or 64")
    return [(side, min(config.channels * sides[-1] // side, config.most_channels)) for side in sides]


class Generator(TextToImage):
    """Noise (B, Z) and sentence (B, E) -> picture (B, 3, H, W) about [-1, 1], which depends on no other of its batch.

    `path_mean`, the mean path length of the training, stands here to be saved, shared and restored with the rest.
    """

    path_mean: Tensor
    truncates = True

    def __init__(self, bridge: ClipBridge, config: LafiteConfig) -> None:
        super().__init__(bridge)
        maps, clamp = geometry(config), CLAMP if config.reference else math.inf
        self.noise_dim, self.image_size, self.late_blocks = config.noise_dim, maps[-1][0], len(maps)
        self.mapping = Mapping(config.noise_dim, config.noise_dim)
        self.synthesis = nn.ModuleDict()
        for (_, before), (side, channels) in zip([(0, 0), *maps], maps, strict=False):
            widths = before, channels, side, config.noise_dim, bridge.embed_dim
            self.synthesis[f"b{side}"] = GeneratorBlock(*widths, clamp)
        self.noise_sides = [side for number, (side, _) in enumerate(maps) for _ in range(2 if number else 1)]
        self.styles = 2 * len(maps)  # N: one a convolution, shared with the colours before it, and the last colours'
        self.register_buffer("path_mean", torch.zeros(()))

    def synthesise(self, ws: Tensor, texts: Sequence[Tensor], pixels: Tensor | None = None) -> Tensor:
        """Styles (B, N, Z), texts (B, E) of length 1, one a block, noise (B, P), or its own if None -> (B, 3, H, W)."""
        noises: list[Tensor | None] = [None] * len(self.noise_sides)
        if pixels is not None:
            cut = pixels.split([side * side for side in self.noise_sides], dim=1)
            noises = [n.unflatten(1, (1, side, side)) for n, side in zip(cut, self.noise_sides, strict=True)]
        blocks: Any = self.synthesis.values()
        x, image, place = None, None, 0
        for block, text in zip(blocks, texts, strict=True):
            x, image = block(x, image, ws[:, place:], text, noises[place:])
            place += block.convs
        return cast(Tensor, image)

    def forward(
        self, noise: Tensor, sentence: Tensor, late: tuple[Tensor, Tensor] | None = None, late_from: int = 0
    ) -> Tensor:
        """(B, Z), (B, E) -> (B, 3, H, W), with the noise of pixels that is always the same.

        A noise may have one number more, its truncation: how near to the mean of w it comes, 0 there, 1 not at all.
        Style mixing: the blocks from number `late_from` on get noise and sentence from `late`, if given.
        """
        ws, text = self._styles_of(noise), F.normalize(sentence)
        texts = [text] * self.late_blocks
        if late is not None:
            behind = torch.arange(self.styles, device=noise.device) >= max(0, 2 * late_from - 1)
            ws = torch.where(behind[:, None], self._styles_of(late[0]), ws)
            texts[late_from:] = [F.normalize(late[1])] * (self.late_blocks - late_from)
        return self.synthesise(ws, texts)

    def _styles_of(self, noise: Tensor) -> Tensor:
        """(B, Z) or (B, Z + 1) -> (B, N, Z)."""
        w, truncation = self.mapping(noise[:, : self.noise_dim]), noise[:, self.noise_dim :]
        if truncation.shape[1]:
            w = torch.lerp(self.mapping.w_avg.to(w.dtype).expand_as(w), w, truncation)
        return w[:, None].expand(-1, self.styles, -1)


class Discriminator(nn.ModuleDict):
    """Pictures (B, 3, H, W), texts (B, E) of length 1 -> logits (B,), features (B, E).

    A logit is how real the picture is, and its feature's product with its text. Published, the products of the whole
    batch are summed, one number for all (`model.reference`). The last block compares the batch's pictures in any case.
    """

    def __init__(self, text_dim: int, config: LafiteConfig) -> None:
        maps, clamp = geometry(config), CLAMP if config.reference else math.inf
        super().__init__()
        for number in range(len(maps) - 1, 0, -1):
            (side, wide), (_, out) = maps[number], maps[number - 1]
            self[f"b{side}"] = DiscriminatorBlock(wide, out, number == len(maps) - 1, clamp)
        side, channels = maps[0]
        self[f"b{side}"] = Epilogue(channels, side, text_dim, clamp)
        self.over_batch = config.reference

    def forward(self, images: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        x: Any = images
        for block in self.values():
            x = block(x)
        logit, features = x
        products = features * text
        return logit + (gather(products).sum() if self.over_batch else products.sum(1)), features


def contrast(a: Tensor, b: Tensor, temperature: float, rows: float = 0.0, reference: bool = False) -> Tensor:
    """Log-likelihood that of all `b` (B, E) each of `a` (B, E) belongs to its own, by cosines -> (B,).

    `rows` is the share of that choice; the rest is the choice of an `a` for each `b`. The published code takes the
    exponential before the softmax once more, which its hyper-parameters are made for (`reference`); at temperature 0
    it takes the plain cosine.
    """
    cosines = F.normalize(a.float()) @ F.normalize(b.float()).t()
    if not temperature:
        return cosines.diagonal()
    sharp = cosines / temperature
    if reference:  # its logarithm has the temperature as a factor inside, a constant
        sharp = sharp.exp()
    of_a, of_b = (sharp.log_softmax(dim).diagonal() for dim in (0, 1))
    return torch.lerp(of_a, of_b, rows) + (math.log(temperature) if reference else 0.0)


class LAFITE(System):
    """Generator and discriminator, each with a lazy phase behind its own; every phase draws new fakes."""

    whole_batch = True  # contrasts, minibatch deviation
    paper_average = None
    betas = (0.0, 0.99)
    generator: Generator

    def __init__(self, bridge: ClipBridge, config: Config) -> None:
        super().__init__(bridge, config)
        settings: Any = config.model  # a LafiteConfig
        self.settings: LafiteConfig = settings
        self.generator = self.make_generator(bridge, settings)
        self.discriminator = Discriminator(bridge.embed_dim, settings)
        if settings.from_pictures or settings.contrasts[3]:
            self.wants = frozenset({"picture"})
        if config.data.image_size != self.generator.image_size:
            raise ConfigError(
                f"data.image_size = {config.data.image_size} must be model.image_size = {self.generator.image_size}: "
                "LAFITE's discriminator compares their pixels"
            )

    @classmethod
    def make_generator(cls, bridge: ClipBridge, config: LafiteConfig) -> Generator:
        return Generator(bridge, config)

    def learners(self, role: Role) -> Sequence[nn.Module]:
        return [self.generator if role == "generator" else self.discriminator]

    def phases(self) -> Sequence[Phase]:
        return (
            Phase("g", "generator", self.generator_losses),
            Phase("g_path", "generator", self.path_losses, PATH_EVERY),
            Phase("d", "discriminator", self.discriminator_losses),
            Phase("d_r1", "discriminator", self.r1_losses, R1_EVERY),
        )

    def draw(self, size: int, random: Callable[[int], torch.Generator]) -> Noise:
        """Of each phase: z of two styles (B, 2, Z), where the second begins, noise of pixels and of texts' features."""
        generator, numbers, side = self.generator, random(2), self.generator.image_size
        places = sum(side * side for side in generator.noise_sides)  # P
        noise = augmentation.draw(self.config, size, random(3))
        noise["crop"] = torch.rand(1, 3, generator=numbers).expand(
            size, -1
        )  # the same for all of a batch, as published
        noise["path"] = torch.randn(size, 3, side, side, generator=numbers)
        for phase in self.phases():
            mixed = torch.rand(2, generator=numbers)
            begins = 1 + int(mixed[0] * (generator.styles - 1)) if mixed[1] < STYLE_MIXING else generator.styles
            noise |= {
                f"{phase.name} direction": torch.randn(size, self.generator.bridge.embed_dim, generator=numbers),
                f"{phase.name} source": torch.rand(size, 1, generator=numbers),
            }
            if phase.name != "d_r1":
                noise |= {
                    f"{phase.name} z": torch.randn(size, 2, generator.noise_dim, generator=numbers),
                    f"{phase.name} begins": torch.full((size, 1), begins),
                    f"{phase.name} pixels": torch.randn(size, places, generator=numbers),
                }
        return noise

    # ------------------------------------------------------------ what phases look at

    def text_of(self, batch: Batch, phase: str) -> Tensor:
        """The texts that a phase is told (B, E), of length 1: perturbed captions, or pictures in their place."""
        text, device = F.normalize(batch.text.sentence), batch.images.device
        direction = F.normalize(batch.noise[f"{phase} direction"].to(device))
        of_caption, of_picture = PERTURBED
        found = F.normalize(torch.lerp(text, direction, of_caption))
        if self.settings.from_pictures and batch.text.picture is not None:
            picture = F.normalize(torch.lerp(F.normalize(batch.text.picture), direction, of_picture))
            chosen = batch.noise[f"{phase} source"].to(device) < self.settings.from_pictures
            found = torch.where(chosen, picture, found)
        return found

    def styles(self, batch: Batch, phase: str) -> Tensor:
        """A phase's styles (B, N, Z); the mean of w follows them."""
        mapping, device = self.generator.mapping, batch.images.device
        z, begins = (batch.noise[f"{phase} {name}"].to(device) for name in ("z", "begins"))
        first, second = (mapping(z[:, number])[:, None] for number in (0, 1))  # (B, 1, Z)
        mapping.follow(first[:, 0])
        behind = torch.arange(self.generator.styles, device=device) >= begins  # (B, N)
        return torch.where(behind[:, :, None], second, first)

    def fakes(self, batch: Batch, phase: str, text: Tensor) -> Tensor:
        """A phase's pictures (B, 3, H, W), before augmentation."""
        pixels = batch.noise[f"{phase} pixels"].to(text.device)
        with autocast(self.config.precision, text.device):
            return self.generator.synthesise(self.styles(batch, phase), [text] * self.generator.late_blocks, pixels)

    def judge(self, images: Tensor, text: Tensor, batch: Batch, rows: str) -> tuple[Tensor, Tensor]:
        """Pictures, augmented by the noise `rows`, and texts -> logits (B,), features (B, E)."""
        with autocast(self.config.precision, images.device):
            return self.discriminator(augmentation.augment(images, batch.noise.get(rows), self.config), text)

    def embedding(self, images: Tensor, batch: Batch) -> Tensor:
        """CLIP's embeddings (B, E) of a square out of the pictures; smaller ones than CLIP's are put onto white."""
        side, wanted = images.shape[-1], self.generator.bridge.image_size
        share, down, right = batch.noise["crop"][0].tolist()
        if side < wanted:
            top, left = int(down * (wanted - side)), int(right * (wanted - side))
            images = F.pad(images, (left, wanted - side - left, top, wanted - side - top), value=1.0)
        else:
            cut = int(side * (1 + share) / 2)
            top, left = int(down * (side - cut)), int(right * (side - cut))
            images = images[:, :, top : top + cut, left : left + cut]
            images = F.interpolate(images, (wanted, wanted), mode="bicubic", align_corners=False)
        with autocast(self.config.precision, images.device):
            return self.generator.bridge.encode_image(images)[1].float()

    def contrast(self, a: Tensor, b: Tensor) -> Tensor:
        settings = self.settings
        return contrast(gather(a), gather(b), settings.temperature, settings.rows, settings.reference).mean()

    # ------------------------------------------------------------ phases

    def generator_losses(self, batch: Batch, step: Step) -> Losses:
        """Fool the discriminator, and be nearest to the own text in its eyes and in CLIP's."""
        text = self.text_of(batch, "g")
        fakes = self.fakes(batch, "g", text)
        logit, features = self.judge(fakes, text, batch, "generated")
        seen = self.embedding(fakes, batch)
        itd, itc, iid, iic = self.settings.contrasts
        loss = F.softplus(-logit).mean() - itd * self.contrast(features, text) - itc * self.contrast(seen, text)
        if iid:
            loss = loss - iid * self.contrast(self.judge(batch.images, text, batch, "real")[1], features)
        if iic and batch.text.picture is not None:
            loss = loss - iic * self.contrast(seen, batch.text.picture)
        similarity = clip_similarity(seen.detach(), batch.text.sentence)
        return Losses(loss, {"loss_g": loss, "similarity": similarity})

    def path_losses(self, batch: Batch, step: Step) -> Losses:
        """Path length (StyleGAN2, sec. 3.2) of half the batch, in fp32: a step of w changes all pictures alike."""
        generator, every_other = self.generator, slice(0, len(batch.images), 2)
        batch = batch.share(every_other, batch.images[every_other])
        text, ws = self.text_of(batch, "g_path"), self.styles(batch, "g_path")
        pixels, direction = (batch.noise[name].to(text.device) for name in ("g_path pixels", "path"))
        images = generator.synthesise(ws, [text] * generator.late_blocks, pixels)
        change = (images * direction).sum() / generator.image_size
        (gradient,) = torch.autograd.grad(change, ws, create_graph=True)
        lengths = gather(gradient.square().sum(2).mean(1).sqrt())
        mean = generator.path_mean.lerp(lengths.mean(), 0.01)
        generator.path_mean.copy_(mean.detach())
        penalty = (lengths - mean).square().mean()
        return Losses(PATH_WEIGHT * PATH_EVERY * penalty, {"path_length": lengths.mean()})

    def discriminator_losses(self, batch: Batch, step: Step) -> Losses:
        """Tell real from generated, and find the own text of real pictures."""
        text = self.text_of(batch, "d")
        with torch.no_grad():
            fakes = self.fakes(batch, "d", text)
        logit_fake, _ = self.judge(fakes, text, batch, "generated")
        logit_real, features = self.judge(batch.images, text, batch, "real")
        loss = F.softplus(logit_fake).mean() + F.softplus(-logit_real).mean()
        loss = loss - self.settings.contrasts[0] * self.contrast(features, text)
        noted = {"loss_d": loss}
        for name, logits, sign in (("real", logit_real, 1), ("fake", logit_fake, -1)):
            noted |= {f"logit_{name}": logits.mean(), f"accuracy_{name}": (sign * logits > 0).float().mean()}
        return Losses(loss, noted)

    def r1_losses(self, batch: Batch, step: Step) -> Losses:
        """R1 (Mescheder et al., ICML 2018), in fp32: the squared gradient towards the pixels of real pictures."""
        images = batch.images.detach().requires_grad_()
        seen = augmentation.augment(images, batch.noise.get("real"), self.config)
        logits, _ = self.discriminator(seen, self.text_of(batch, "d_r1"))
        (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        penalty = gradient.square().sum((1, 2, 3)).mean()
        return Losses(self.settings.r1_weight / 2 * R1_EVERY * penalty, {"penalty": penalty})
