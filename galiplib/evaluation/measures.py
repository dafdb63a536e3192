"""Measures of pictures, as functions of features that were computed once.

A distance is named after the features it is over; only over InceptionV3's it is an FID or a KID (see `features`). The
Fréchet distance is biased upwards where few samples meet many dimensions: read it beside its floor, real against real,
at the same count.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..clip.bridge import ClipBridge
from ..images import EvaluationError, NotFinite, TooFew, to_range
from .judge import JUDGED, Judge, asked_of
from .protocol import BATCH, embed_captions, evaluating

FEWEST = 4  # real pictures that make two halves with a covariance each
NEIGHBOURS, CANDIDATES = 5, 100  # of precision and recall; of R-precision
GROUPS = 10  # of samples, left out in turn for a standard error
SPLITS = 4  # ways to part the real pictures in halves
WIDE = 1024  # features above which the error of a Fréchet distance would take too long
CHUNK = 2000  # rows of a distance matrix at once


class Measured(NamedTuple):
    """A value, its standard error (NaN where there is none), and how many samples it is from."""

    value: float
    error: float
    count: int  # type: ignore[assignment]  # in place of a tuple's own method


# ---------------------------------------------------------------- Fréchet distances


class Statistics(NamedTuple):
    """Mean (D,) and covariance (D, D) of `count` features, float64."""

    mu: Tensor
    sigma: Tensor
    count: int  # type: ignore[assignment]  # in place of a tuple's own method


class Frechet(NamedTuple):
    """A Fréchet distance, and the pictures on its sides."""

    value: float
    real: int
    fake: int


class Moments:
    """Sums from which mean and covariance of any groups of samples follow, whatever the number of samples."""

    def __init__(self, dim: int, groups: int = 1) -> None:
        self.dim, self.groups = dim, groups
        self.products = torch.zeros(groups, dim, dim, dtype=torch.float64)
        self.total = torch.zeros(groups, dim, dtype=torch.float64)
        self.count = torch.zeros(groups, dtype=torch.int64)

    @property
    def quick(self) -> bool:
        """Whether a hundred distances take seconds, not minutes."""
        return self.dim <= WIDE

    def update(self, features: Tensor, group: Tensor | None = None) -> None:
        """Add features (N, D) of groups (N,), by default the first.

        Raises:
            EvaluationError: for features of another width, or not finite.
        """
        self._check(features)
        features = features.to("cpu", torch.float64)
        group = torch.zeros(len(features), dtype=torch.int64) if group is None else group
        for number in group.unique().tolist():
            own = features[group == number]
            self.total[number] += own.sum(0)
            self.products[number] += own.T @ own
            self.count[number] += len(own)

    def _check(self, features: Tensor) -> None:
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise EvaluationError(f"features must be (N, {self.dim}), not {tuple(features.shape)}")
        if not features.isfinite().all():
            raise NotFinite("features that are not finite have no Fréchet distance")

    def gather(self) -> None:
        """Add up the sums of all processes, once, in the end."""
        if dist.is_available() and dist.is_initialized():
            for sums in (self.products, self.total, self.count):
                dist.all_reduce(sums)

    def statistics(self, groups: Sequence[int] | None = None) -> Statistics:
        """Those of some groups together, by default of all, with N - 1; raises EvaluationError for fewer than two."""
        chosen = list(range(self.groups) if groups is None else groups)
        number = int(self.count[chosen].sum())
        if number < 2:
            raise EvaluationError(f"mean and covariance need two samples, not {number}")
        mu = self.total[chosen].sum(0) / number
        return Statistics(mu, (self.products[chosen].sum(0) - number * mu[:, None] * mu) / (number - 1), number)

    def distance(self, groups: Sequence[int] | None, other: Moments, theirs: Sequence[int] | None) -> float:
        """The Fréchet distance of some groups to some of others, by default of all."""
        return frechet_of(self.statistics(groups), other.statistics(theirs)).value


def statistics_of(features: Tensor) -> Statistics:
    """Mean and covariance of features (N, D), in float64; raises as `Moments` does."""
    moments = Moments(features.shape[-1])
    centre = features.double().mean(0).cpu()  # keeps small what is subtracted
    moments.update(features.double().cpu() - centre)
    found = moments.statistics()
    return found._replace(mu=found.mu + centre)


def frechet_of(real: Statistics, fake: Statistics) -> Frechet:
    """The Fréchet distance of two Gaussians (Dowson and Landau, 1982; Heusel et al., 2017), in float64.

    |m - m'|^2 + trace(C + C' - 2 (C C')^(1/2)); the trace of the root is that of (R C' R)^(1/2) with R = C^(1/2), which
    needs symmetric matrices' eigenvalues only. Warns of fewer samples than dimensions, where a covariance is singular;
    raises EvaluationError for unlike widths.
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


