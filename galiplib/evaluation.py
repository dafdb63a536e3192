"""How good are generated mini birds? Caption accuracy, Fréchet distance, CLIP similarity, with their limits.

The Fréchet distance here is between features of the judge, not of Inception: nothing in this file is an FID,
or compares with one. Read it beside its floor, the distance between real pictures and real pictures.
The judge has learned to look past blur and grain, so it sees what is drawn and how varied, less how sharply:
with 500 pictures a side (floor 6.1), a blur of 2 pixels gives 8.2, twenty pictures over and over give 89.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy
from tqdm.auto import tqdm

from . import minibirds
from .clip_bridge import ClipBridge
from .config import EvalConfig
from .judge import JUDGED, Judge
from .metrics import EvaluationError, frechet_distance, frechet_floor, halves
from .pictures import to_range
from .training_data import Source, to_images

BATCH = 100  # pictures at once where nobody says otherwise; changes no result


class Accuracy(NamedTuple):
    """The share of right answers (NaN where `count`, the number of questions, is 0)."""

    value: float
    count: int


# ---------------------------------------------------------------- pictures


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


def noise_of(indices: Iterable[int], noise_dim: int, seed: int) -> Tensor:
    """Picture numbers -> standard normal noise (B, Z), a row from its own number and the seed alone."""
    own = [torch.Generator().manual_seed(random.Random(f"{seed}-{i}").getrandbits(63)) for i in indices]
    return torch.stack([torch.randn(noise_dim, generator=rng) for rng in own])


def generate(
    generator: nn.Module,
    bridge: ClipBridge,
    captions: Sequence[str],
    seed: int = 0,
    batch_size: int = BATCH,
    progress: Callable[[range], Iterable[int]] = iter,
) -> Tensor:
    """A picture for every caption -> (N, 3, H, W) float in [-1, 1], on the CPU.

    `generator(noise (B, Z), sentence (B, E)) -> (B, 3, H, W)` runs in eval mode and is left as it was.
    Picture i depends on caption i, i and the seed, not on the batch. `progress` may wrap the batches.

    Raises:
        EvaluationError: for no captions, or a picture that is not finite, by its number.
    """
    if not captions:
        raise EvaluationError("no captions to draw")
    device, parts = bridge.pixel_mean.device, []
    with evaluating(generator):
        for start in progress(range(0, len(captions), batch_size)):
            texts = captions[start : start + batch_size]
            sentence = bridge.encode_text(bridge.tokenize(texts).to(device)).float()  # (B, E)
            noise = noise_of(range(start, start + len(texts)), generator.noise_dim, seed).to(device)  # (B, Z)
            parts.append(to_range(generator(noise, sentence), first=start).cpu())
    return torch.cat(parts)


# ---------------------------------------------------------------- the measures


def judge_features(judge: Judge, images: Tensor, batch_size: int = BATCH) -> Tensor:
    """Images (N, 3, H, W) in [-1, 1] -> the judge's features (N, 128); raises as `to_range` does."""
    device, starts = next(judge.parameters()).device, range(0, len(images), batch_size)
    with evaluating(judge):
        parts = [judge.features(to_range(images[i : i + batch_size], first=i).to(device)) for i in starts]
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
    return _score(judge, judge_features(judge, images), captions)


def _score(judge: Judge, features: Tensor, captions: Sequence[str]) -> dict[str, Accuracy]:
    asked = [minibirds.asked(text) for text in captions]
    with evaluating(judge):
        logits = judge.classify(features)
    result = {}
    for name in JUDGED:
        rows = [index for index, wanted in enumerate(asked) if name in wanted]
        value = float("nan")
        if rows:
            metric = MulticlassAccuracy(num_classes=logits[name].shape[1], average="micro")
            value = metric(logits[name][rows].cpu(), torch.tensor([asked[i][name] for i in rows])).item()
        result[name] = Accuracy(value, len(rows))
    return result


def clip_similarity(
    bridge: ClipBridge, images: Tensor, captions: Sequence[str], batch_size: int = BATCH
) -> float:
    """Mean cosine of CLIP's embeddings of images (N, 3, H, W) in [-1, 1] and of their N captions.

    CLIPScore (Hessel et al., 2021) without its factor 2.5 and its cut at zero.

    Raises:
        EvaluationError: if counts differ or are zero, or a picture is not finite.
    """
    if len(images) != len(captions) or not captions:
        raise EvaluationError(f"{len(images)} pictures, {len(captions)} captions: need as many, one or more")
    device, cosines = bridge.pixel_mean.device, []
    with evaluating(bridge):
        for start in range(0, len(images), batch_size):
            batch = to_range(images[start : start + batch_size], first=start).to(device)
            tokens = bridge.tokenize(captions[start : start + batch_size]).to(device)
            image, text = bridge.encode_image(batch)[1], bridge.encode_text(tokens)  # (B, E) both
            cosines.append(F.cosine_similarity(image.float(), text.float()).double())
    return torch.cat(cosines).mean().item()


# ---------------------------------------------------------------- everything at once


def choose(data: minibirds.MiniBirds, count: int) -> tuple[list[int], list[str]]:
    """`count` picture numbers in turn and a caption each, of the next of the ten kinds every time."""
    turns = [divmod(index, len(data)) for index in range(count)]
    captions = [data.captions[row][(row + turn) % minibirds.CAPTIONS_PER_IMAGE] for turn, row in turns]
    return [row for _, row in turns], captions


