"""Fréchet distances of fewer samples than features: kept samples in place of large matrices, and exact."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ..images import EvaluationError
from .measures import WIDE, Moments, Statistics, frechet_of, statistics_of

MOST = 10_000  # samples of at most so many pictures are kept: 5 kB each of 1,280 features


class Samples(Moments):
    """`Moments` that keeps the features themselves, in groups.

    With centred features X, Y over sqrt(N - 1), sqrt(M - 1), covariances are X'X and Y'Y, and the trace of the root
    of their product is the sum of the singular values of X Y', a matrix of N by M. For 500 pictures a side and 1,280
    features that takes a thirtieth of the time that roots of 1,280 x 1,280 take.
    """

    def __init__(self, dim: int, groups: int = 1) -> None:
        self.dim, self.groups = dim, groups
        self.kept: list[list[Tensor]] = [[] for _ in range(groups)]
        self.count = torch.zeros(groups, dtype=torch.int64)

    @property
    def quick(self) -> bool:
        return int(self.count.sum()) <= WIDE

    def update(self, features: Tensor, group: Tensor | None = None) -> None:
        """As `Moments.update` does."""
        self._check(features)
        group = torch.zeros(len(features), dtype=torch.int64) if group is None else group
        for number in group.unique().tolist():
            own = features[group == number].float().cpu()
            self.kept[number].append(own)
            self.count[number] += len(own)

    def gather(self) -> None:
        if dist.is_available() and dist.is_initialized():
            everyone: list[list[list[Tensor]]] = [self.kept] * dist.get_world_size()
            dist.all_gather_object(everyone, self.kept)
            self.kept = [[part for own in everyone for part in own[number]] for number in range(self.groups)]
            dist.all_reduce(self.count)

    def of(self, groups: Sequence[int] | None = None) -> Tensor:
        """The samples of some groups, by default of all, (N, D) float64.

        Raises:
            EvaluationError: for fewer than two.
        """
        chosen = range(self.groups) if groups is None else groups
        parts = [part for number in chosen for part in self.kept[number]]
        if sum(map(len, parts)) < 2:
            raise EvaluationError(f"a Fréchet distance needs two samples a side, not {sum(map(len, parts))}")
        return torch.cat(parts).double()

    def statistics(self, groups: Sequence[int] | None = None) -> Statistics:
        return statistics_of(self.of(groups))

    def distance(self, groups: Sequence[int] | None, other: Moments, theirs: Sequence[int] | None) -> float:
        if isinstance(other, Samples):
            return frechet_of_samples(self.of(groups), other.of(theirs))
        return super().distance(groups, other, theirs)


def frechet_of_samples(real: Tensor, fake: Tensor) -> float:
    """`frechet_of` the Gaussians fitted to features (N, D), (M, D), the cheaper way, and without its warning.

    The squares of the singular values are the eigenvalues of a product with its own transpose, which are found faster.
    """
    if min(len(real), len(fake)) >= real.shape[1]:
        return frechet_of(statistics_of(real), statistics_of(fake)).value
    real, fake = real.double(), fake.double()
    centred = [(side - side.mean(0)) / (len(side) - 1) ** 0.5 for side in sorted((real, fake), key=len)]
    across = centred[0] @ centred[1].T  # the smaller side first
    roots = torch.linalg.eigvalsh(across @ across.T).clamp_min(0).sqrt().sum()
    own = centred[0].square().sum() + centred[1].square().sum()
    offset = (real.mean(0) - fake.mean(0)).square().sum()
    return max(0.0, (offset + own - 2 * roots).item())
