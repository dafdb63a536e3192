"""Distances between crowds of pictures: what they are called, halves of a data set, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..images import EvaluationError
from .frechet import Moments, frechet_of
from .measures import Measured, jackknife

GROUPS = 10  # of real pictures, for halves and for standard errors
SPLITS = 4  # ways to part the pictures in halves
WIDE = 1024  # features above which the error of a distance would take too long


class Names:
    """What measures are called over an extractor's features: FID and KID over InceptionV3's only.

    Args:
        extractor: its name.
        first: whether it is the one whose measures go without a prefix.
    """

    PUBLISHED = {
        "frechet_all": "fid", "frechet_all_real": "fid_real_images", "frechet_distance": "fid_halves",
        "frechet_floor": "fid_floor", "frechet_images": "fid_images", "kernel_distance": "kid",
    }  # fmt: skip

    def __init__(self, extractor: str, first: bool) -> None:
        self.extractor, self.first = extractor, first

    def __call__(self, name: str) -> str:
        if self.extractor == "inception":
            return self.PUBLISHED.get(name) or f"inception_{name}"
        return name if self.first else f"{self.extractor}_{name}"


def halved_distance(real: Moments, other: Moments) -> Measured:
    """Fréchet distance of each half's real pictures to the other half's others, mean over several ways to halve.

    Args:
        real: of real pictures, in `GROUPS` groups.
        other: of pictures that belong to them, in the same groups first; the real ones themselves give the floor.

    Returns:
        The distance, with a standard error by leaving out a group at a time; NaN where there are too few pictures for
        that, or too wide features.
    """

    def distance(groups: Sequence[int]) -> float:
        halves = split_halves(groups)
        pairs = halves if other is real else [pair for a, b in halves for pair in ((a, b), (b, a))]
        return sum(frechet_of(real.statistics(a), other.statistics(b)).value for a, b in pairs) / len(pairs)

    error, count = math.nan, int(real.statistics().count)
    if real.dim <= WIDE:  # a hundred more roots of large matrices would take minutes
        try:
            error = jackknife(distance, GROUPS)
        except EvaluationError:  # too few pictures for as many groups
            pass
    return Measured(distance(range(GROUPS)), error, count)


def split_halves(groups: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Groups of pictures -> several ways to part them in two halves: one split alone may be a lucky one."""
    ways = [np.random.default_rng(way).permutation(list(groups)).tolist() for way in range(SPLITS)]
    return [(way[: len(way) // 2], way[len(way) // 2 :]) for way in ways]
