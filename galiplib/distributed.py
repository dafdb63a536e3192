"""Several processes that train one run together, each on a device of its own.

Started by `torchrun`, `accelerate launch` or `runs.launch`, a run finds its companions by itself. With N processes each
takes an N-th of every batch, and the gradients are averaged: the mathematics is that of one process with the whole
batch. Alone, nothing of this runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .config import ConfigError
from .training import Worker

PATIENCE = timedelta(minutes=10)  # after which a process that waits for another gives up
BUCKET = 25 * 2**20  # bytes of gradients that travel together, as in DDP


class ProcessLost(RuntimeError):
    """Another of the run's processes is gone, or hasn't answered for `PATIENCE`."""


class Workers(Worker):
    """The processes of a run. Every method but `part` is to be called by all of them.

    Attributes:
        rank: this process's number.
        size: how many there are.
        device: this process's.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device, self.rank, self.size = torch.device(device), 0, int(os.environ.get("WORLD_SIZE", 1))
        if self.size > 1:
            if self.device.type == "cuda":
                self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
                torch.cuda.set_device(self.device)
            if not dist.is_initialized():
                # evaluation gathers from the CPU on GPUs too
                backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
                dist.init_process_group(backend, timeout=PATIENCE)
            self.rank, self.size = dist.get_rank(), dist.get_world_size()

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def part(self, batch_size: int) -> slice:
        """The entries of a batch that are this process's."""
        own = batch_size // self.size
        return slice(self.rank * own, (self.rank + 1) * own)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make each gradient the mean of every process's; all must have gradients for the same parameters."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        travelling = []
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            travelling.append((bucket, flat, dist.all_reduce(flat, async_op=True)))  # while the next one is filled
        for bucket, flat, work in travelling:
            work.wait()
            parts = (flat / self.size).split([gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def share_buffers(self, module: nn.Module) -> None:
        """Give every process the leading one's buffers: running statistics, of which each has seen its part only."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of every process's values."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
            values /= self.size
        return values

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


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, `BUCKET` bytes or one tensor at a time."""
    found: list[Tensor] = []
    for tensor in tensors:
        if found and sum(t.nbytes for t in found) + tensor.nbytes > BUCKET:
            yield found
            found = []
        found.append(tensor)
    if found:
        yield found


@contextmanager
def same_failure() -> Iterator[None]:
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
    try:
        return kind(message)
    except TypeError:
        return _alike(kind.__mro__[1], message)


@contextmanager
def lost_is_said(workers: Workers) -> Iterator[None]:
    """Raises ProcessLost instead of what gloo and NCCL say when another process doesn't answer."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise ProcessLost(
            f"process {workers.rank} of {workers.size} has lost another one, which was killed, has failed (its own "
            f"message says why) or is cut off: {str(error).splitlines()[0]}. Start all again: the run goes on from its "
            "last checkpoint"
        ) from error


def check_batch(batch_size: int, accumulate: int, processes: int) -> None:
    """Raises ConfigError if a batch can't be shared evenly."""
    if batch_size % (accumulate * processes):
        raise ConfigError(
            f"train.batch_size = {batch_size} can't be shared by {processes} processes in train.accumulate = "
            f"{accumulate} parts each: make it a multiple of {accumulate * processes}"
        )
