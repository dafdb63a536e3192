"""Pictures with captions: drawn birds, photographs, shards; batches of them."""

from __future__ import annotations

from pathlib import Path

SPLITS = ("train", "test")


class DataError(ValueError):
    """A data set that is missing, damaged or laid out otherwise; the message names the file and what would be right."""


class EmptySplit(DataError):
    """A split in which no picture can be used: what needs none of it goes on."""


class BadRow(DataError):
    """One picture that can't be used: `reason` in a few words, `path` the file (or key) at fault."""

    def __init__(self, reason: str, path: Path | str, detail: object = "") -> None:
        super().__init__(f"{path}: {reason}" + (f" ({detail})" if str(detail) else ""))
        self.reason, self.path = reason, path
