"""Measures of generated pictures, as functions of features that were computed once.

Every distance is named after the features it is over: only one over InceptionV3's is an FID (see `features`). Each
function takes features or embeddings, so all of it runs offline and on any extractor. Expect a bias where few samples
meet many dimensions: compare with the floor, real against real, at the same count.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

KERNEL_SUBSET = 100  # samples of a side that a kernel distance looks at, at a time
CHUNK = 2000  # rows of a distance matrix at once


class EvaluationError(ValueError):
    """Something that can't be measured; the message says what and where."""


class Statistics(NamedTuple):
    """Mean (D,) and covariance (D, D) of `count` features, float64."""

    mu: Tensor
    sigma: Tensor
    count: int


class Frechet(NamedTuple):
    """A Fréchet distance and the pictures on its sides: it is biased upwards, the more the fewer they are."""

    value: float
    real: int
    fake: int


class Measured(NamedTuple):
    """A value, its standard error, and how many samples it is from."""

    value: float
    error: float
    count: int


class GaussianStatistics(Metric):
    """Mean and covariance of features, batch by batch: its memory doesn't grow with the number of pictures.

    A torchmetrics metric, so several processes' sums are gathered by torchmetrics itself.
    """

    full_state_update = False

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.add_state("total", torch.zeros(dim, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("products", torch.zeros(dim, dim, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, features: Tensor) -> None:
        """Add features (N, D).

        Raises:
            EvaluationError: for features of another width, or not finite.
        """
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise EvaluationError(f"features must be (N, {self.dim}), not {tuple(features.shape)}")
        if not features.isfinite().all():
            raise EvaluationError("features that are not finite have no Fréchet distance")
        features = features.double()
        self.total += features.sum(0)
        self.products += features.T @ features
        self.count += len(features)

    def compute(self) -> Statistics:
        """The statistics so far; the covariance with N - 1, as numpy has it.

        Raises:
            EvaluationError: for fewer than two samples.
        """
        count = int(self.count)
        if count < 2:
            raise EvaluationError(f"mean and covariance need two samples, not {count}")
        mu = self.total / count
        return Statistics(mu, (self.products - count * mu[:, None] * mu) / (count - 1), count)


def statistics_of(features: Tensor) -> Statistics:
    """Mean and covariance of features (N, D), in float64; raises as `GaussianStatistics` does."""
    if features.ndim != 2:
        raise EvaluationError(f"features must be (N, D), not {tuple(features.shape)}")
    metric = GaussianStatistics(features.shape[1])
    centre = features.double().mean(0).cpu()  # keeps small what is subtracted
    metric.update(features.double().cpu() - centre)
    found = metric.compute()
    dim = metric.dim  # torchmetrics takes the axes off what holds one number
    return Statistics(found.mu.reshape(dim) + centre, found.sigma.reshape(dim, dim), found.count)


def frechet_of(real: Statistics, fake: Statistics) -> Frechet:
    """The Fréchet distance of two Gaussians (Dowson and Landau, 1982; Heusel et al., 2017), in float64.

    |m - m'|^2 + trace(C + C' - 2 (C C')^(1/2)); the trace of the root is the sum of the roots of C C''s eigenvalues.
    Warns of fewer samples than dimensions: a covariance is singular then, and the value says little.

    Raises:
        EvaluationError: for statistics of unlike width.
    """
    if real.mu.shape != fake.mu.shape:
        raise EvaluationError(f"statistics of {len(real.mu)} features don't compare with those of {len(fake.mu)}")
    if min(real.count, fake.count) < len(real.mu):
        counts = f"{real.count} and {fake.count} samples, fewer than the {len(real.mu)} features"
        warnings.warn(f"Fréchet distance from {counts}: it says little", stacklevel=3)
    roots = torch.linalg.eigvals(real.sigma @ fake.sigma).real.clamp_min(0).sqrt().sum()
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


def kernel_distance(real: Tensor, fake: Tensor, subsets: int = 100, seed: int = 0) -> Measured:
    """Kernel distance of features (N, D), (M, D) (KID over Inception's; Bińkowski et al., 2018): unbiased.

    The squared MMD with the kernel (x . y / D + 1)^3, on random subsets of up to 100 a side -> mean and its standard
    error over the subsets.

    Raises:
        EvaluationError: for fewer than four samples a side.
    """
    size = min(KERNEL_SUBSET, len(real) // 2, len(fake) // 2)
    if size < 2:
        raise EvaluationError(f"a kernel distance needs four samples a side, not {len(real)} and {len(fake)}")
    random = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(subsets):
        x, y = (side[torch.randperm(len(side), generator=random)[:size]].double() for side in (real.cpu(), fake.cpu()))
        within = sum((k.sum() - k.trace()) / (size * (size - 1)) for k in (_kernel(x, x), _kernel(y, y)))
        values.append(within - 2 * _kernel(x, y).mean())
    found = torch.stack(values)
    return Measured(found.mean().item(), (found.std() / subsets**0.5).item(), min(len(real), len(fake)))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def precision_recall(real: Tensor, fake: Tensor, neighbours: int = 5) -> dict[str, float]:
    """How much of the generated is like something real, and the other way round, on features (N, D), (M, D).

    Returns:
        precision, recall (Kynkäänniemi et al., 2019): share of the generated (real) that lies in the ball of some real
        (generated) one, reaching to its `neighbours`-th neighbour. density, coverage (Naeem et al., 2020): in how many
        real balls a generated one lies, over `neighbours`; share of real balls that hold a generated one.

    Raises:
        EvaluationError: for not more than `neighbours` samples a side.
    """
    if min(len(real), len(fake)) <= neighbours:
        raise EvaluationError(f"needs more than {neighbours} samples a side, not {len(real)} and {len(fake)}")
    real, fake = real.double().cpu(), fake.double().cpu()
    real_reach, fake_reach = (_reach(side, neighbours) for side in (real, fake))
    in_real = torch.zeros(len(fake))  # real balls around each generated one
    in_fake = torch.zeros(len(real), dtype=torch.bool)
    covered = torch.zeros(len(real), dtype=torch.bool)
    for start in range(0, len(fake), CHUNK):
        part = slice(start, start + CHUNK)
        distance = torch.cdist(fake[part], real)  # (chunk, N)
        inside = distance <= real_reach
        in_real[part] = inside.sum(1).float()
        covered |= inside.any(0)
        in_fake |= (distance <= fake_reach[part, None]).any(0)
    return {
        "precision": (in_real > 0).float().mean().item(),
        "recall": in_fake.float().mean().item(),
        "density": (in_real / neighbours).mean().item(),
        "coverage": covered.float().mean().item(),
    }


def _reach(features: Tensor, neighbours: int) -> Tensor:
    """The distance of each feature to its k-th neighbour, itself not counted."""
    parts = [torch.cdist(part, features).kthvalue(neighbours + 1, dim=1).values for part in features.split(CHUNK)]
    return torch.cat(parts)


# ---------------------------------------------------------------- pictures and captions


def cosines(image: Tensor, text: Tensor) -> Tensor:
    """Embeddings (N, E), (N, E) -> CLIP similarity of each pair, (N,) float64 in [-1, 1].

    With the reference convention of `ClipBridge` their mean is what the papers of this field publish (about 0.3).
    """
    return F.cosine_similarity(image.double(), text.double())


def clip_score(image: Tensor, text: Tensor) -> Tensor:
    """CLIPScore (Hessel et al., 2021) of each pair, (N,): 2.5 * max(cosine, 0); for CLIP's own input convention."""
    return 2.5 * cosines(image, text).clamp_min(0)


def r_precision(
    image: Tensor, text: Tensor, captions: Sequence[str], candidates: int = 100, seed: int = 0
) -> Tensor:
    """Whether a picture's own caption fits best among `candidates` (Xu et al., AttnGAN, 2018, sec. 4) -> (N,) 0 or 1.

    Embeddings (N, E), (N, E) and the N captions: the others are drawn from those of other wording.

    Raises:
        EvaluationError: for fewer different captions than `candidates`.
    """
    rows: dict[str, int] = {}  # caption -> the first row that has it
    for row, caption in enumerate(captions):
        rows.setdefault(caption, row)
    if len(rows) < candidates:
        raise EvaluationError(f"R-precision among {candidates} needs as many different captions, not {len(rows)}")
    place = {caption: index for index, caption in enumerate(rows)}
    own, first = [place[caption] for caption in captions], torch.tensor(list(rows.values()))
    image, text = F.normalize(image.double().cpu(), dim=1), F.normalize(text.double().cpu(), dim=1)[first]
    random, hits = torch.Generator().manual_seed(seed), []
    for row, mine in enumerate(own):
        others = torch.randperm(len(rows) - 1, generator=random)[: candidates - 1]
        others = others + (others >= mine)  # all but its own
        hits.append((image[row] @ text[mine] > (text[others] @ image[row]).max()).double())
    return torch.stack(hits)


def diversity(features: Tensor, groups: Sequence[int]) -> Tensor:
    """Mean distance of pictures of one caption -> a value for every caption with two pictures or more.

    Features (N, D), and for each the number of its caption. 0 is a generator that draws a caption always alike.

    Raises:
        EvaluationError: if no caption has two pictures.
    """
    groups, found = torch.as_tensor(groups), []
    for group in groups.unique():
        own = features[groups == group].double()
        if len(own) > 1:
            found.append(torch.pdist(own).mean())
    if not found:
        raise EvaluationError("diversity needs two pictures of a caption or more")
    return torch.stack(found)


# ---------------------------------------------------------------- how sure


def mean_of(values: Tensor) -> Measured:
    """The mean of values (N,) that are independent, with its standard error."""
    count = len(values)
    error = (values.double().std() / count**0.5).item() if count > 1 else float("nan")
    return Measured(values.double().mean().item(), error, count)


def jackknife(statistic: Callable[[Tensor], float], features: Tensor, groups: int = 10, seed: int = 0) -> Measured:
    """A statistic of features (N, D) with its standard error, by leaving out a tenth of them ten times (Quenouille).

    Unlike the bootstrap it repeats no sample, which would make a distance look larger than it is.

    Raises:
        EvaluationError: for fewer samples than groups.
    """
    if len(features) < 2 * groups:
        raise EvaluationError(f"an error by {groups} groups needs {2 * groups} samples, not {len(features)}")
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    parts = order.tensor_split(groups)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # few samples: said once, of the whole
        left = [statistic(features[torch.cat([p for p in parts if p is not part])]) for part in parts]
    values = torch.tensor(left, dtype=torch.float64)
    error = ((groups - 1) / groups * (values - values.mean()).square().sum()).sqrt().item()
    return Measured(statistic(features), error, len(features))