def evaluate(
    generator: nn.Module,
    bridge: ClipBridge,
    judge: Judge,
    data: dict[str, minibirds.MiniBirds],
    config: EvalConfig,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure a generator; the same numbers for the same arguments, whatever the batch size.

    `config.images` captions: half from the split "seen" (new birds of trained combinations), half from "test"
    (combinations held out). Every number but caption_accuracy_held_out is of "seen".

    Returns:
        caption_accuracy, caption_accuracy_held_out: attribute -> share of generated pictures in which the
            judge sees what the caption asked for; caption_accuracy_real: of real ones, the ceiling; chance.
        frechet_distance: generated against real, mean over two disjoint halves: as many pictures a side
            (frechet_images) as in frechet_floor, which is real against real.
        clip_similarity, clip_similarity_real: of generated and of real pictures with their captions.
        images: pictures generated, over both splits.

    Raises:
        EvaluationError: for a missing split, or a generated picture that is not finite.
    """
    if missing := {"seen", "test"} - set(data):
        raise EvaluationError(f"evaluation needs the splits seen and test; missing: {sorted(missing)}")
    size = config.batch_size

    def draw(split: str, count: int) -> tuple[list[int], list[str], Tensor, Tensor]:
        rows, captions = choose(data[split], count)
        bar = partial(tqdm, desc=f"generate {split}", unit="batch", leave=False, disable=not progress)
        images = generate(generator, bridge, captions, config.seed, size, bar)
        return rows, captions, images, judge_features(judge, images, size)

    def shares(features: Tensor, captions: list[str]) -> dict[str, float]:
        return {name: accuracy.value for name, accuracy in _score(judge, features, captions).items()}

    _, other_captions, _, other_features = draw("test", config.images // 2)
    rows, captions, fake, fake_features = draw("seen", config.images - config.images // 2)
    real = to_images(data["seen"].images[rows])
    real_features = judge_features(judge, real, size)
    different = min(len(rows), len(data["seen"]))  # a picture on both sides would pull the floor down
    floor = frechet_floor(real_features[:different], config.seed)
    pairs = zip(
        halves(real_features[:different], config.seed),
        halves(fake_features[:different], config.seed + 1),  # another shuffle: not each beside its original
        strict=True,
    )
    return {
        "caption_accuracy": shares(fake_features, captions),
        "caption_accuracy_held_out": shares(other_features, other_captions),
        "caption_accuracy_real": shares(real_features, captions),
        "chance": {name: 1 / len(minibirds.ATTRIBUTES[name]) for name in JUDGED},
        "frechet_distance": sum(frechet_distance(*pair).value for pair in pairs) / 2,
        "frechet_floor": floor.value,
        "frechet_images": floor.real,
        "clip_similarity": clip_similarity(bridge, fake, captions, size),
        "clip_similarity_real": clip_similarity(bridge, real, captions, size),
        "images": config.images,
    }


@torch.inference_mode()
def evaluate_photos(
    generator: nn.Module, bridge: ClipBridge, data: Source, config: EvalConfig, progress: bool = True
) -> dict[str, Any]:
    """Measure a generator on held-out photographs, through the CLIP that it was trained with.

    Pictures of `config.images` captions of random photographs, beside those photographs (centre crops). The distance
    is between CLIP embeddings: no FID, and kinder to this generator than features it never saw; it tells whether a
    training moves, and does not compare with one that uses another CLIP.

    Returns:
        clip_frechet_distance: generated against real, mean over two disjoint halves: as many pictures a side
            (frechet_images) as in clip_frechet_floor, which is real against real.
        clip_similarity, clip_similarity_real: mean cosine of generated and of real pictures with their captions.
        images: pictures generated.

    Raises:
        EvaluationError: for fewer than four photographs, or a generated picture that is not finite.
    """
    random = np.random.default_rng(config.seed)
    passes = -(-config.images // len(data))
    rows = np.concatenate([random.permutation(len(data)) for _ in range(passes)])[: config.images]
    size, real, captions = config.batch_size, [], []
    for start in range(0, len(rows), size):
        pixels, shown = data.pixels(rows[start : start + size])
        texts = [data.captions[row] for row in shown]
        captions += [own[int(pick * len(own))] for own, pick in zip(texts, random.random(len(texts)), strict=True)]
        real.append(bridge.encode_image(to_images(pixels).to(bridge.pixel_mean.device))[1].float().cpu())
    real = torch.cat(real)  # (N, E)
    bar = partial(tqdm, desc="generate", unit="batch", leave=False, disable=not progress)
    images = generate(generator, bridge, captions, config.seed, size, bar)  # (N, 3, H, W)
    parts = images.split(size)
    fake = torch.cat([bridge.encode_image(part.to(bridge.pixel_mean.device))[1].float().cpu() for part in parts])
    tokens = bridge.tokenize(captions).split(size)
    text = torch.cat([bridge.encode_text(part.to(bridge.pixel_mean.device)).float().cpu() for part in tokens])
    different = min(len(rows), len(data))  # a picture on both sides would pull the floor down
    pairs = zip(halves(real[:different], config.seed), halves(fake[:different], config.seed + 1), strict=True)
    return {
        "clip_frechet_distance": sum(frechet_distance(*pair).value for pair in pairs) / 2,
        "clip_frechet_floor": frechet_floor(real[:different], config.seed).value,
        "frechet_images": different // 2,
        "clip_similarity": F.cosine_similarity(fake, text).mean().item(),
        "clip_similarity_real": F.cosine_similarity(real, text).mean().item(),
        "images": config.images,
    }
