"""GALIP's training loop: a generator of step reports (Tao et al., CVPR 2023, sec. 3.4).

Saving, plotting and logging are its consumers. Everything random in step n follows from (seed, n) alone, so a run that
goes on from a checkpoint is the run that was never interrupted.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .clip_bridge import ClipBridge
from .config import Config, TrainConfig
from .discriminator import ConditionalHead, FeatureDiscriminator
from .generator import Generator
from .losses import clip_similarity, hinge_fake, hinge_real, matching_aware_penalty
from .training_data import TrainingData


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
    logit_real: float
    logit_mismatch: float
    logit_fake: float
    grad_norm_d: float
    grad_norm_g: float
    lr_g: float
    seconds: float


def shift(images: Tensor, offsets: Tensor) -> Tensor:
    """Move every picture (B, 3, H, W) by its own offsets (B, 2) in pixels, edges repeated (DiffAugment's translation).

    What CLIP's patches see of a picture then depends on no fixed grid, so neither do the generator's mistakes.
    """
    reach = int(offsets.abs().max())
    if reach == 0:
        return images
    height, width = images.shape[2:]
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    corners = (offsets + reach).tolist()
    return torch.stack([p[:, y : y + height, x : x + width] for p, (y, x) in zip(padded, corners, strict=True)])


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
        """Move the EMA: a weight counts half after `ema_half_life` steps, early on after a share of those so far."""
        half_life = min(config.ema_half_life, max(config.ema_ramp_up * step, 1e-8))
        keep = 0.0 if config.recipe == "paper" else 0.5 ** (1 / half_life)
        ours = list(self.generator.parameters())
        torch._foreach_lerp_(list(self.ema.parameters()), ours, 1 - keep)


class Optimizers:
    """Adam for generator and for discriminator with head (betas 0, 0.9, as published), with their schedule."""

    def __init__(self, networks: Networks, config: TrainConfig) -> None:
        self.config = config
        self.d_parameters = [*networks.discriminator.parameters(), *networks.head.parameters()]
        self.g_parameters = list(networks.generator.parameters())
        self.d = torch.optim.Adam(self.d_parameters, lr=config.lr_d, betas=(0.0, 0.9))
        self.g = torch.optim.Adam(self.g_parameters, lr=config.lr_g, betas=(0.0, 0.9))

    def set_rates(self, step: int) -> float:
        """Learning rates of a step: constant, then falling to zero over the last part -> the generator's."""
        config, left = self.config, 1.0
        if config.recipe == "stable" and config.decay_fraction:
            left = min(1.0, (config.max_steps - step + 1) / (config.decay_fraction * config.max_steps))
        for optimizer, rate in ((self.d, config.lr_d), (self.g, config.lr_g)):
            for group in optimizer.param_groups:
                group["lr"] = rate * left
        return config.lr_g * left


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager:
    """The precision of the forward passes: bf16 autocast, or none for fp32."""
    if resolve_precision(precision, device) == "bf16":
        return torch.autocast(device_type=device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def resolve_precision(precision: str, device: torch.device) -> str:
    """"auto" -> "bf16" where the hardware computes in it (emulated, it is three times slower), else "fp32"."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and torch.cpu._is_amx_tile_supported() else "fp32"


def random_of(seed: int, purpose: int, step: int) -> torch.Generator:
    """The random numbers of one purpose in one step: the same on every device and after every interruption."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence((seed, purpose, step)).generate_state(1)[0]))


def train_step(
    networks: Networks, bridge: ClipBridge, optimizers: Optimizers, config: TrainConfig, step: int,
    images: Tensor, sentence: Tensor, noise: Tensor, offsets: Tensor | None = None,
) -> StepReport:
    """One step, discriminator then generator on the same fakes.

    Args:
        images: real pictures, (B, 3, H, W) in [-1, 1].
        sentence: their captions' embeddings, (B, E); rolled by one they are the mismatched captions.
        noise: (B, Z).
        offsets: (2, B, 2) pixels by which real and generated pictures are moved before CLIP; by default none.
    """
    started = time.perf_counter()
    rate = optimizers.set_rates(step)
    device = sentence.device

    # One graph of the fakes serves both: the discriminator sees them detached, the generator goes back through it.
    with autocast(config.precision, device):
        fakes = networks.generator(noise, sentence)  # (B, 3, H, W)
        if offsets is not None:
            images, fakes = shift(images, offsets[0]), shift(fakes, offsets[1])
        fake_features, fake_embedding = bridge.encode_image(fakes)  # (B, taps, W, g, g), (B, E)
        with torch.no_grad():  # the penalty asks for gradients towards the features, not towards the pixels
            features, _ = bridge.encode_image(images)

    # Discriminator: real with its caption, real with another's, generated.
    for parameter in optimizers.d_parameters:
        parameter.requires_grad_(True)
    with autocast(config.precision, device):
        head = networks.head
        seen, said = head.seen(networks.discriminator(features)), head.said(sentence)
        logit_real = head.compare(seen, said)
        logit_mismatch = head.compare(seen, said.roll(-1, 0))
        logit_fake = head.compare(head.seen(networks.discriminator(fake_features.detach())), said)
    loss_real, loss_mismatch, loss_fake = hinge_real(logit_real), hinge_fake(logit_mismatch), hinge_fake(logit_fake)
    loss_d = loss_real + (loss_mismatch + loss_fake) / 2
    penalty = torch.zeros((), device=device)
    if step % config.penalty_every == 0:
        weight = config.penalty_weight * config.penalty_every
        penalty = matching_aware_penalty(networks.judge, features, sentence, weight, config.penalty_power)
    optimizers.d.zero_grad(set_to_none=True)
    (loss_d + penalty).backward()
    norm_d = gradient_norm(optimizers.d_parameters)
    optimizers.d.step()

    # Generator: fool the updated discriminator, and look to CLIP like the caption.
    for parameter in optimizers.d_parameters:
        parameter.requires_grad_(False)
    with autocast(config.precision, device):
        logit = networks.judge(fake_features, sentence)
    similarity = clip_similarity(fake_embedding.float(), sentence)
    loss_g = -logit.mean() - config.clip_weight * similarity
    optimizers.g.zero_grad(set_to_none=True)
    loss_g.backward()
    norm_g = gradient_norm(optimizers.g_parameters)
    optimizers.g.step()
    networks.update_ema(step, config)

    values = torch.stack(
        [loss_d, loss_real, loss_mismatch, loss_fake, penalty, loss_g, similarity]
        + [logits.mean() for logits in (logit_real, logit_mismatch, logit_fake)]
        + [norm_d, norm_g]
    ).tolist()
    return StepReport(step, *values, lr_g=rate, seconds=time.perf_counter() - started)


def gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """The norm of all gradients together, a scalar."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def train(
    networks: Networks, bridge: ClipBridge, optimizers: Optimizers, data: TrainingData, config: TrainConfig,
    start: int = 0,
) -> Iterator[StepReport]:
    """Steps `start + 1` to `config.max_steps`, a report each; the caller may stop between any two."""
    for step in range(start + 1, config.max_steps + 1):
        images, sentence = data.batch(step, config.batch_size, config.seed)
        size, device = config.batch_size, sentence.device
        noise = torch.randn(size, networks.generator.noise_dim, generator=random_of(config.seed, 2, step)).to(device)
        reach = config.shift
        offsets = torch.randint(-reach, reach + 1, (2, size, 2), generator=random_of(config.seed, 3, step))
        yield train_step(networks, bridge, optimizers, config, step, images, sentence, noise, offsets)
