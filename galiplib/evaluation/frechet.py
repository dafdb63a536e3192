"""Fréchet distances: between Gaussians fitted to features, whatever network they are of.

The distance is named after its features; only one over InceptionV3's is an FID (see `features`). It is biased upwards
where few samples meet many dimensions: read it beside its floor, real against real, at the same count.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from ..images import EvaluationError


class Statistics(NamedTuple):
    """Mean (D,) and covariance (D, D) of `count` features, float64."""

    mu: Tensor
    sigma: Tensor
    count: int


class Frechet(NamedTuple):
    """A Fréchet distance and the pictures on its sides."""

    value: float
    real: int
    fake: int


class Moments(Metric):
    """Sums from which mean and covariance follow, batch by batch, apart for each of some groups of samples.

    Its memory doesn't grow with the number of pictures, and statistics of any of the groups together cost nothing
    more. A torchmetrics metric, so several processes' sums are gathered by torchmetrics itself.
    """

    full_state_update = False

    def __init__(self, dim: int, groups: int = 1) -> None:
        super().__init__()
        self.dim, self.groups = dim, groups
        zeros = torch.zeros(groups, dim, dim, dtype=torch.float64)
        self.add_state("products", zeros, dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(groups, dim, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(groups, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, features: Tensor, group: Tensor | None = None) -> None:
        """Add features (N, D) of groups (N,), by default the first.

        Raises:
            EvaluationError: for features of another width, or not finite.
        """
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise EvaluationError(f"features must be (N, {self.dim}), not {tuple(features.shape)}")
        if not features.isfinite().all():
            raise EvaluationError("features that are not finite have no Fréchet distance")
        features = features.to(self.total.device, torch.float64)
        if group is None:
            group = torch.zeros(len(features), dtype=torch.int64)
        for number in group.unique().tolist():
            own = features[group == number]
            self.total[number] += own.sum(0)
            self.products[number] += own.T @ own
            self.count[number] += len(own)

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Sums (G, D), products (G, D, D) and counts (G,) over all processes, for `statistics`."""
        return self.total, self.products, self.count

    def statistics(self, groups: Sequence[int] | None = None) -> Statistics:
        """The statistics of some groups together, by default of all; the covariance with N - 1, as numpy has it.

        Raises:
            EvaluationError: for fewer than two samples.
        """
        total, products, count = self.compute()
        # torchmetrics takes the axes off what holds one number
        total, products, count = total.view(-1, self.dim), products.view(-1, self.dim, self.dim), count.view(-1)
        chosen = list(range(self.groups)) if groups is None else list(groups)
        number = int(count[chosen].sum())
        if number < 2:
            raise EvaluationError(f"mean and covariance need two samples, not {number}")
        mu = total[chosen].sum(0) / number
        return Statistics(mu, (products[chosen].sum(0) - number * mu[:, None] * mu) / (number - 1), number)


def statistics_of(features: Tensor) -> Statistics:
    """Mean and covariance of features (N, D), in float64; raises as `Moments` does."""
    if features.ndim != 2:
        raise EvaluationError(f"features must be (N, D), not {tuple(features.shape)}")
    moments = Moments(features.shape[1])
    centre = features.double().mean(0).cpu()  # keeps small what is subtracted
    moments.update(features.double().cpu() - centre)
    found = moments.statistics()
    return found._replace(mu=found.mu + centre)


def frechet_of(real: Statistics, fake: Statistics) -> Frechet:
    """The Fréchet distance of two Gaussians (Dowson and Landau, 1982; Heusel et al., 2017), in float64.

    |m - m'|^2 + trace(C + C' - 2 (C C')^(1/2)); the trace of the root is that of (R C' R)^(1/2) with R = C^(1/2), which
    needs symmetric matrices' eigenvalues only. Warns of fewer samples than dimensions: a covariance is singular then,
    and the value says little.

    Raises:
        EvaluationError: for statistics of unlike width.
    """
    if real.mu.shape != fake.mu.shape:
        raise EvaluationError(f"statistics of {len(real.mu)} features don't compare with those of {len(fake.mu)}")
    if min(real.count, fake.count) < len(real.mu):
        counts = f"{real.count} and {fake.count} samples, fewer than the {len(real.mu)} features"
        warnings.warn(f"Fréchet distance from {counts}: it says little", stacklevel=3)
    values, vectors = torch.linalg.eigh(real.sigma)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    roots = torch.linalg.eigvalsh(root @ fake.sigma @ root).clamp_min(0).sqrt().sum()
    value = (real.mu - fake.mu).square().sum() + real.sigma.trace() + fake.sigma.trace() - 2 * roots
    return Frechet(max(0.0, value.item()), real.count, fake.count)  # rounding can go below zero


def frechet_distance(real_features: Tensor, fake_features: Tensor) -> Frechet:
    """`frechet_of` the Gaussians fitted to two sets of features (N, D), (M, D).

    Raises:
        EvaluationError: for fewer than two samples a side, or features of unlike width or not finite.
    """
    if real_features.ndim != 2 or real_features.shape[1:] != fake_features.shape[1:]:
        shapes = f"{tuple(real_features.shape)}, {tuple(fake_features.shape)}"
        raise EvaluationError(f"features must be (N, D), (M, D): {shapes}")
    if min(len(real_features), len(fake_features)) < 2:
        counts = f"{len(real_features)} and {len(fake_features)}"
        raise EvaluationError(f"a Fréchet distance needs two samples a side, not {counts}")
    return frechet_of(statistics_of(real_features), statistics_of(fake_features))


def halves(features: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features (N, D) -> two random disjoint sets of N // 2."""
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    half = len(features) // 2
    return features[order[:half]], features[order[half : 2 * half]]


def frechet_floor(real_features: Tensor, seed: int = 0) -> Frechet:
    """What perfect pictures would get: the distance of two disjoint random halves of real features (N, D).

    Compare with distances of N // 2 pictures a side. Raises EvaluationError for fewer than four.
    """
    return frechet_distance(*halves(real_features, seed))
