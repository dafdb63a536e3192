"""Which pictures an evaluation looks at, and how they are drawn: the same whatever the batch size."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..build import text_of
from ..clip.bridge import ClipBridge
from ..images import EvaluationError, TooFew, to_range
from ..system import Text, TextToImage

BATCH = 100  # pictures at once where nobody says otherwise; changes no result


@dataclass(frozen=True)
class Plan:
    """What to draw, entry by entry (N of each), and which real pictures stand beside it (R)."""

    captions: list[str]
    rows: np.ndarray  # (N,), the data set's row that the caption belongs to
    real: np.ndarray  # (R,), the different rows, in the order in which they first appear
    place: np.ndarray  # (N,), where each entry's row stands in `real`
    first: np.ndarray  # (N,), whether it is the first entry of its row: these are as many as the real pictures

    def __len__(self) -> int:
        return len(self.captions)


def plan(
    captions: Sequence[Sequence[str]], images: int | Literal["all"] = "all", per_caption: int = 1, seed: int = 0
) -> Plan:
    """Choose captions evenly: one of every row in random order, then the next one of every row, and so on.

    `images` pictures ("all": of every caption), `per_caption` of each one after the other. Raises TooFew if there are
    no captions, EvaluationError if `images` is no multiple of `per_caption`.
    """
    counts = np.array([len(own) for own in captions])
    if not counts.sum():
        raise TooFew("there are no captions to draw")
    if isinstance(images, int) and images % per_caption:
        raise EvaluationError(f"eval.images = {images} must be a multiple of eval.per_caption = {per_caption}")
    order = np.random.default_rng(seed).permutation(np.flatnonzero(counts))
    wanted = images // per_caption if isinstance(images, int) else int(counts.sum())
    rows: list[np.ndarray] = []
    texts: list[str] = []
    while len(texts) < wanted:
        turn = len(rows)
        # past the last caption of the longest list, all begin anew
        own = order if turn >= counts.max() else order[counts[order] > turn]
        own = own[: wanted - len(texts)]
        rows.append(own)
        texts += [captions[row][(row + turn) % counts[row]] for row in own]
    chosen = np.concatenate(rows).repeat(per_caption)
    real: dict[int, int] = {}  # row -> its place
    place = np.array([real.setdefault(row, len(real)) for row in chosen.tolist()])
    first = np.diff(np.maximum.accumulate(place), prepend=-1) > 0
    return Plan([text for text in texts for _ in range(per_caption)], chosen, np.array(list(real)), place, first)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in eval mode, without gradients; afterwards each of its parts is in the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        with torch.inference_mode():
            yield
    finally:
        for part, training in modes:
            part.training = training


def noise_of_pictures(indices: Iterable[int], noise_dim: int, seed: int) -> Tensor:
    """Picture numbers -> standard normal noise (B, Z), a row from its number and the evaluation's seed alone."""
    own = [torch.Generator().manual_seed(random.Random(f"{seed}-{i}").getrandbits(63)) for i in indices]
    return torch.stack([torch.randn(noise_dim, generator=rng) for rng in own])


def draw(generator: TextToImage, text: Text, indices: Sequence[int], seed: int) -> Tensor:
    """Captions, picture numbers -> pictures (B, 3, H, W) in [-1, 1]; raises as `to_range` does."""
    noise = noise_of_pictures(indices, generator.noise_dim, seed).to(text.sentence.device)  # (B, Z)
    return to_range(generator.picture_of(noise, text), numbers=indices)


def embed_captions(bridge: ClipBridge, captions: Sequence[str]) -> Tensor:
    """Captions -> sentence embeddings (B, E), float32 on the bridge's device."""
    return bridge.encode_text(bridge.tokenize(captions).to(bridge.pixel_mean.device)).float()


def generate(
    generator: TextToImage, bridge: ClipBridge, captions: Sequence[str], seed: int = 0, batch_size: int = BATCH,
    progress: Callable[[range], Iterable[int]] = iter,
) -> Tensor:  # fmt: skip
    """A picture for every caption -> (N, 3, H, W) float in [-1, 1], on the CPU; `progress` may wrap the batches.

    Picture i depends on caption i, i and the seed, not on the batch. Raises EvaluationError for no captions, or a
    picture that is not finite, by its number.
    """
    if not captions:
        raise EvaluationError("no captions to draw")
    parts = []
    with evaluating(generator):
        for start in progress(range(0, len(captions), batch_size)):
            texts = captions[start : start + batch_size]
            numbers = range(start, start + len(texts))
            text = text_of(bridge, bridge.tokenize(texts), generator.wants)
            parts.append(draw(generator, text, numbers, seed).cpu())
    return torch.cat(parts)
