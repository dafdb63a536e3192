"""GALIP's training loop: a generator of step reports (Tao et al., CVPR 2023, sec. 3.4).

Saving, plotting and logging are its consumers. Everything random in step n follows from (seed, n) alone, so a run that
goes on from a checkpoint is the run that was never interrupted.
"""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .augmentation import Augmentation, augment, draw
from .clip.bridge import ClipBridge
from .config import Config, TrainConfig
from .data.batches import TrainingData
from .distributed import Workers
from .losses import beyond_range, clip_similarity, hinge_fake, hinge_real, penalty_of, watched
from .precision import autocast
from .systems.discriminator import ConditionalHead, FeatureDiscriminator
from .systems.galip import Generator

ATTEMPT = 1_000_003  # between the seeds of attempts: no small seed of another run is met
Add = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True)
class StepReport:
    """What one step did. Losses and logits are means over the batch; norms are of all gradients together."""

    step: int
    loss_d: float
    loss_real: float
    loss_mismatch: float
    loss_fake: float
    penalty: float  # as weighted in the loss, 0 in steps without one
    loss_g: float
    similarity: float  # CLIP cosine of generated pictures and their captions
    beyond: float  # how far the generated pictures' values lie beyond [-1, 1]: mean of max(0, |value| - 1)
    logit_real: float
    logit_mismatch: float
    logit_fake: float
    accuracy_real: float  # share of the pairs that the discriminator puts on the right side of 0
    accuracy_mismatch: float
    accuracy_fake: float
    # 1 - |mean of the fakes' normalised CLIP embeddings|^2, as augmented: 0 if all are alike, smaller in small batches
    diversity: float
    grad_norm_d: float
    grad_norm_g: float
    lr_g: float
    skipped: bool  # a gradient was not finite, and a network kept as it was
    seconds: float
    rollbacks: int = 0  # of the run so far


class Networks(nn.Module):
    """Generator, its EMA, discriminator and head, as one module to move and to save."""

    def __init__(self, bridge: ClipBridge, config: Config) -> None:
        super().__init__()
        torch.manual_seed(config.train.seed)
        self.generator = Generator(bridge, config.model)
        self.discriminator = FeatureDiscriminator(bridge, config.model)
        self.head = ConditionalHead(bridge, config.model)
        self.ema = copy.deepcopy(self.generator).requires_grad_(False).eval()
        self.to(device=bridge.pixel_mean.device, memory_format=torch.channels_last)

    def judge(self, features: Tensor, sentence: Tensor) -> Tensor:
        """Tapped features (B, taps, W, g, g) and sentences (B, E) -> logits (B,)."""
        return self.head(self.discriminator(features), sentence)

    @torch.no_grad()
    def update_ema(self, step: int, config: TrainConfig) -> None:
        """Move the EMA: a weight counts half after `ema_half_life` steps, early on after a share of those so far.

        Batch norm's running statistics are averaged along with the weights that they belong to.
        """
        half_life = min(config.ema_half_life, max(config.ema_ramp_up * step, 1e-8))
        keep = 0.0 if config.recipe == "paper" else 0.5 ** (1 / half_life)
        ours = list(self.generator.parameters())
        torch._foreach_lerp_(list(self.ema.parameters()), ours, 1 - keep)
        for average, live in zip(self.ema.buffers(), self.generator.buffers(), strict=True):
            average.lerp_(live, 1 - keep) if live.is_floating_point() else average.copy_(live)


class Optimizers:
    """Adam for generator and for discriminator with head (betas 0, 0.9, as published), with their schedule."""

    def __init__(self, networks: Networks, config: TrainConfig) -> None:
        self.config = config
        self.d_parameters = [*networks.discriminator.parameters(), *networks.head.parameters()]
        self.g_parameters = list(networks.generator.parameters())
        self.d = torch.optim.Adam(self.d_parameters, lr=config.lr_d, betas=(0.0, 0.9), fused=True)
        self.g = torch.optim.Adam(self.g_parameters, lr=config.lr_g, betas=(0.0, 0.9), fused=True)

    def set_rates(self, step: int) -> float:
        """Learning rates of a step: constant, then falling to zero over the last part -> the generator's."""
        config, left = self.config, 1.0
        if config.recipe == "stable" and config.decay_fraction:
            left = min(1.0, (config.max_steps - step + 1) / (config.decay_fraction * config.max_steps))
        for optimizer, rate in ((self.d, config.lr_d), (self.g, config.lr_g)):
            for group in optimizer.param_groups:
                group["lr"] = rate * left
        return config.lr_g * left


