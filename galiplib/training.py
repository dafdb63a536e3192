"""The training loop of every system: a generator of step reports.

Everything random in step n follows from (seed, n) alone, so a run that goes on is the run that was never interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .config import TrainConfig
from .system import Batch, Role, Step, System, Text

ATTEMPT = 1_000_003  # between the seeds of attempts: no small seed of another run is met


@dataclass(frozen=True)
class StepReport:
    """What one step did; `report.loss_d` is `report.noted["loss_d"]`."""

    step: int
    noted: dict[str, float]  # what its phases noted, means over the batch; grad_norm_<phase>: of all gradients together
    lr_g: float  # the generator's learning rate
    skipped: bool  # a gradient was not finite, and a network kept as it was
    seconds: float
    rollbacks: int = 0  # of the run so far

    def __getattr__(self, name: str) -> float:
        if name in (noted := self.__dict__.get("noted", {})):
            return noted[name]
        raise AttributeError(f"this step's report has no {name}")

    def record(self) -> dict[str, Any]:
        """All of it, flat: a line of metrics.jsonl."""
        values = dict(vars(self))
        return {"step": values.pop("step"), **values.pop("noted"), **values}


class Optimizers:
    """Adam for what phases of each role update, with its schedule; slower for lazy ones (StyleGAN2, appendix B)."""

    def __init__(self, system: System, config: TrainConfig) -> None:
        self.config = config
        self.rates: dict[Role, float] = {"discriminator": config.lr_d, "generator": config.lr_g}
        self.weights: dict[Role, list[nn.Parameter]] = {}
        self.adam: dict[Role, torch.optim.Adam] = {}
        for role in self.rates:
            lazy = 1 / (1 + sum(1 / p.every for p in system.phases() if p.learns == role and p.every > 1))
            self.rates[role] *= lazy
            self.weights[role] = [w for w in nn.ModuleList(system.learners(role)).parameters() if w.requires_grad]
            betas = system.betas[0] ** lazy, system.betas[1] ** lazy
            self.adam[role] = torch.optim.Adam(self.weights[role], self.rates[role], betas, fused=True)

    def set_rates(self, step: int) -> float:
        """Learning rates of a step: constant, then falling to zero over the last part -> the generator's."""
        config, left = self.config, 1.0
        if config.recipe == "stable" and config.decay_fraction:
            left = min(1.0, (config.max_steps - step + 1) / (config.decay_fraction * config.max_steps))
        for role, optimizer in self.adam.items():
            for group in optimizer.param_groups:
                group["lr"] = self.rates[role] * left * (role == "discriminator" or step > config.warm_up)
        return self.adam["generator"].param_groups[0]["lr"]


class Worker:
    """A process that trains alone; `distributed.Workers` says how several share a batch."""

    def part(self, batch_size: int) -> slice:
        """This process's entries of a batch."""
        return slice(0, batch_size)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Let every process have the mean of all processes' gradients."""

    def share_buffers(self, module: nn.Module) -> None:
        """Give every process the leading one's running statistics."""

    def mean(self, values: Tensor) -> Tensor:
        """The mean of every process's values."""
        return values


def random_of(seed: int, purpose: int, step: int) -> torch.Generator:
    """The random numbers of one purpose in one step: the same on every device and after every interruption."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence((seed, purpose, step)).generate_state(1)[0]))


def train_step(
    system: System, optimizers: Optimizers, batch: Batch, config: TrainConfig, step: int, workers: Worker | None = None
) -> StepReport:
    """One step on this process's entries of a batch: the system's phases in turn, each an update of one role.

    With `config.accumulate` above 1 the batch goes through in as many parts, whose gradients add up to those of the
    whole, for a second forward pass; but for batch norm, which knows the parts only, and sees each twice.
    A loss or gradient that is not finite leaves the networks that it was meant for as they are (recipe stable).
    """
    workers, started, rate = workers or Worker(), time.perf_counter(), optimizers.set_rates(step)
    parts = batch.split(config.accumulate)
    steps = [Step(step, len(parts)) for _ in parts]
    noted: dict[str, Tensor] = {}
    skipped: set[Role] = set()
    statistics = [buffer.clone() for buffer in system.averaged().buffers()]
    for phase in system.phases():
        if step % phase.every:
            continue
        weights, adam = optimizers.weights[phase.learns], optimizers.adam[phase.learns]
        adam.zero_grad(set_to_none=True)
        for part, shared in zip(parts, steps, strict=True):
            losses = phase.losses(part, shared)
            (losses.total / len(parts)).backward(inputs=weights)  # not towards other networks, or a penalty's features
            for name, value in losses.noted.items():
                noted[name] = noted.get(name, 0) + value.detach() / len(parts)
        workers.average_gradients(weights)
        norm = noted[f"grad_norm_{phase.name}"] = gradient_norm(weights)
        if config.recipe == "stable" and not norm.isfinite():
            skipped.add(phase.learns)
        else:
            adam.step()
    if "generator" in skipped:
        for buffer, before in zip(system.averaged().buffers(), statistics, strict=True):
            buffer.copy_(before)
    else:
        workers.share_buffers(system.averaged())
        update_ema(system, step, config)
    means = workers.mean(torch.cat([value.flatten() for value in noted.values()])).cpu()
    cut = means.split([value.numel() for value in noted.values()])
    summary = system.summary({name: value.view(noted[name].shape) for name, value in zip(noted, cut, strict=True)})
    return StepReport(step, summary, lr_g=rate, skipped=bool(skipped), seconds=time.perf_counter() - started)


def gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """The norm of all gradients together, a scalar."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


@torch.no_grad()
def update_ema(system: System, step: int, config: TrainConfig) -> None:
    """Move the EMA: a weight counts half after `ema_half_life` steps, early on after a share of those so far.

    Running statistics are averaged along. Recipe "paper": `system.paper_average` is kept, statistics are the latest.
    """
    half_life = min(config.ema_half_life, max(config.ema_ramp_up * step, 1e-8))
    keep = system.paper_average if (paper := config.recipe == "paper") else None
    keep = 0.5 ** (1 / half_life) if keep is None else keep
    live = system.averaged()
    torch._foreach_lerp_(list(system.ema.parameters()), list(live.parameters()), 1 - keep)
    for average, buffer in zip(system.ema.buffers(), live.buffers(), strict=True):
        average.copy_(buffer) if paper or not buffer.is_floating_point() else average.lerp_(buffer, 1 - keep)


def train(
    system: System, optimizers: Optimizers, data: Any, config: TrainConfig, start: int = 0, attempt: int = 0,
    workers: Worker | None = None,
) -> Iterator[StepReport]:  # fmt: skip
    """Steps `start + 1` to `config.max_steps` on `data.batches.TrainingData`, a report each; stop between any two.

    `attempt` (how often the run has gone back) changes everything random: another order of the data, other noise.
    """
    seed, size = config.seed + ATTEMPT * attempt, config.batch_size
    batch_of = partial(data.batch, wants=system.wants) if system.wants else data.batch
    own = (workers or Worker()).part(size)
    for step in range(start + 1, config.max_steps + 1):
        images, *text = batch_of(step, size, seed, own)
        batch = Batch(images, Text(*text), system.draw(size, partial(random_of, seed, step=step))).share(own, images)
        yield train_step(system, optimizers, batch, config, step, workers)
