"""The pass over pictures, real ones, drawn ones or files: every network looks at each once, then it is forgotten."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm.auto import tqdm

from ..build import text_of
from ..clip.bridge import ClipBridge
from ..data import BadRow, DataError, minibirds
from ..data.batches import Source
from ..data.captions import read_table
from ..data.decoding import SUFFIXES, read_image
from ..data.layouts import Finder, list_images
from ..data.pictures import some
from ..distributed import same_failure
from ..images import EvaluationError, to_images
from ..system import TextToImage
from .features import Extractor, extractor
from .judge import Judge
from .measures import GROUPS, WIDE, Measured, Moments, as_asked, clip_score, cosines, halved_distance
from .noticed import noticed
from .pixels import PixelMeasure
from .protocol import Plan, draw, embed_captions
from .samples import MOST, Samples

KEPT = 5000  # pictures whose wide features are remembered, for the measures that compare samples one by one
MANIFEST, SHEET = "manifest.jsonl", "sheet.png"  # as `galip sample --file` writes them


# ---------------------------------------------------------------- where pictures come from


@dataclass(frozen=True)
class Pictures:
    """Pictures by number, got when they are looked at."""

    title: str  # of the progress bar
    count: int
    get: Callable[[Tensor], tuple[Tensor, Tensor | None]]  # numbers -> (B, 3, H, W) in [-1, 1], captions' (B, E)
    captions: Sequence[str] | None = None  # of each; without any there are no embeddings


def real_pictures(data: Source, rows: np.ndarray) -> Pictures:
    """Some rows of a data set, without their captions."""
    return Pictures("real pictures", len(rows), lambda own: (to_images(data.pixels(rows[own.numpy()])[0]), None))


def drawn_pictures(
    generator: TextToImage, bridge: ClipBridge, captions: Sequence[str], seed: int, start: int = 0,
    title: str = "generated pictures",
) -> Pictures:  # fmt: skip
    """What a generator draws of captions; the noise of picture i is that of number `start` + i."""

    def get(numbers: Tensor) -> tuple[Tensor, Tensor]:
        tokens = bridge.tokenize([captions[number] for number in numbers.tolist()])
        text = text_of(bridge, tokens, generator.wants)
        return draw(generator, text, (numbers + start).tolist(), seed), text.sentence.cpu()

    return Pictures(title, len(captions), get, captions)


def fitting_pictures(captions: Sequence[str], size: int, title: str = "real pictures of a caption") -> Pictures:
    """Real mini birds, size x size, as captions say; picture i depends on caption i and i."""

    def get(numbers: Tensor) -> tuple[Tensor, None]:
        birds = (minibirds.fitting(captions[number], number) for number in numbers.tolist())
        return to_images(np.stack([minibirds.render(bird, pose, size) for bird, pose in birds])), None

    return Pictures(title, len(captions), get)


def folder_pictures(folder: str | Path, bridge: ClipBridge) -> Pictures:
    """Those of a folder, by `list_pictures` and `read_pictures`."""
    paths, captions = list_pictures(folder)

    def get(numbers: Tensor) -> tuple[Tensor, Tensor | None]:
        own = numbers.tolist()
        pixels = read_pictures([paths[0], *(paths[number] for number in own)])[1:]  # each of the first one's size
        text = embed_captions(bridge, [captions[number] for number in own]).cpu() if captions else None
        return to_images(pixels), text

    return Pictures("folder", len(paths), get, captions)


def list_pictures(folder: str | Path) -> tuple[list[Path], list[str] | None]:
    """The pictures of a folder, and their captions if it has a manifest.jsonl (lines with `file` and `caption`).

    Warns of pictures that the manifest doesn't name. Raises EvaluationError for a missing folder, fewer than two
    pictures, a manifest that names absent files or has no caption of one.
    """
    folder, captions = Path(folder), None
    if not folder.is_dir():
        raise EvaluationError(f"there is no folder {folder}")
    manifest, found = folder / MANIFEST, list_images(folder)
    paths = [folder / name for name in found]
    if manifest.is_file():
        try:
            table = read_table(manifest)
        except DataError as error:
            raise EvaluationError(f"{manifest}: every line needs 'file' and 'caption' ({error})") from None
        if table.left_out:
            raise EvaluationError(str(table.left_out[0]))
        if silent := [name for name, texts in table.captions.items() if not any(map(str.strip, texts))]:
            raise EvaluationError(f"{manifest} has no caption of {len(silent)} pictures: {some(silent)}")
        find = Finder()
        places = {name: find.image([folder], name) for name in table.captions}
        if bad := [place for place in places.values() if isinstance(place, BadRow)]:
            raise EvaluationError(f"{manifest} has captions of {len(bad)} pictures that can't be had: {bad[0]}")
        pairs = [
            (place, text) for name, place in places.items() if isinstance(place, Path)
            for text in table.captions[name] if text.strip()
        ]  # fmt: skip
        paths, captions = [path for path, _ in pairs], [text for _, text in pairs]
        if other := sorted(set(found) - {path.relative_to(folder).as_posix() for path in paths} - {SHEET}):
            warnings.warn(f"{manifest} doesn't list {len(other)} pictures beside it: {some(other)}", stacklevel=2)
    if len(paths) < 2:
        kinds = ", ".join(SUFFIXES)
        raise EvaluationError(f"{folder} holds {len(paths)} pictures ({kinds}): two are needed at the very least")
    return paths, captions


def read_pictures(paths: Sequence[Path]) -> np.ndarray:
    """Picture files -> (B, H, W, 3) uint8; EvaluationError names one that isn't readable, or of the first's size."""
    arrays: list[np.ndarray] = []
    for path in paths:
        try:
            arrays.append(np.asarray(read_image(path)))
        except BadRow as error:
            raise EvaluationError(f"{path} can't be read: {str(error).removeprefix(f'{path}: ')}") from None
        if arrays[-1].shape != arrays[0].shape:
            sizes = ["{1} x {0}".format(*array.shape) for array in (arrays[-1], arrays[0])]
            raise EvaluationError(f"{path} is {sizes[0]} pixels, {paths[0]} is {sizes[1]}: all must be of one size")
    return np.stack(arrays)


# ---------------------------------------------------------------- who looks, and what is kept


class FeatureNetworks:
    """All networks that look at pictures: images (B, 3, H, W) in [-1, 1] -> name -> features (B, D) on the CPU.

    Distances are over those of `extractors`; `fit` asks `judge`, and `bridge` in its input convention and CLIP's own.
    """

    def __init__(
        self, extractors: Sequence[Extractor], bridge: ClipBridge | None = None, judge: Judge | None = None
    ) -> None:
        self.extractors, self.bridge, self.judge = extractors, bridge, judge
        asked: dict[str, Extractor] = {}
        if bridge:
            asked["clip"] = extractor("clip", bridge=bridge)
            if bridge.convention == "reference":
                own = ClipBridge(bridge.model, "clip", bridge.taps, bridge.prompt_layers).to(bridge.pixel_mean.device)
                asked["clip, as it was trained"] = extractor("clip", bridge=own)
        if judge:
            asked["judge"] = extractor("judge", judge=judge)
        self.fitting = list(asked)  # the networks that `fit` asks
        self.networks = asked | {one.name: one for one in extractors}

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        return {name: look(images) for name, look in self.networks.items()}

    def fit(self, found: dict[str, Tensor], text: Tensor, captions: Sequence[str]) -> dict[str, Tensor]:
        """How pictures fit their captions: their features and the captions' embeddings (B, E) -> name -> (B,)."""
        scores = as_asked(self.judge, found["judge"], captions) if self.judge else {}
        if self.bridge:
            own = found.get("clip, as it was trained", found["clip"])
            scores["clip_similarity"] = cosines(found["clip"], text)
            if self.bridge.convention != "damsm":
                scores["clip_score"] = clip_score(own, text)
        return scores


