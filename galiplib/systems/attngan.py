"""AttnGAN (Xu et al., CVPR 2018): pictures of three sizes, the larger ones from words that each place looks up.

Three discriminators see a size each; DAMSM compares words and regions of the largest. Published with DAMSM's encoders,
it takes CLIP's too: regions are then the patches, codes the embeddings of its vision tower.
Shapes: B pictures of H x W pixels, E sentence width, L words of width W, Z noise length, C condition length,
g `model.channels`, d `model.disc_channels`, s the smallest map's side.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import SLOPE
from ..clip.bridge import ClipBridge
from ..clip.damsm import damsm_losses
from ..config import AttnganConfig, Config, ConfigError
from ..gathering import BatchNorm, gather, processes
from ..precision import autocast
from ..system import Batch, Losses, Phase, Role, Step, System, Text, TextToImage
from .dfgan import geometry

SIZES = 3  # of the pictures, each twice the one before
CONDITION = 100  # C, drawn around what a sentence says


def sides(config: AttnganConfig) -> list[int]:
    """The sides of the maps, doubling from the smallest (4 to 7) up to the picture's; raises ConfigError if too few."""
    found = geometry(config)[0]
    if len(found) <= SIZES:
        raise ConfigError(f"model.image_size = {found[-1]} leaves no room for {SIZES} sizes: 32 is the smallest")
    return found


def conv3x3(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)


# ---------------------------------------------------------------- generator


