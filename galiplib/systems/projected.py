"""A second pair of eyes: a discriminator on a frozen ImageNet network (Sauer et al., *Projected GANs*, NeurIPS 2021).

CLIP never had a reason to keep edges, and what it cannot see, the generator does not draw. Small heads on several maps
of the network are told the caption, too (projection, Miyato and Koyama, 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from ..blocks import SLOPE
from ..clip.bridge import ClipBridge
from ..config import Config, ConfigError, GalipConfig
from ..efficientnet import FrozenEyes, teaching_eyes
from ..losses import matching_losses
from ..system import Batch, Losses, Step
from .energy import describe, energy_score

WIDTH = 64  # channels inside a head
FINE = 4  # maps with a stride of at most so many picture pixels are halved inside their head


class ProjectedHead(nn.Module):
    """One map (B, C, h, w) and the sentence (B, E) -> a logit each (B,): real and matching, or not.

    Spectral norm in place of a gradient penalty, whose second derivative would cost more than all the rest.
    """

    def __init__(self, channels: int, embed_dim: int, halve: bool) -> None:
        super().__init__()
        self.first = spectral_norm(nn.Conv2d(channels, WIDTH, 3, padding=1))
        self.second = spectral_norm(nn.Conv2d(WIDTH, WIDTH, 3, 2 if halve else 1, padding=1))
        self.logit = spectral_norm(nn.Conv2d(WIDTH, 1, 3, padding=1))
        self.text = spectral_norm(nn.Linear(embed_dim, WIDTH))

    def project_features(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) -> what the picture says by itself (B,), and what is to be compared with the caption (B, 64)."""
        x = F.leaky_relu(self.second(F.leaky_relu(self.first(features), SLOPE)), SLOPE)
        return self.logit(x).mean((1, 2, 3)), x.mean((2, 3))

    def project_text(self, sentence: Tensor) -> Tensor:
        """(B, E) -> (B, 64). Only the direction of a sentence counts: CLIPs differ in how long theirs are."""
        return self.text(F.normalize(sentence, dim=1) * sentence.shape[1] ** 0.5)

    def logits(self, seen: tuple[Tensor, Tensor], text: Tensor) -> Tensor:
        """Both parts -> (B,)."""
        return seen[0] + (seen[1] * text).sum(1) / WIDTH**0.5


class ProjectedDiscriminator(nn.Module):
    """A head on each map of the frozen eyes. Power iteration takes one step a loss."""

    def __init__(
        self, eyes: FrozenEyes, embed_dim: int, image_size: int, weight: float = 1.0, energy: float = 0.0
    ) -> None:
        super().__init__()
        self.eyes, self.weight, self.energy = eyes, weight, energy
        halve = [stride * image_size / eyes.side <= FINE for stride in eyes.strides]
        heads = map(ProjectedHead, eyes.widths, [embed_dim] * len(halve), halve)
        self.heads = cast(Sequence[ProjectedHead], nn.ModuleList(heads))

    @parametrize.cached()
    def discriminator_loss(self, real: list[Tensor], fake: list[Tensor], batch: Batch, drawn: slice | Tensor) -> Tensor:
        """Maps of real and of generated pictures (outside the graph), whose captions are rows `drawn` -> a scalar."""
        losses = []
        for head, own, made in zip(self.heads, real, fake, strict=True):
            text, mismatched = batch.with_next(head.project_text)
            seen, of_fake = head.project_features(own), head.project_features(made)
            logits = head.logits(seen, text), head.logits(seen, mismatched), head.logits(of_fake, text[drawn])
            losses.append(matching_losses(*logits)[0])
        return torch.stack(losses).mean()

    @parametrize.cached()
    def generator_loss(self, fake: list[Tensor], sentence: Tensor) -> Tensor:
        """Maps of generated pictures in their graph, their sentences (B, E) -> a scalar."""
        own = zip(self.heads, fake, strict=True)
        return -torch.stack([h.logits(h.project_features(x), h.project_text(sentence)) for h, x in own]).mean()

    def check_pairs(self, rows: int) -> None:
        """Raises ConfigError where the energy score can't be taken of so many: it needs pairs, and two captions."""
        if self.energy and (rows % 2 or rows < 4):
            raise ConfigError(
                f"model.energy draws two pictures a caption, of two captions at least: {rows} pictures a part (train."
                "batch_size / train.accumulate, of each process) must be an even number from 4 on"
            )

    def rows(self, batch: Batch) -> slice | Tensor:
        """The rows whose captions are drawn: all, or for the energy score every second one twice.

        Raises:
            ConfigError: as `check_pairs` does, of a process's part of the batch.
        """
        self.check_pairs(len(batch.images))
        return torch.arange(len(batch.images), device=batch.images.device) // 2 * 2 if self.energy else slice(None)

    def beside_d(self, losses: Losses, batch: Batch, step: Step, images: Tensor, made: Tensor) -> Losses:
        """A phase's losses and this one's, of real pictures and generated ones (B, 3, H, W), both augmented."""
        with torch.no_grad():
            step.made["real"] = images, self.eyes(images)
        maps = step.once("maps", lambda: self.eyes(made), graph=False)
        loss = self.discriminator_loss(step.made["real"][1], [one.detach() for one in maps], batch, self.rows(batch))
        return Losses(losses.total + loss, losses.noted | {"loss_projected": loss})

    def beside_g(self, losses: Losses, batch: Batch, step: Step, made: Tensor) -> Losses:
        """The same for the generator's phase, and the energy score."""
        maps = step.once("maps", lambda: self.eyes(made), graph=True)
        total, noted = self.weight * self.generator_loss(maps, batch.text.sentence[self.rows(batch)]), {}
        if self.energy:
            one, other = ([found[start::2] for found in describe(made, maps)] for start in (0, 1))
            noted["energy"] = energy_score(one, other, [found[::2] for found in describe(*step.made["real"])])
            total = total + self.energy * noted["energy"]
        return Losses(losses.total + total, losses.noted | noted)


def second_discriminator(bridge: ClipBridge, config: Config, image_size: int) -> ProjectedDiscriminator | None:
    """What `model.projected` asks for.

    Raises:
        WeightsError: without the network's package, which it names, or for a damaged file of it.
        ConfigError: for `model.energy` with batches that are no pairs.
    """
    settings = cast(GalipConfig, config.model)
    if not settings.projected:
        return None
    eyes = teaching_eyes(settings.projected, settings.projected_side, bridge.pixel_mean.device)
    second = ProjectedDiscriminator(eyes, bridge.embed_dim, image_size, settings.projected_weight, settings.energy)
    second.check_pairs(config.train.batch_size // config.train.accumulate)
    return second
