"""Measure pictures in a folder, whoever made them, against the real ones of a data set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from ..clip.bridge import ClipBridge
from ..data.batches import Source
from ..images import EvaluationError, to_images
from .crowds import GROUPS, Names, halved_distance
from .features import Extractor
from .frechet import Moments, frechet_of
from .given import as_asked
from .judge import JUDGED, Judge
from .measures import cosines, kernel_distance, precision_recall, share_of
from .passes import KEPT, Eyes
from .protocol import BATCH, embed_captions, evaluating
from .rows import Rows

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
MANIFEST = "manifest.jsonl"


def list_pictures(folder: str | Path) -> tuple[list[Path], list[str] | None]:
    """The pictures of a folder, and their captions if it has a manifest.jsonl (lines with `file` and `caption`).

    Raises:
        EvaluationError: for a missing or an empty folder, a single picture, a manifest that names absent files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise EvaluationError(f"there is no folder {folder}")
    manifest = folder / MANIFEST
    if not manifest.is_file():
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)
        captions = None
    else:
        try:
            lines = [json.loads(line) for line in manifest.read_text().splitlines() if line.strip()]
            paths, captions = [folder / line["file"] for line in lines], [line["caption"] for line in lines]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise EvaluationError(f"{manifest}: every line needs 'file' and 'caption' ({error})") from None
        if absent := [path.name for path in paths if not path.is_file()]:
            raise EvaluationError(f"{manifest} has captions of {len(absent)} pictures that aren't there: {absent[0]}")
    if len(paths) < 2:
        kinds = ", ".join(ENDINGS)
        raise EvaluationError(f"{folder} holds {len(paths)} pictures ({kinds}): two are needed at the very least")
    return paths, captions


def read_pictures(paths: Sequence[Path]) -> np.ndarray:
    """Picture files -> (B, H, W, 3) uint8.

    Raises:
        EvaluationError: for one that can't be read, or of another size than the first; names it.
    """
    arrays = []
    for path in paths:
        try:
            with Image.open(path) as picture:
                arrays.append(np.asarray(picture.convert("RGB")))
        except OSError as error:
            raise EvaluationError(f"{path} can't be read: {error}") from None
        if arrays[-1].shape != arrays[0].shape:
            sizes = ["{1} x {0}".format(*array.shape) for array in (arrays[-1], arrays[0])]
            raise EvaluationError(f"{path} is {sizes[0]} pixels, {paths[0]} is {sizes[1]}: all must be of one size")
    return np.stack(arrays)


def evaluate_folder(
    folder: str | Path,
    data: Source,
    look: Extractor,
    bridge: ClipBridge,
    judge: Judge | None = None,
    batch_size: int = BATCH,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure the pictures in a folder against all real ones of a split, each once.

    Args:
        data: the real pictures.
        look: what distances are over; an FID over InceptionV3's features only.
        bridge: for CLIP similarity, if the folder has captions.
        judge: for caption accuracy, if it has, of mini birds.

    Returns:
        frechet_all (called fid over InceptionV3's features), frechet_floor (halves of the real ones), kernel_distance,
        precision, recall, density, coverage, clip_similarity, caption_accuracy, images, real_images, features.

    Raises:
        EvaluationError: as `list_pictures` and `read_pictures` do.
    """
    paths, captions = list_pictures(folder)
    eyes = Eyes(bridge, [look], judge)
    fake, real = Moments(look.dim), Moments(look.dim, GROUPS)
    kept = {"fake": Rows(KEPT), "real": Rows(KEPT)}
    similar, asked = [], []
    with evaluating(bridge):
        for start in tqdm(range(0, len(paths), batch_size), desc="folder", unit="batch", disable=not progress):
            own = paths[start : start + batch_size]
            pixels = read_pictures([paths[0], *own])[1:]  # each of the first one's size
            seen = eyes(to_images(pixels))
            fake.update(seen[look.name])
            kept["fake"].update(torch.arange(start, start + len(own)), seen[look.name])
            if captions:
                texts = captions[start : start + batch_size]
                similar.append(cosines(seen["clip"], embed_captions(bridge, texts).cpu()))
                if judge:
                    asked.append(as_asked(judge, seen["judge"], texts))
        for start in tqdm(range(0, len(data), batch_size), desc="real", unit="batch", disable=not progress):
            rows = np.arange(start, min(start + batch_size, len(data)))
            features = look(to_images(data.pixels(rows)[0]))
            real.update(features, torch.from_numpy(rows) % GROUPS)
            kept["real"].update(torch.from_numpy(rows), features)
    names = Names(look.name, first=True)
    result: dict[str, Any] = {
        names("frechet_all"): frechet_of(real.statistics(), fake.statistics()).value,
        names("frechet_floor"): halved_distance(real, real).value,
    }
    sides = kept["real"].ordered(), kept["fake"].ordered()
    if min(map(len, sides)) > 5:  # neighbours that precision and recall look at
        result[names("kernel_distance")] = kernel_distance(*sides).value
        result |= {names(name): found.value for name, found in precision_recall(*sides).items()}
    if captions:
        result["clip_similarity"] = torch.cat(similar).mean().item()
    if asked:
        hits = {name: torch.cat([own[name] for own in asked]) for name in JUDGED}
        result["caption_accuracy"] = {name: share_of(own[own.isfinite()]).value for name, own in hits.items()}
    return result | {"images": len(paths), "real_images": len(data), "features": [look.name]}