class UpBlock(nn.Sequential):
    """(B, channels_in, h, w) -> (B, channels_out, 2h, 2w)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        wide = 2 * channels_out  # of which one half gates the other
        up = nn.Upsample(scale_factor=2)
        super().__init__(up, conv3x3(channels_in, wide), BatchNorm(wide), nn.GLU(1))


class ResidualBlock(nn.Module):
    """(B, channels, h, w) -> the same; nothing bends the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            conv3x3(channels, 2 * channels), BatchNorm(2 * channels), nn.GLU(1),
            conv3x3(channels, channels), BatchNorm(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class WordAttention(nn.Module):
    """What each place of a map finds among the words, a mean weighted by how well they fit (sec. 3.1).

    With `reference`, the published defect: the masks of the batch are dealt out to the places in turn, so that place p
    of every picture has that of picture p mod B, and looks at another caption's length. Its weights were trained so.
    """

    def __init__(self, word_dim: int, channels: int, reference: bool) -> None:
        super().__init__()
        self.source = nn.Conv2d(word_dim, channels, 1, bias=False)
        self.reference = reference

    def shares(self, x: Tensor, sources: Tensor, mask: Tensor) -> Tensor:
        """Map (B, g, h, w), words (B, g, L), mask (B, L) -> the words' shares of each place (B, h * w, L)."""
        scores = x.flatten(2).mT @ sources  # (B, h * w, L)
        hidden = mask[:, None]
        if self.reference:
            hidden = mask[torch.arange(scores[..., 0].numel(), device=x.device) % x.shape[0]].view(scores.shape)
        return scores.masked_fill(hidden, -torch.inf).softmax(-1)

    def forward(self, x: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """Map (B, g, h, w), words (B, L, W), mask (B, L), True behind their end -> (B, g, h, w)."""
        sources = self.source(words.mT[..., None])[..., 0]  # (B, g, L)
        return (sources @ self.shares(x, sources, mask).mT).unflatten(2, x.shape[2:])


class Refinement(nn.Module):
    """From the map of one size to that of the next, (B, g, h, w) -> (B, g, 2h, 2w), with the words at hand."""

    def __init__(self, word_dim: int, config: AttnganConfig) -> None:
        super().__init__()
        self.attention = WordAttention(word_dim, config.channels, config.reference)
        self.residual = nn.Sequential(*(ResidualBlock(2 * config.channels) for _ in range(config.residual_blocks)))
        self.up = UpBlock(2 * config.channels, config.channels)

    def forward(self, x: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        return self.up(self.residual(torch.cat([x, self.attention(x, words, mask)], dim=1)))


class Pictures(NamedTuple):
    """What the generator makes."""

    images: list[Tensor]  # each size's (B, 3, side, side) in [-1, 1], the smallest first; of AttnDCGAN the largest only
    mean: Tensor  # (B, C), of the condition that was drawn
    log_variance: Tensor  # (B, C)


class Generator(TextToImage):
    """Noise (B, Z + C), whose last C numbers draw the condition (conditioning augmentation), and text -> `Pictures`."""

    wants = frozenset({"words"})

    def __init__(self, bridge: ClipBridge, config: AttnganConfig) -> None:
        super().__init__(bridge)
        maps, g = sides(config), config.channels
        self.reference, self._warned = config.reference, False
        self.noise_dim, self.image_size = config.noise_dim + CONDITION, maps[-1]
        grown = len(maps) - SIZES  # times that the map doubles before the first picture
        wide = g * 2**grown
        self.code_shape = (wide, maps[0], maps[0])
        self.condition = nn.Sequential(nn.Linear(bridge.embed_dim, 4 * CONDITION), nn.GLU(1))
        code = 2 * wide * maps[0] ** 2
        self.start = nn.Sequential(nn.Linear(self.noise_dim, code, bias=False), BatchNorm(code), nn.GLU(1))
        self.grow = nn.Sequential(*(UpBlock(wide >> step, wide >> step + 1) for step in range(grown)))
        self.refine = nn.ModuleList(Refinement(bridge.word_dim, config) for _ in range(SIZES - 1))
        self.to_rgb = nn.ModuleList(conv3x3(g, 3) for _ in range(1 if config.one_picture else SIZES))

    def forward(self, noise: Tensor, text: Text) -> Pictures:
        if self.reference and not self._warned and not self.training and len(noise) > 1:
            self._warned = True
            warnings.warn(
                "model.reference deals out the masks of captions as AttnGAN's published code does: pictures depend on "
                "the others of their batch; draw them one by one",
                stacklevel=3,
            )
        mean, log_variance = self.condition(text.sentence).chunk(2, dim=1)  # (B, C) both
        z, drawn = noise.split([noise.shape[1] - mean.shape[1], mean.shape[1]], dim=1)
        condition = mean + drawn * (log_variance / 2).exp()
        x = self.grow(self.start(torch.cat([condition, z], dim=1)).unflatten(1, self.code_shape))  # (B, g, side, side)
        maps = [x]
        for refine in self.refine:
            maps.append(refine(maps[-1], text.words, text.mask))
        shown = zip(self.to_rgb, maps[-len(self.to_rgb) :], strict=True)
        return Pictures([torch.tanh(to_rgb(x)) for to_rgb, x in shown], mean, log_variance)

    def picture_of(self, noise: Tensor, text: Text) -> Tensor:
        """The largest, (B, 3, H, W) in [-1, 1]."""
        return self(noise, text).images[-1]


# ---------------------------------------------------------------- discriminator


class Discriminator(nn.Module):
    """Pictures (B, 3, side, side) -> features (B, D, s, s), and logits of them, D at most 8d."""

    def __init__(self, embed_dim: int, config: AttnganConfig, side: int, smallest: int) -> None:
        super().__init__()
        d, layers = config.disc_channels, []
        width, most = 3, 8 * d
        while side > smallest:
            norm = [] if width == 3 else [BatchNorm(2 * width)]
            wider = d if width == 3 else 2 * width
            layers += [nn.Conv2d(width, wider, 4, stride=2, padding=1, bias=False), *norm, nn.LeakyReLU(SLOPE)]
            width, side = wider, side // 2
        while width > most:
            layers += [conv3x3(width, width // 2), BatchNorm(width // 2), nn.LeakyReLU(SLOPE)]
            width //= 2
        self.look = nn.Sequential(*layers)
        self.alone = None if config.one_picture else nn.Conv2d(width, 1, smallest)
        self.joint = nn.Sequential(conv3x3(width + embed_dim, width), BatchNorm(width), nn.LeakyReLU(SLOPE))
        self.logit = nn.Conv2d(width, 1, smallest)

    def forward(self, images: Tensor) -> Tensor:
        return self.look(images)

    def matching(self, features: Tensor, sentence: Tensor) -> Tensor:
        """Features (B, D, s, s) and sentences (B, E) -> logits (B,): a real picture, of this sentence."""
        repeated = sentence[:, :, None, None].expand(-1, -1, *features.shape[2:])
        return self.logit(self.joint(torch.cat([features, repeated], dim=1))).flatten()

    def real(self, features: Tensor) -> Tensor | None:
        """Features (B, D, s, s) -> logits (B,): a real picture, whatever of. AttnDCGAN's doesn't ask."""
        return None if self.alone is None else self.alone(features).flatten()


def asks(logits: Tensor | None, sign: int) -> Tensor:
    """Logits (B,) -> scalar, the binary cross-entropy of their being above 0 (`sign` 1) or below (-1); of None 0."""
    return torch.zeros(()) if logits is None else F.softplus(-sign * logits.float()).mean()


# ---------------------------------------------------------------- training


def initialise(module: nn.Module) -> None:
    """As published: orthogonal matrices, and scales around 1."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.orthogonal_(module.weight)
    elif isinstance(module, BatchNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(cast(Tensor, module.bias))


class AttnGAN(System):
    """Each discriminator learns from a loss of its own; one step on their sum is the same, since they share no weight.

    With `model.reference`, batches are in falling length of their captions, which decides who is whose mismatch.
    """

    wants = frozenset({"words", "classes"})
    whole_batch = True  # DAMSM's losses contrast its pairs
    betas = (0.5, 0.999)
    paper_average = 0.999
    generator: Generator

    def __init__(self, bridge: ClipBridge, config: Config) -> None:
        super().__init__(bridge, config)
        self.model = model = cast(AttnganConfig, config.model)
        self.generator, maps = Generator(bridge, model), sides(model)
        if self.generator.image_size != config.data.image_size:
            raise ConfigError(
                f"data.image_size = {config.data.image_size} must be model.image_size = {self.generator.image_size}: "
                "the discriminators compare pixels"
            )
        if model.reference and processes() > 1:
            raise ConfigError(
                "model.reference must be false with several processes: it mixes the masks of a whole batch"
            )
        if config.train.shift or config.train.colour or config.train.cutout:
            raise ConfigError("train.shift, train.colour and train.cutout must be 0: attngan has no augmentation")
        self.sizes = maps[-1:] if model.one_picture else maps[-SIZES:]
        self.discriminator = nn.ModuleList(Discriminator(bridge.embed_dim, model, side, maps[0]) for side in self.sizes)
        self.apply(initialise)

    @classmethod
    def make_generator(cls, bridge: ClipBridge, config: Any) -> Generator:
        return Generator(bridge, config)

    def learners(self, role: Role) -> Sequence[nn.Module]:
        return [self.generator if role == "generator" else self.discriminator]

    def phases(self) -> Sequence[Phase]:
        losses_d, losses_g = self.discriminator_losses, self.generator_losses
        return Phase("d", "discriminator", losses_d), Phase("g", "generator", losses_g)

    def judges(self) -> list[Discriminator]:
        """The discriminators, of the smallest pictures first."""
        return [cast(Discriminator, judge) for judge in self.discriminator]

    def in_order(self, batch: Batch) -> Batch:
        """The batch as the published code has it."""
        if not self.model.reference:
            return batch
        order = cast(Tensor, batch.text.mask).sum(1).argsort(stable=True)
        noise = {name: value[order.to(value.device)] for name, value in batch.noise.items()}
        return Batch(batch.images[order], batch.text[order], noise)

    def fakes(self, batch: Batch) -> Pictures:
        """The generator's pictures for a batch."""
        with autocast(self.config.precision, batch.images.device):
            return self.generator(batch.noise["z"].to(batch.images.device), batch.text)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Real pictures (B, 3, H, W) in the discriminators' sizes."""
        resized = (F.interpolate(images, size=(s, s), mode="bilinear", antialias=True) for s in self.sizes[:-1])
        return [*resized, images]

    def discriminator_losses(self, batch: Batch, step: Step) -> Losses:
        """Real or not, matching or not; mismatched are picture i and sentence i + 1, as published but for the last."""
        batch = step.once("batch", lambda: self.in_order(batch), graph=False)
        fakes = step.once("fakes", lambda: self.fakes(batch), graph=False)
        (sentence, behind), losses, noted = batch.with_next(lambda sentence: sentence), [], {}
        pairs = len(sentence) - self.model.reference
        for see, real, fake in zip(self.judges(), self.pyramid(batch.images), fakes.images, strict=True):
            with autocast(self.config.precision, real.device):
                features, of_fakes = see(real), see(fake.detach())
                logit, logit_fake = see.matching(features, sentence), see.matching(of_fakes, sentence)
                logit_mismatch = see.matching(features[:pairs], behind[:pairs])
                alone, alone_fake = see.real(features), see.real(of_fakes)
            right = asks(alone, 1) + asks(logit, 1)
            wrong = asks(alone_fake, -1) + asks(logit_fake, -1) + asks(logit_mismatch, -1)
            losses.append(right + wrong / 2 if alone is None else right / 2 + wrong / 3)
            noted[f"loss_d_{real.shape[-1]}"] = losses[-1]
        loss = torch.stack(losses).sum()
        noted |= {"loss_d": loss, "logit_real": logit.mean(), "logit_mismatch": logit_mismatch.mean()}
        return Losses(loss, noted | {"logit_fake": logit_fake.mean()})  # of the largest pictures

    def generator_losses(self, batch: Batch, step: Step) -> Losses:
        """Fool the updated discriminators, and please DAMSM (eq. 3 and 14); the condition stays near the normal one."""
        batch = step.once("batch", lambda: self.in_order(batch), graph=False)
        fakes, text = step.once("fakes", lambda: self.fakes(batch), graph=True), batch.text
        loss, noted = torch.zeros((), device=batch.images.device), {}
        with autocast(self.config.precision, batch.images.device):
            for see, fake in zip(self.judges(), fakes.images, strict=True):
                features = see(fake)
                loss = loss + asks(see.real(features), 1) + asks(see.matching(features, text.sentence), 1)
            regions, code = self.bridge.encode_regions(fakes.images[-1])
        words = self.bridge.project_words(text.words)
        pairs = regions.float(), code.float(), words, cast(Tensor, text.mask), text.sentence
        classes = None if text.classes is None else gather(text.classes)
        found, code, words, mask, sentence = map(gather, pairs)
        damsm = damsm_losses(found, code, words, mask, sentence, classes)
        mean, log_variance = fakes.mean.float(), fakes.log_variance.float()
        noted["loss_kl"] = -(1 + log_variance - mean**2 - log_variance.exp()).mean() / 2
        noted |= {"loss_words": damsm[:2].sum(), "loss_sentence": damsm[2:].sum(), "loss_fool": loss}
        noted["loss_g"] = loss + self.model.damsm_weight * damsm.sum() + noted["loss_kl"]
        return Losses(noted["loss_g"], noted)
