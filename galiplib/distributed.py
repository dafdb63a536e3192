"""Several processes that train one run together, each on a device of its own, by Hugging Face accelerate.

Started by `torchrun`, `accelerate launch` or `notebook_launcher`, a run finds its companions by itself. With N
processes each takes an N-th of every batch, and DDP averages the gradients: the mathematics is that of one process
with the whole batch. Alone, nothing of this runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .config import ConfigError

PATIENCE = timedelta(minutes=10)  # after which a process that waits for another gives up
Result = TypeVar("Result")


class ProcessLost(RuntimeError):
    """Another process of the team is gone, or hasn't answered for `PATIENCE`."""


class _Scope(nn.Module):
    """Modules, and whatever is computed with them in one call, as the one forward pass that DDP wants to wrap."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.modules_inside = nn.ModuleList(modules)

    def forward(self, compute: Callable[[], Result]) -> Result:
        return compute()


class Team:
    """The processes of a run. Every method but `part` and `through` is to be called by all of them.

    Attributes:
        rank: this process's number.
        size: how many there are.
        device: this process's.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device, self.rank, self.size = torch.device(device), 0, 1
        self._wrapped: dict[tuple[int, ...], nn.Module] = {}
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            self._gather_round()

    def _gather_round(self) -> None:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

        on_cpu = self.device.type == "cpu"
        # evaluation gathers from the CPU on GPUs too
        backend = "gloo" if on_cpu else "cpu:gloo,cuda:nccl"
        self._accelerator = Accelerator(
            cpu=on_cpu,
            kwargs_handlers=[
                InitProcessGroupKwargs(backend=backend, timeout=PATIENCE),
                # every parameter that is trained gets a gradient in every pass, so none are searched for
                DistributedDataParallelKwargs(find_unused_parameters=False),
            ],
        )
        self.device = self._accelerator.device
        self.rank, self.size = self._accelerator.process_index, self._accelerator.num_processes

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def part(self, batch_size: int) -> slice:
        """The entries of a batch that are this process's."""
        own = batch_size // self.size
        return slice(self.rank * own, (self.rank + 1) * own)

    def through(self, compute: Callable[[], Result], *modules: nn.Module, last: bool = True) -> Result:
        """Compute something whose backward pass averages the modules' gradients over all processes.

        Args:
            last: of the parts in which a batch goes through; the others' gradients only add up.
        """
        if self.size == 1:
            return compute()
        key = tuple(map(id, modules))
        if key not in self._wrapped:
            self._wrapped[key] = self._accelerator.prepare_model(_Scope(*modules))
        scope = self._wrapped[key]
        with nullcontext() if last else self._accelerator.no_sync(scope):
            return scope(compute)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of every process's values."""
        return values if self.size == 1 else self._accelerator.reduce(values, "mean")

    def any(self, number: int | None) -> int | None:
        """The largest number that a process has, None if none has one."""
        if self.size == 1:
            return number
        found = torch.tensor(-1 if number is None else number)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return None if found < 0 else int(found)

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()

    def agree(self, **facts: Any) -> None:
        """Make sure that all processes have the same of each.

        Raises:
            ConfigError: on every process, naming what differs and how.
        """
        if self.size == 1:
            return
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, facts)
        for name in facts:
            for rank, theirs in enumerate(found):
                if theirs[name] != found[0][name]:
                    raise ConfigError(
                        f"the processes differ in {name}: {found[0][name]!r} in process 0, {theirs[name]!r} in process "
                        f"{rank}. All need the same command, the same data and the same folder"
                    )


@contextmanager
def together() -> Iterator[None]:
    """What fails in one process fails in all of them, by the same exception: nobody waits for one that is gone."""
    problem: Exception | None = None
    try:
        yield
    except Exception as error:
        problem = error
    if dist.is_available() and dist.is_initialized():
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, problem and (type(problem), str(problem)))
        if problem is None:
            for rank, failure in enumerate(found):
                if failure:
                    raise _alike(failure[0], f"process {rank} of {len(found)}: {failure[1]}")
    if problem is not None:
        raise problem


def _alike(kind: type[Exception], message: str) -> Exception:
    """An exception of a kind, or of its nearest base class that takes a message alone."""
    for base in kind.__mro__:
        try:
            return base(message)
        except TypeError:
            continue


@contextmanager
def in_touch(team: Team) -> Iterator[None]:
    """Raises ProcessLost instead of what gloo and NCCL say when another process doesn't answer."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise ProcessLost(
            f"process {team.rank} of {team.size} has lost another one, which was killed, has failed (its own message "
            f"says why) or is cut off: {str(error).splitlines()[0]}. Start all again: the run goes on from its last "
            "checkpoint"
        ) from error


def check_batch(batch_size: int, accumulate: int, processes: int) -> None:
    """Raises ConfigError if a batch can't be shared evenly."""
    if batch_size % (accumulate * processes):
        raise ConfigError(
            f"train.batch_size = {batch_size} can't be shared by {processes} processes in train.accumulate = "
            f"{accumulate} parts each: make it a multiple of {accumulate * processes}"
        )
