"""Means and covariances of real pictures' features as files: ours, and the `.npz` of the authors (`mu`, `sigma`).

A statistics file says little without how it was made (extractor, data set, split, crop, size, resizing): ours say it
in `note`; those around don't, which is one reason why published distances don't compare.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .files import write_atomically
from .metrics import EvaluationError, Statistics


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