class PerSample:
    """Something about single pictures, by name (N, ...), in their order whichever process has seen which."""

    def __init__(self) -> None:
        self.parts: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)

    def add(self, numbers: Tensor, values: dict[str, Tensor], limit: int | None = None) -> None:
        """Note values (B, ...) of pictures by their numbers (B,); those from `limit` on are forgotten."""
        known = slice(None) if limit is None else numbers < limit
        for name, found in values.items():
            self.parts[name].append((numbers[known], found[known]))

    def ordered(self) -> dict[str, Tensor]:
        """Name -> the values of all pictures, by number."""
        own = {name: [torch.cat(side) for side in zip(*parts, strict=True)] for name, parts in self.parts.items()}
        everyone: list[Any] = [own]
        if dist.is_available() and dist.is_initialized():
            everyone *= dist.get_world_size()
            dist.all_gather_object(everyone, own)
        found = {}
        for name in dict.fromkeys(name for one in everyone for name in one):
            sides = zip(*(one[name] for one in everyone if name in one), strict=True)
            numbers, values = (torch.cat(side) for side in sides)
            found[name] = values[numbers.argsort()]
        return found


@dataclass(frozen=True)
class Seen:
    """What is left of pictures that were looked at, by the names of extractors, networks, scores.

    A score says of every picture (N,) what people notice of it, how it fits its caption, or a pixel measure; the
    latter two of the real picture beside it end in _real.
    """

    pictures: Pictures  # to be had again
    moments: dict[str, Moments]  # `GROUPS` of the first picture of each real one, by its number, then of the others
    features: dict[str, Tensor]  # (N, D) of each real one's first picture, in their order; of generated ones `KEPT`
    scores: dict[str, Tensor]
    pairs: dict[str, Tensor]  # image, text: embeddings of the first `KEPT` pictures and of their captions

    @cached_property
    def floors(self) -> dict[str, Measured]:
        """Of real pictures, by extractor: their Fréchet distance from each other."""
        return {name: halved_distance(own, own) for name, own in self.moments.items()}