def frechet_distance(real: Tensor, fake: Tensor) -> Frechet:
    """`frechet_of` the Gaussians of features (N, D), (M, D); EvaluationError where those aren't two or more, finite."""
    if real.ndim != 2 or real.shape[1:] != fake.shape[1:]:
        raise EvaluationError(f"features must be (N, D), (M, D): {tuple(real.shape)}, {tuple(fake.shape)}")
    if min(len(real), len(fake)) < 2:
        raise EvaluationError(f"a Fréchet distance needs two samples a side, not {len(real)} and {len(fake)}")
    return frechet_of(statistics_of(real), statistics_of(fake))


def halves(features: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features (N, D) -> two random disjoint sets of N // 2."""
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    half = len(features) // 2
    return features[order[:half]], features[order[half : 2 * half]]


def frechet_floor(real: Tensor, seed: int = 0) -> Frechet:
    """What perfect pictures would get, at N // 2 a side: the distance of two random halves of real features (N, D)."""
    return frechet_distance(*halves(real, seed))


def halved_distance(real: Moments, other: Moments) -> Measured:
    """Fréchet distance of each half's real pictures to the other half's others, mean over several ways to halve.

    Both in `GROUPS` groups (first), picture by picture; `real` itself as `other` gives the floor. No standard error
    where there are too few pictures, or too wide features. Raises TooFew for fewer than `FEWEST`.
    """
    if (count := int(real.count.sum())) < FEWEST:
        raise TooFew(f"halves of the real pictures take {FEWEST} of them, not {count}")
    filled = real.count[:GROUPS].nonzero().flatten().tolist()

    def distance(numbers: Sequence[int]) -> float:
        groups = [filled[number] for number in numbers]
        ways = [np.random.default_rng(way).permutation(groups).tolist() for way in range(SPLITS)]
        pairs = [(way[: len(way) // 2], way[len(way) // 2 :]) for way in ways]
        if other is not real:
            pairs = [pair for a, b in pairs for pair in ((a, b), (b, a))]
        return sum(real.distance(a, other, b) for a, b in pairs) / len(pairs)

    error = math.nan
    if real.quick:
        try:
            error = jackknife(distance, len(filled))
        except EvaluationError:  # too few pictures for as many groups
            pass
    return Measured(distance(range(len(filled))), error, count)


# ---------------------------------------------------------------- other comparisons of features


def beyond(pictures: int, captions: int) -> str:
    """What can't be measured on so few held-out pictures and captions, with what it takes; "" if all can."""
    takes = {
        f"a Fréchet distance (takes {FEWEST})": pictures < FEWEST,
        f"a kernel distance ({FEWEST})": pictures < FEWEST,
        f"precision and recall ({NEIGHBOURS + 1})": pictures <= NEIGHBOURS,
        f"R-precision ({CANDIDATES} different captions)": captions < CANDIDATES,
    }
    return ", ".join(name for name, lacking in takes.items() if lacking)


def kernel_distance(real: Tensor, fake: Tensor) -> Measured:
    """Kernel distance of features (N, D), (M, D) (KID over Inception's; Bińkowski et al., 2018): unbiased.

    The squared MMD with the kernel (x . y / D + 1)^3, of all pairs, where subsets are usual: the same on average; its
    error leaves out a tenth of both sides at a time. Raises EvaluationError for fewer than four samples a side.
    """
    if min(len(real), len(fake)) < 4:
        raise EvaluationError(f"a kernel distance needs four samples a side, not {len(real)} and {len(fake)}")
    groups = min(GROUPS, len(real) // 2, len(fake) // 2)
    sides = [[side[start::groups].double().cpu() for start in range(groups)] for side in (real, fake)]
    sums = torch.zeros(3, groups, groups, dtype=torch.float64)  # of the kernel: real-real, fake-fake, real-fake
    for index, (one, other) in enumerate(((0, 0), (1, 1), (0, 1))):
        for row, x in enumerate(sides[one]):
            for column, y in enumerate(sides[other]):
                kernel = (x @ y.T / x.shape[1] + 1) ** 3
                sums[index, row, column] = kernel.sum() - (kernel.trace() if one == other and row == column else 0)
    counts = torch.tensor([[len(part) for part in side] for side in sides])

    def distance(kept: Sequence[int]) -> float:
        kept = list(kept)
        n, m = counts[:, kept].sum(1).tolist()
        within_real, within_fake, across = sums[:, kept][:, :, kept].sum((1, 2)).tolist()
        return within_real / (n * (n - 1)) + within_fake / (m * (m - 1)) - 2 * across / (n * m)

    return Measured(distance(range(groups)), jackknife(distance, groups), min(len(real), len(fake)))


def precision_recall(real: Tensor, fake: Tensor, neighbours: int = NEIGHBOURS) -> dict[str, Measured]:
    """How much of the generated is like something real, and the other way round, on features (N, D), (M, D).

    precision, recall (Kynkäänniemi et al., 2019): share of the generated (real) that lies in the ball of some real
    (generated) one, reaching to its `neighbours`-th neighbour. density, coverage (Naeem et al., 2020): in how many real
    balls a generated one lies, over `neighbours`; share of real balls that hold one. EvaluationError for too few.
    """
    if min(len(real), len(fake)) <= neighbours:
        raise EvaluationError(f"needs more than {neighbours} samples a side, not {len(real)} and {len(fake)}")
    real, fake = real.double().cpu(), fake.double().cpu()

    def reach(features: Tensor) -> Tensor:
        parts = features.split(CHUNK)  # + 1: each is its own first neighbour
        return torch.cat([torch.cdist(part, features).kthvalue(neighbours + 1, dim=1).values for part in parts])

    real_reach, fake_reach = reach(real), reach(fake)
    in_real = torch.zeros(len(fake))  # real balls around each generated one
    in_fake, covered = torch.zeros(2, len(real), dtype=torch.bool)
    for start in range(0, len(fake), CHUNK):
        part = slice(start, start + CHUNK)
        distance = torch.cdist(fake[part], real)  # (chunk, N)
        inside = distance <= real_reach
        in_real[part] = inside.sum(1).float()
        covered |= inside.any(0)
        in_fake |= (distance <= fake_reach[part, None]).any(0)
    return {
        "precision": share_of(in_real > 0), "recall": share_of(in_fake),
        "density": mean_of(in_real / neighbours), "coverage": share_of(covered),
    }  # fmt: skip


def diversity(features: Tensor, groups: Sequence[int]) -> Tensor:
    """Features (N, D) and the numbers of their captions -> mean distance within each caption that has two or more.

    0 is a generator that draws a caption always alike. Raises EvaluationError if no caption has two pictures.
    """
    own = torch.as_tensor(groups)
    sets = [features[own == group].double() for group in own.unique()]
    found = [torch.pdist(one).mean() for one in sets if len(one) > 1]
    if not found:
        raise EvaluationError("diversity needs two pictures of a caption or more")
    return torch.stack(found)


# ---------------------------------------------------------------- pictures and captions


def cosines(image: Tensor, text: Tensor) -> Tensor:
    """CLIP similarity of each pair of embeddings (N, E) -> (N,), float64; as published by `reference` (about 0.3)."""
    return F.cosine_similarity(image.double(), text.double())


def clip_score(image: Tensor, text: Tensor) -> Tensor:
    """CLIPScore (Hessel et al., 2021) of each pair, (N,): 2.5 * max(cosine, 0); for CLIP's own input convention."""
    return 2.5 * cosines(image, text).clamp_min(0)


def r_precision(
    image: Tensor, text: Tensor, captions: Sequence[str], candidates: int = CANDIDATES, seed: int = 0
) -> Tensor:
    """Whether a picture's own caption fits best among `candidates` (Xu et al., AttnGAN, 2018, sec. 4) -> (N,) 0 or 1.

    Embeddings (N, E), (N, E) and the N captions: the others are drawn from those of other wording. Raises
    EvaluationError for fewer different captions than `candidates`.
    """
    rows: dict[str, int] = {}  # caption -> the first row that has it
    for row, caption in enumerate(captions):
        rows.setdefault(caption, row)
    if len(rows) < candidates:
        raise EvaluationError(f"R-precision among {candidates} needs as many different captions, not {len(rows)}")
    place = {caption: index for index, caption in enumerate(rows)}
    image, text = F.normalize(image.double().cpu(), dim=1), F.normalize(text.double().cpu(), dim=1)[list(rows.values())]
    random, hits = torch.Generator().manual_seed(seed), []
    for row, mine in enumerate(place[caption] for caption in captions):
        others = torch.randperm(len(rows) - 1, generator=random)[: candidates - 1]
        others = others + (others >= mine)  # all but its own
        hits.append((image[row] @ text[mine] > (text[others] @ image[row]).max()).double())
    return torch.stack(hits)


def judge_features(judge: Judge, images: Tensor, batch_size: int = BATCH) -> Tensor:
    """Images (N, 3, H, W) in [-1, 1] -> the judge's features (N, 128); raises as `to_range` does."""
    device = next(judge.parameters()).device
    with evaluating(judge):
        return torch.cat([judge.features(part.to(device)) for part in _parts(images, batch_size)])


def caption_accuracy(judge: Judge, images: Tensor, captions: Sequence[str]) -> dict[str, Measured]:
    """Images (N, 3, H, W) in [-1, 1], N captions -> attribute -> how often the judge sees what the caption asked for.

    Of captions that name the attribute; NaN where none does. Raises EvaluationError if no caption names anything,
    counts differ, or a picture is not finite.
    """
    if len(images) != len(captions):
        raise EvaluationError(f"{len(images)} pictures, but {len(captions)} captions")
    if (asked_of(captions) < 0).all():
        raise EvaluationError(f"no caption names any of {', '.join(JUDGED)}: {list(captions[:2])}")
    hits = as_asked(judge, judge_features(judge, images), captions)
    return {name: share_of(own[own.isfinite()]) for name, own in hits.items()}


def as_asked(judge: Judge, features: Tensor, captions: Sequence[str]) -> dict[str, Tensor]:
    """The judge's features (N, 128) and N captions -> attribute -> (N,) 1: as asked, 0: not, NaN: nothing asked."""
    with evaluating(judge):
        found = judge.answers(features.to(next(judge.parameters()).device)).cpu()
    wanted = asked_of(captions)
    hits = (found == wanted).double().masked_fill(wanted < 0, math.nan)
    return dict(zip(JUDGED, hits.unbind(1), strict=True))


def clip_similarity(bridge: ClipBridge, images: Tensor, captions: Sequence[str], batch_size: int = BATCH) -> float:
    """Mean `cosines` of images (N, 3, H, W) in [-1, 1] and N captions, in the bridge's input convention.

    Raises EvaluationError if counts differ or are zero, or a picture is not finite.
    """
    if len(images) != len(captions) or not captions:
        raise EvaluationError(f"{len(images)} pictures, {len(captions)} captions: need as many, one or more")
    device, texts = bridge.pixel_mean.device, [captions[i : i + batch_size] for i in range(0, len(images), batch_size)]
    with evaluating(bridge):
        image = torch.cat([bridge.encode_image(part.to(device))[1] for part in _parts(images, batch_size)])
        return cosines(image, torch.cat([embed_captions(bridge, part) for part in texts])).mean().item()


def _parts(images: Tensor, size: int) -> Iterator[Tensor]:
    """Pictures batch by batch, in [-1, 1]."""
    for start in range(0, len(images), size):
        yield to_range(images[start : start + size], numbers=range(start, len(images)))


# ---------------------------------------------------------------- how sure


def mean_of(values: Tensor) -> Measured:
    """The mean of values (N,) that are independent, with its standard error."""
    count = len(values)
    error = (values.double().std() / count**0.5).item() if count > 1 else math.nan
    return Measured(values.double().mean().item(), error, count)


def share_of(hits: Tensor) -> Measured:
    """The share of hits (N,), with its standard error after Agresti and Coull (1998): as if with two more of either."""
    count = len(hits)
    if not count:
        return Measured(math.nan, math.nan, 0)
    found = hits.double().sum().item()
    near = (found + 2) / (count + 4)  # all of a hundred is not certain to the last digit
    return Measured(found / count, (near * (1 - near) / (count + 4)) ** 0.5, count)


def jackknife(statistic: Callable[[Sequence[int]], float], groups: int) -> float:
    """The standard error of a statistic of two or more random groups, by leaving out one at a time (Quenouille).

    `statistic` is of the groups of given numbers. The bootstrap repeats samples, which makes a distance look larger.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # few samples: said once, of the whole
        left = [statistic([other for other in range(groups) if other != group]) for group in range(groups)]
    values = torch.tensor(left, dtype=torch.float64)
    return ((groups - 1) / groups * (values - values.mean()).square().sum()).sqrt().item()