def random_of(seed: int, purpose: int, step: int) -> torch.Generator:
    """The random numbers of one purpose in one step: the same on every device and after every interruption."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence((seed, purpose, step)).generate_state(1)[0]))


def train_step(
    networks: Networks,
    bridge: ClipBridge,
    optimizers: Optimizers,
    config: TrainConfig,
    step: int,
    images: Tensor,
    sentence: Tensor,
    noise: Tensor,
    augmentations: tuple[Augmentation, Augmentation] | None = None,
    team: Workers | None = None,
) -> StepReport:
    """One step, discriminator then generator on the same fakes.

    With `config.accumulate` above 1 the batch goes through in as many parts, one after the other, and the gradients
    add up to those of the whole: the step of a large batch in the memory of a small one, for a second forward pass.
    With `model.attention` it is not quite that: batch norm knows the parts only, and sees each twice.
    A loss or gradient that is not finite leaves the network that it was meant for as it is (recipe stable).

    Args:
        images: real pictures, (B, 3, H, W) in [-1, 1].
        sentence: their captions' embeddings, (B, E); rolled by one they are the mismatched captions.
        noise: (B, Z).
        augmentations: what is done to real and to generated pictures before CLIP; by default nothing.
        team: the processes that share the batch: then `images` are this one's, and all else is the whole batch's.
    """
    team = team or Workers()
    started = time.perf_counter()
    rate = optimizers.set_rates(step)
    parts = config.accumulate
    batch = Batch.share(images, sentence, noise, augmentations, team.part(len(sentence))).split(parts)
    values: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=sentence.device))

    def add(name: str, value: Tensor) -> Tensor:
        values[name] = values[name] + value.detach() / parts
        return value / parts

    statistics = [buffer.clone() for buffer in networks.generator.buffers()]
    optimizers.d.zero_grad(set_to_none=True)
    _require_grad(optimizers.d_parameters, True)
    fakes = []
    for part in batch:
        draw_fakes = partial(generate, networks, bridge, config, part)
        # One graph of the fakes serves both networks; in parts, it is built again for the generator.
        with torch.set_grad_enabled(parts == 1):
            fakes.append(draw_fakes())
        losses = partial(discriminator_losses, networks, bridge, config, step, part, fakes[-1][0].detach(), add)
        losses().backward(inputs=optimizers.d_parameters)  # not towards the penalty's features
    team.average_gradients(optimizers.d_parameters)
    norm_d = gradient_norm(optimizers.d_parameters)
    skipped = not _apply(optimizers.d, norm_d, config)

    optimizers.g.zero_grad(set_to_none=True)
    _require_grad(optimizers.d_parameters, False)
    for part, fake in zip(batch, fakes, strict=True):
        if parts > 1:
            draw_fakes = partial(generate, networks, bridge, config, part)
            fake = draw_fakes()
        generator_losses(networks, config, part, *fake, add).backward()
    team.average_gradients(optimizers.g_parameters)
    norm_g = gradient_norm(optimizers.g_parameters)
    if _apply(optimizers.g, norm_g, config):
        team.share_buffers(networks.generator)
        networks.update_ema(step, config)
    else:
        skipped = True
        for buffer, before in zip(networks.generator.buffers(), statistics, strict=True):
            buffer.copy_(before)

    embeddings = F.normalize(torch.cat([embedding.detach() for _, embedding, _ in fakes]).float(), dim=1)
    values |= {"grad_norm_d": norm_d, "grad_norm_g": norm_g}
    means = team.mean(torch.cat([torch.stack(list(values.values())), embeddings.mean(0)]))
    numbers = dict(zip(values, means[: len(values)].tolist(), strict=True))
    numbers["diversity"] = 1 - means[len(values) :].square().sum().item()
    return StepReport(step, **numbers, lr_g=rate, skipped=skipped, seconds=time.perf_counter() - started)


@dataclass(frozen=True)
class Batch:
    """What a step works on, whole or a part of it.

    Attributes:
        following: of a part, the sentence behind its last one, (1, E): the mismatched caption of its last picture.
    """

    images: Tensor
    sentence: Tensor
    noise: Tensor
    augmentations: tuple[Augmentation, Augmentation] | None
    following: Tensor | None = None

    @classmethod
    def share(
        cls, images: Tensor, sentence: Tensor, noise: Tensor,
        augmentations: tuple[Augmentation, Augmentation] | None, own: slice,
    ) -> Batch:  # fmt: skip
        """A process's entries of a whole batch, of which it has its own images only."""
        return cls(images, sentence, noise, augmentations)._cut(own, images)

    def split(self, parts: int) -> list[Batch]:
        size = len(self.images) // parts
        cuts = [slice(start, start + size) for start in range(0, len(self.images), size)]
        return [self._cut(cut, self.images[cut]) for cut in cuts]

    def _cut(self, cut: slice, images: Tensor) -> Batch:
        if cut == slice(0, len(self.sentence)):
            return self
        augmentations = self.augmentations and (self.augmentations[0][cut], self.augmentations[1][cut])
        behind = self.sentence[:1] if self.following is None else self.following
        following = torch.cat([self.sentence, behind])[cut.stop : cut.stop + 1]
        return Batch(images, self.sentence[cut], self.noise[cut], augmentations, following)

    def said(self, head: ConditionalHead, sentence: Tensor) -> tuple[Tensor, Tensor]:
        """What the head makes of the batch's sentences, (B, E), and of the mismatched ones, each computed once."""
        whole = sentence if self.following is None else torch.cat([sentence, self.following])
        said = head.said(whole)
        return said[: len(sentence)], said.roll(-1, 0)[: len(sentence)]


