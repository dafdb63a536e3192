"""What decides a picture besides the weights: captions and seeds, and how they are mixed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

SEEDS = 2**32  # torch's CPU generator looks at the lowest 32 bits only
LIMITS = {"truncation": (0.0, 2.0), "share": (-2.0, 3.0), "turn": (0.0, 1.0), "late_from": (0, 16)}


@dataclass(frozen=True)
class Recipe:
    """All that decides a picture besides the weights. Raises ValueError for an empty caption, or a value out of range.

    truncation: at 1 the noise is what the generator was trained with; smaller values give likelier and less varied
        pictures, 0 the same one for every seed. (BigGAN's truncation trick, Brock et al. 2019, draws large values anew
        instead; a factor changes the same picture little by little. StyleGAN's applies it to what its noise becomes.)
    share: between 0 and 1 a mixture; above 1 it is guidance, away from the first caption and beyond the second; below
        0 the other way round.
    turn: on the arc between the two noises (White, "Sampling Generative Networks", 2016): a straight line would leave
        the length that the generator knows.
    late: style mixing (Karras et al., "StyleGAN", 2019); the noise stays.
    """

    caption: str
    seed: int = 0  # of the noise, 0 .. 2**32 - 1
    truncation: float = 1.0  # factor of the noise, 0 .. 2
    towards: str = ""  # a second caption
    share: float = 0.0  # its share of the sentence, -2 .. 3
    seed_b: int | None = None  # a second seed
    turn: float = 0.0  # how far the noise is turned to that one's, 0 .. 1
    late: str = ""  # a caption that the last generator blocks get in place of the sentence
    late_from: int = 0  # from this block on; 0 is the first

    def __post_init__(self) -> None:
        check_caption(self.caption, "the caption")
        if self.towards or self.share:
            check_caption(self.towards, "the second caption")
        if self.late or self.late_from:
            check_caption(self.late, "the caption of the late blocks")
        for seed in self.seeds:
            if isinstance(seed, bool) or not isinstance(seed, int):
                raise ValueError(f"the seed must be a whole number, not {seed!r}")
            if not 0 <= seed < SEEDS:
                raise ValueError(f"the seed must lie between 0 and {SEEDS - 1}, not {seed}")
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if not isinstance(value, int | float) or not low <= value <= high:
                raise ValueError(f"{name} must lie between {low:g} and {high:g}, not {value!r}")
        if self.turn and self.seed_b is None:
            raise ValueError("turn is how far the noise is turned to that of seed_b: give seed_b, too")

    @property
    def captions(self) -> tuple[str, ...]:
        """The captions that it mixes."""
        return tuple(filter(None, (self.caption, self.towards, self.late)))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The one or two seeds that it mixes."""
        return (self.seed,) if self.seed_b is None else (self.seed, self.seed_b)

    @property
    def text(self) -> str:
        """The caption; of a mixture both, with their shares."""
        text = f"{1 - self.share:.0%} {self.caption}, {self.share:.0%} {self.towards}"
        if self.share in (0, 1):
            text = self.towards if self.share else self.caption
        return f"{text}, from block {self.late_from} on {self.late}" if self.late else text

    @property
    def settings(self) -> dict[str, Any]:
        """What differs from the defaults, without caption and seed."""
        return {f.name: value for f in fields(self)[2:] if (value := getattr(self, f.name)) != f.default}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """From a mapping such as a row of a table. Raises ValueError for a name or value that a recipe can't have."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(map(str, values.keys() - known)):
            raise ValueError(f"unknown {', '.join(unknown)}: a picture is made from {', '.join(sorted(known))}")
        if "caption" not in values:
            raise ValueError("there is no caption")
        return cls(**values)

    def noise(self, noise_dim: int, truncates: bool = False) -> Tensor:
        """The generator's noise (Z,), or (Z + 1,) for one that `truncates` by itself."""
        first, *second = noise_of_seeds(self.seeds, noise_dim)
        noise = arc(first, second[0], self.turn) if second else first
        return torch.cat([noise, torch.tensor([self.truncation])]) if truncates else self.truncation * noise


def check_caption(text: Any, which: str) -> None:
    """Raises ValueError for what is no text, or an empty one; `which` names it in the message."""
    if not isinstance(text, str):
        raise ValueError(f"{which} is no text but {text!r}")
    if not text.strip():
        raise ValueError(f"{which} is empty: write what the picture should show")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{which} holds {text[error.start]!r}, which is no whole character") from None


def noise_of_seeds(seeds: Sequence[int], noise_dim: int) -> Tensor:
    """N seeds -> noise (N, noise_dim), standard normal; each row depends on its own seed only.

    The convention of pictures that people ask for; an evaluation's picture number 0 (`noise_of_pictures`) and a
    training step's noise (`random_of`) have other numbers, also where their seed is 0.
    """
    rows = [torch.randn(noise_dim, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows)  # (N, Z)


def arc(a: Tensor, b: Tensor, share: float) -> Tensor:
    """The point at `share` of the arc from `a` (Z,) to `b` (Z,); 0 gives `a`, 1 gives `b`."""
    angle = math.acos(min(1.0, max(-1.0, float(torch.cosine_similarity(a, b, dim=0)))))
    if angle < 1e-4:  # the same noise
        return a
    return math.sin((1 - share) * angle) / math.sin(angle) * a + math.sin(share * angle) / math.sin(angle) * b
