"""Losses and statistics of a whole batch, of which several processes have a part each.

Every process computes such a loss of all entries, and gradients go back to the process that has an entry; averaged over
the processes, as a training step does, they are those of one process with the whole batch. Alone, it changes nothing.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn


def processes() -> int:
    """How many train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        found = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(processes())]
        dist.all_gather(found, x.contiguous())
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return cast(Tensor, _Scatter.apply(gradients[0]))


class _Scatter(torch.autograd.Function):
    """Its transpose: the sum of what all processes have, of that the own entries."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return own(total).clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return cast(Tensor, _Gather.apply(gradients[0]))


def gather(x: Tensor) -> Tensor:
    """This process's entries (B / N, ...), as many as each of the N has -> the whole batch's, in its order (B, ...)."""
    return x if processes() == 1 else cast(Tensor, _Gather.apply(x))


def own(x: Tensor) -> Tensor:
    """The whole batch's entries (B, ...) -> this process's (B / N, ...)."""
    return x if processes() == 1 else x.chunk(processes())[dist.get_rank()]


class BatchNorm(nn.BatchNorm2d):
    """Batch norm of maps (B, C, H, W) or vectors (B, C) that takes the statistics of the whole batch."""

    def _check_input_dim(self, x: Tensor) -> None:
        """Of any number of dimensions."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or processes() == 1:
            return super().forward(x)
        found = gather(torch.stack(torch.var_mean(x.float(), [0, *range(2, x.dim())], correction=0))[None])  # (N, 2, C)
        mean = found[:, 1].mean(0)
        spread = found[:, 0].mean(0) + found[:, 1].var(0, correction=0)
        with torch.no_grad():
            count = x.numel() // self.num_features * processes()
            cast(Tensor, self.running_mean).lerp_(mean, cast(float, self.momentum))
            cast(Tensor, self.running_var).lerp_(spread * count / (count - 1), cast(float, self.momentum))
            cast(Tensor, self.num_batches_tracked).add_(1)
        scale = self.weight * (spread + self.eps).rsqrt()
        shape = (-1, *[1] * (x.dim() - 2))
        return (x.float() * scale.view(shape) + (self.bias - mean * scale).view(shape)).to(x.dtype)