def generate(
    networks: Networks, bridge: ClipBridge, config: TrainConfig, batch: Batch
) -> tuple[Tensor, Tensor, Tensor]:
    """The fakes of a batch as CLIP sees them: tapped features (B, taps, W, g, g), embeddings (B, E); `beyond_range`."""
    with autocast(config.precision, batch.noise.device):
        fakes = networks.generator(batch.noise, batch.sentence)  # (B, 3, H, W)
        beyond = beyond_range(fakes)
        if batch.augmentations:
            fakes = augment(fakes, batch.augmentations[1], config)
        return *bridge.encode_image(fakes), beyond


def discriminator_losses(
    networks: Networks, bridge: ClipBridge, config: TrainConfig, step: int, batch: Batch, fakes: Tensor, add: Add
) -> Tensor:
    """Real with its caption, real with another's, generated, and the penalty -> what the discriminator minimises."""
    head, device = networks.head, batch.noise.device
    penalised = step % config.penalty_every == 0
    with autocast(config.precision, device):
        images = augment(batch.images, batch.augmentations[0], config) if batch.augmentations else batch.images
        with torch.no_grad():  # the penalty asks for gradients towards the features, not towards the pixels
            features, sentence = bridge.tap_image(images), batch.sentence
        said, _ = batch.said(head, sentence)
        logit_fake = head.compare(head.seen(networks.discriminator(fakes)), said)
    if penalised:  # its graph is the real pairs': in fp32 then, all of it
        features, sentence = watched(features), watched(sentence)
    with autocast("fp32" if penalised else config.precision, device):
        seen, (said, mismatched) = head.seen(networks.discriminator(features)), batch.said(head, sentence)
        logit_real = head.compare(seen, said)
        logit_mismatch = head.compare(seen, mismatched)
    loss_real, loss_mismatch, loss_fake = hinge_real(logit_real), hinge_fake(logit_mismatch), hinge_fake(logit_fake)
    penalty = torch.zeros((), device=device)
    if penalised:
        weight = config.penalty_weight * config.penalty_every
        penalty = penalty_of(logit_real, features, sentence, weight, config.penalty_power)
    for name, loss, logits, right in (
        ("real", loss_real, logit_real, logit_real > 0),
        ("mismatch", loss_mismatch, logit_mismatch, logit_mismatch < 0),
        ("fake", loss_fake, logit_fake, logit_fake < 0),
    ):
        add(f"loss_{name}", loss)
        add(f"logit_{name}", logits.mean())
        add(f"accuracy_{name}", right.float().mean())
    add("penalty", penalty)
    return add("loss_d", loss_real + (loss_mismatch + loss_fake) / 2) + penalty / config.accumulate


def generator_losses(
    networks: Networks, config: TrainConfig, batch: Batch, features: Tensor, embedding: Tensor, beyond: Tensor,
    add: Add,
) -> Tensor:  # fmt: skip
    """Fool the updated discriminator, look to CLIP like the caption, stay in range -> what the generator minimises."""
    with autocast(config.precision, batch.noise.device):
        logit = networks.judge(features, batch.sentence)
    similarity = clip_similarity(embedding.float(), batch.sentence)
    add("similarity", similarity)
    add("beyond", beyond)
    loss = -logit.mean() - config.clip_weight * similarity
    return add("loss_g", loss if config.recipe == "paper" else loss + config.range_weight * beyond)


def _require_grad(parameters: list[nn.Parameter], wanted: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(wanted)


def _apply(optimizer: torch.optim.Optimizer, norm: Tensor, config: TrainConfig) -> bool:
    """Step the optimizer, unless a gradient is not finite and the recipe guards against it -> whether it stepped."""
    if config.recipe == "stable" and not norm.isfinite():
        return False
    optimizer.step()
    return True


def gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """The norm of all gradients together, a scalar."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def train(
    networks: Networks,
    bridge: ClipBridge,
    optimizers: Optimizers,
    data: TrainingData,
    config: TrainConfig,
    start: int = 0,
    attempt: int = 0,
    team: Workers | None = None,
) -> Iterator[StepReport]:
    """Steps `start + 1` to `config.max_steps`, a report each; the caller may stop between any two.

    `attempt` (how often the run has gone back) changes everything random: another order of the data, other noise.
    """
    team = team or Workers()
    seed = config.seed + ATTEMPT * attempt
    size = config.batch_size
    for step in range(start + 1, config.max_steps + 1):
        images, sentence = data.batch(step, size, seed, team.part(size))
        noise = torch.randn(size, networks.generator.noise_dim, generator=random_of(seed, 2, step))
        augmentations = draw(config, size, random_of(seed, 3, step))
        yield train_step(
            networks, bridge, optimizers, config, step, images, sentence, noise.to(sentence.device), augmentations, team
        )
