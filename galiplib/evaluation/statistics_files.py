"""Means and covariances of real pictures' features as files: ours, and the `.npz` of the authors (`mu`, `sigma`).

A statistics file says little without how it was made (extractor, data set, split, crop, size, resizing): ours say it
in `note`; those around don't, which is one reason why published distances don't compare.
"""

from __future__ import annotations

import hashlib
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data.batches import Source
from ..files import write_atomically
from ..images import EvaluationError, to_images
from .features import Extractor
from .frechet import Moments, Statistics

FOLDER = Path("data") / "statistics"


def real_statistics(
    data: Source,
    look: Extractor,
    note: dict[str, Any],
    path: str | Path | None = None,
    batch_size: int = 100,
    progress: bool = True,
) -> Statistics:
    """Statistics of every picture of a split, once, from a file; the file is made where it is missing.

    Args:
        note: what the pictures are (data, split, crop, size, ...), kept in the file; tells one cached file from
            another.
        path: the file; by default in data/statistics, named after the note and the extractor.

    Raises:
        EvaluationError: for a file that doesn't fit, or says that it was made of other pictures.
    """
    note = note | {"features": look.name, "weights": look.weights}
    if path is None:
        digest = hashlib.sha256(json.dumps(note, sort_keys=True).encode()).hexdigest()[:8]
        path = FOLDER / f"{note['data']}-{note['split']}-{note['size']}-{look.name}-{digest}.npz"
    if Path(path).is_file():
        found, said = load_statistics(path, look.dim)
        if said and said != note:
            other = sorted(key for key in note.keys() | said.keys() if note.get(key) != said.get(key))
            raise EvaluationError(f"{path} was made of other pictures: {', '.join(other)} differ; delete it, or rename")
        if not said:
            warnings.warn(f"{path} doesn't say how it was made: it may not fit these pictures", stacklevel=2)
        return found
    moments = Moments(look.dim)
    for start in tqdm(range(0, len(data), batch_size), desc="statistics", unit="batch", disable=not progress):
        rows = np.arange(start, min(start + batch_size, len(data)))
        moments.update(look(to_images(data.pixels(rows)[0])))
    save_statistics(path, moments.statistics(), note)
    return moments.statistics()


def save_statistics(path: str | Path, statistics: Statistics, note: dict[str, Any]) -> None:
    """Write statistics as `.npz` with `mu`, `sigma` (float64), `count`, and `note`, JSON on how they were made.

    Raises:
        OSError: naming the path, if it can't be written.
    """
    write_atomically(
        path,
        lambda stream: np.savez_compressed(
            stream, mu=statistics.mu.numpy(), sigma=statistics.sigma.numpy(), count=statistics.count,
            note=json.dumps(note),
        ),
    )  # fmt: skip


def load_statistics(path: str | Path, dim: int | None = None) -> tuple[Statistics, dict[str, Any]]:
    """Read statistics -> them, and the note on how they were made ({} in the authors' files, which lack it).

    Args:
        dim: the width of the features they are to be compared with.

    Raises:
        EvaluationError: for a file that is missing, damaged, holds something else, or is of another width.
    """
    path = Path(path)
    if not path.is_file():
        raise EvaluationError(f"there is no statistics file {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in ("mu", "sigma") if name not in file.files]
            if missing:
                held = ", ".join(file.files) or "nothing"
                raise EvaluationError(f"{path} lacks {' and '.join(missing)}; it holds {held}")
            mu, sigma = (torch.from_numpy(np.asarray(file[name], dtype=np.float64)) for name in ("mu", "sigma"))
            count = int(file["count"]) if "count" in file.files else 0
            note = json.loads(str(file["note"])) if "note" in file.files else {}
    except (OSError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        if isinstance(error, EvaluationError):
            raise
        raise EvaluationError(f"{path} is no readable statistics file: {str(error)[:200]}") from None
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        shapes = f"mu is {tuple(mu.shape)} and sigma {tuple(sigma.shape)}"
        raise EvaluationError(f"{path}: {shapes}; (D,) and (D, D) expected")
    if dim is not None and len(mu) != dim:
        raise EvaluationError(
            f"{path} is over {len(mu)} features, and {dim} are to be compared: another extractor made it"
        )
    if not (mu.isfinite().all() and sigma.isfinite().all()):
        raise EvaluationError(f"{path} holds numbers that are not finite")
    return Statistics(mu, sigma, count or len(mu)), note  # unknown counts warn of nothing
