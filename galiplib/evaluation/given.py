"""Measures of pictures that are there already: do they show what their captions say?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..clip.bridge import ClipBridge
from ..data import minibirds
from ..images import EvaluationError, to_range
from .judge import JUDGED, Judge
from .measures import cosines, share_of
from .protocol import BATCH, embed_captions, evaluating


class Accuracy(NamedTuple):
    """The share of right answers (NaN where `count`, the number of questions, is 0)."""

    value: float
    count: int


def judge_features(judge: Judge, images: Tensor, batch_size: int = BATCH) -> Tensor:
    """Images (N, 3, H, W) in [-1, 1] -> the judge's features (N, 128); raises as `to_range` does."""
    device, starts = next(judge.parameters()).device, range(0, len(images), batch_size)
    with evaluating(judge):
        parts = []
        for start in starts:
            batch = images[start : start + batch_size]
            parts.append(judge.features(to_range(batch, numbers=range(start, start + len(batch))).to(device)))
    return torch.cat(parts)


def caption_accuracy(judge: Judge, images: Tensor, captions: Sequence[str]) -> dict[str, Accuracy]:
    """How often the judge sees what the caption asked for -> body, wing, belly, background -> Accuracy.

    Images (N, 3, H, W) in [-1, 1] and their N captions. An attribute counts only for captions that name it.

    Raises:
        EvaluationError: if no caption names anything, counts differ, or a picture is not finite.
    """
    if len(images) != len(captions):
        raise EvaluationError(f"{len(images)} pictures, but {len(captions)} captions")
    if not any(map(minibirds.asked, captions)):
        raise EvaluationError(f"no caption names any of {', '.join(JUDGED)}: {list(captions[:2])}")
    hits = as_asked(judge, judge_features(judge, images), captions)
    shares = {name: share_of(own[own.isfinite()]) for name, own in hits.items()}
    return {name: Accuracy(share.value, share.count) for name, share in shares.items()}


def as_asked(judge: Judge, features: Tensor, captions: Sequence[str]) -> dict[str, Tensor]:
    """The judge's features (N, 128) and N captions -> attribute -> (N,) 1: as asked, 0: not, NaN: nothing asked."""
    with evaluating(judge):
        logits = judge.classify(features.to(next(judge.parameters()).device))
    asked = [minibirds.asked(text) for text in captions]
    wanted = {name: torch.tensor([own.get(name, -1) for own in asked]) for name in JUDGED}
    found = {name: logits[name].argmax(1).cpu() for name in JUDGED}
    return {n: (found[n] == wanted[n]).double().masked_fill(wanted[n] < 0, math.nan) for n in JUDGED}


def clip_similarity(bridge: ClipBridge, images: Tensor, captions: Sequence[str], batch_size: int = BATCH) -> float:
    """Mean cosine of CLIP's embeddings of images (N, 3, H, W) in [-1, 1] and of their N captions.

    In the bridge's input convention; CLIPScore is 2.5 times it, cut at zero, in CLIP's own.

    Raises:
        EvaluationError: if counts differ or are zero, or a picture is not finite.
    """
    if len(images) != len(captions) or not captions:
        raise EvaluationError(f"{len(images)} pictures, {len(captions)} captions: need as many, one or more")
    found = []
    with evaluating(bridge):
        for start in range(0, len(images), batch_size):
            texts = captions[start : start + batch_size]
            batch = to_range(images[start : start + batch_size], numbers=range(start, start + len(texts)))
            image = bridge.encode_image(batch.to(bridge.pixel_mean.device))[1]  # (B, E)
            found.append(cosines(image, embed_captions(bridge, texts)))
    return torch.cat(found).mean().item()
