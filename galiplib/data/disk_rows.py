"""Rows of numbers and texts in files too large for memory, read where asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .data_files import DataError


class Table:
    """Rows of numbers in a file. Not memory-mapped: the pages of a map count as the process's memory once touched.

    Args:
        path: of the raw numbers, row after row.
        columns: numbers in a row.
        rows: how many there must be.

    Raises:
        DataError: if the file is missing or of another size.
    """

    def __init__(self, path: Path, dtype: type, columns: int, rows: int) -> None:
        self.path, self.dtype, self.shape = path, np.dtype(dtype), (rows, columns)
        self.row_bytes = columns * self.dtype.itemsize
        found = path.stat().st_size if path.is_file() else None
        if found != rows * self.row_bytes:
            what = "is missing" if found is None else f"has {found:,} bytes, not {rows * self.row_bytes:,}"
            raise DataError(f"{path} {what}: delete {path.parent} to have it made again")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """Row numbers (B,) -> (B, columns)."""
        content = bytearray()
        with open(self.path, "rb", buffering=0) as stream:
            for row in rows:
                stream.seek(int(row) * self.row_bytes)
                content += stream.read(self.row_bytes)
        return np.frombuffer(content, self.dtype).reshape(len(rows), self.shape[1])

    def span(self, start: int, stop: int) -> np.ndarray:
        """The rows from `start` up to `stop`, (stop - start, columns)."""
        count = (stop - start) * self.shape[1]
        return np.fromfile(self.path, self.dtype, count, offset=start * self.row_bytes).reshape(-1, self.shape[1])


def read_bytes(path: Path, start: int, length: int) -> bytes:
    """A part of a file; raises DataError if the file is gone or ends before.

    It is opened every time: a file kept open for each of thousands of shards is more than systems allow.
    """
    try:
        with open(path, "rb", buffering=0) as stream:
            stream.seek(start)
            content = stream.read(length)
            size = stream.seek(0, 2)
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror}): bring it back and start again") from None
    if len(content) != length:
        raise DataError(f"{path} is cut: it ends at byte {size:,}, not at {start + length:,} or later")
    return content


class Texts(Sequence[str]):
    """The captions of an index, in the order of their pictures, read where asked."""

    def __init__(self, places: Table, path: Path) -> None:
        self.places, self.path = places, path

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: int | slice) -> Any:
        if not isinstance(place, slice):
            return self[place : place + 1][0]
        start, stop, _ = place.indices(len(self))
        if start >= stop:
            return []
        found = self.places.span(start, stop)
        first = int(found[0, 0])
        content = read_bytes(self.path, first, int(found[-1].sum()) - first)
        return [content[start - first : start - first + length].decode() for start, length in found.tolist()]
