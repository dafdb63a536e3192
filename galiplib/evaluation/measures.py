"""Measures of generated pictures, as functions of features that were computed once.

Each function takes features or embeddings, so all of it runs offline and on any extractor; a measure is named after
the features it is over, and only a kernel distance over InceptionV3's is a KID (see `features`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..images import EvaluationError

GROUPS = 10  # of samples, left out in turn for a standard error
CHUNK = 2000  # rows of a distance matrix at once


class Measured(NamedTuple):
    """A value, its standard error, and how many samples it is from."""

    value: float
    error: float
    count: int


def kernel_distance(real: Tensor, fake: Tensor) -> Measured:
    """Kernel distance of features (N, D), (M, D) (KID over Inception's; Bińkowski et al., 2018): unbiased.

    The squared MMD with the kernel (x . y / D + 1)^3, of all pairs, where subsets are usual: the same on average. Its
    standard error is by leaving out a tenth of both sides at a time.

    Raises:
        EvaluationError: for fewer than four samples a side.
    """
    if min(len(real), len(fake)) < 4:
        raise EvaluationError(f"a kernel distance needs four samples a side, not {len(real)} and {len(fake)}")
    groups = min(GROUPS, len(real) // 2, len(fake) // 2)
    sides = [[side[start::groups].double().cpu() for start in range(groups)] for side in (real, fake)]
    sums = torch.zeros(3, groups, groups, dtype=torch.float64)  # of the kernel: real-real, fake-fake, real-fake
    for row in range(groups):
        for column in range(groups):
            for index, (one, other) in enumerate(((0, 0), (1, 1), (0, 1))):
                kernel = _kernel(sides[one][row], sides[other][column])
                sums[index, row, column] = kernel.sum() - (kernel.trace() if one == other and row == column else 0)
    counts = torch.tensor([[len(part) for part in side] for side in sides])

    def distance(kept: list[int]) -> float:
        n, m = counts[:, kept].sum(1).tolist()
        within_real, within_fake, across = sums[:, kept][:, :, kept].sum((1, 2)).tolist()
        return within_real / (n * (n - 1)) + within_fake / (m * (m - 1)) - 2 * across / (n * m)

    error = jackknife(distance, groups)
    return Measured(distance(list(range(groups))), error, min(len(real), len(fake)))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def precision_recall(real: Tensor, fake: Tensor, neighbours: int = 5) -> dict[str, Measured]:
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
        "precision": share_of(in_real > 0),
        "recall": share_of(in_fake),
        "density": mean_of(in_real / neighbours),
        "coverage": share_of(covered),
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


def r_precision(image: Tensor, text: Tensor, captions: Sequence[str], candidates: int = 100, seed: int = 0) -> Tensor:
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


def share_of(hits: Tensor) -> Measured:
    """The share of hits (N,), true or false, with its standard error after Agresti and Coull (1998).

    That adds two hits and two misses: a share of 1 from a hundred answers is not certain to the last digit.
    """
    count = len(hits)
    if not count:
        return Measured(float("nan"), float("nan"), 0)
    found = hits.double().sum().item()
    near = (found + 2) / (count + 4)
    return Measured(found / count, (near * (1 - near) / (count + 4)) ** 0.5, count)


def jackknife(statistic: Callable[[list[int]], float], groups: int) -> float:
    """The standard error of a statistic of samples in random groups, by leaving out one group at a time (Quenouille).

    Unlike the bootstrap it repeats no sample, which would make a distance look larger than it is.

    Args:
        statistic: the value from the samples of some groups, given by their numbers.
        groups: how many there are, two or more.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # few samples: said once, of the whole
        left = [statistic([other for other in range(groups) if other != group]) for group in range(groups)]
    values = torch.tensor(left, dtype=torch.float64)
    return ((groups - 1) / groups * (values - values.mean()).square().sum()).sqrt().item()
