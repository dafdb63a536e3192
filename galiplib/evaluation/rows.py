"""A torchmetrics metric that only remembers: numbers of single pictures, gathered over processes, in order."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class Rows(Metric):
    """Something about each picture, (N, ...), in the pictures' order whichever process has seen which.

    Args:
        limit: pictures from this number on are forgotten, so that memory stays flat.
    """

    full_state_update = False

    def __init__(self, limit: int | None = None) -> None:
        super().__init__()
        self.limit = limit
        self.add_state("numbers", [], dist_reduce_fx="cat")
        self.add_state("values", [], dist_reduce_fx="cat")

    def update(self, numbers: Tensor, values: Tensor) -> None:
        """Add the values (B, ...) of pictures by their numbers (B,)."""
        if self.limit is not None:
            wanted = numbers < self.limit
            numbers, values = numbers[wanted], values[wanted]
        if len(numbers):
            self.numbers.append(numbers)
            self.values.append(values)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Numbers and values as they came."""
        return dim_zero_cat(self.numbers), dim_zero_cat(self.values)

    def ordered(self) -> Tensor:
        """The values of all pictures, (N, ...), by number."""
        numbers, values = self.compute()
        return values.reshape(numbers.numel(), *values.shape[1:])[torch.argsort(numbers.flatten())]