def look_at(
    pictures: Pictures, networks: FeatureNetworks, batch_size: int, progress: bool = True,
    plan: Plan | None = None, real: Seen | None = None, measures: Sequence[PixelMeasure] = (),
) -> Seen:  # fmt: skip
    """The pass; of several processes each looks at its share, and all get everything.

    `plan` says which of the `real` pictures stands beside each, where that isn't the one of its number.
    """
    numbers = torch.arange(pictures.count)
    place, first = numbers, torch.ones(len(numbers), dtype=torch.bool)
    if plan:
        place, first = torch.from_numpy(plan.place), torch.from_numpy(plan.first)
    if dist.is_available() and dist.is_initialized():
        numbers = numbers[dist.get_rank() :: dist.get_world_size()]
    groups = GROUPS * (1 if first.all() else 2)
    wide = Samples if pictures.count <= MOST else Moments
    moments = {one.name: (wide if one.dim > WIDE else Moments)(one.dim, groups) for one in networks.extractors}
    features, scores, pairs = PerSample(), PerSample(), PerSample()
    bar = tqdm(numbers.split(batch_size), desc=pictures.title, unit="batch", leave=False, disable=not progress)
    with same_failure():  # a picture that can't be measured ends all
        for batch in bar:
            images, text = pictures.get(batch)
            found, own, opening = networks(images), place[batch], first[batch]
            for name, sums in moments.items():
                sums.update(found[name], own % GROUPS + GROUPS * ~opening)
            for name, values in found.items():
                whole = real is None and name in networks.fitting  # for the pictures that they will stand beside
                features.add(own[opening], {name: values[opening]}, None if whole else KEPT)
            noted = noticed(images) if moments else {}
            if pictures.captions and text is not None:
                captions = [pictures.captions[number] for number in batch.tolist()]
                noted |= networks.fit(found, text, captions)
                if real:
                    beside = {name: real.features[name][own] for name in networks.fitting}
                    noted |= {f"{name}_real": values for name, values in networks.fit(beside, text, captions).items()}
                    pairs.add(batch, {"image": found["clip"], "text": text}, KEPT)
            if real and measures:
                photos = real.pictures.get(own)[0].to(images.device)
                for one in measures:
                    noted[one.name] = one(images, photos)
                    if not one.paired:
                        noted[f"{one.name}_real"] = one(photos)
            scores.add(batch, noted)
    for sums in moments.values():
        sums.gather()
    return Seen(pictures, moments, features.ordered(), scores.ordered(), pairs.ordered())
