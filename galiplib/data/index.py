"""Where the pictures and the captions of a data set lie: a SQLite file, read by row number.

Any picture can be read at any time, so a run can resume exactly and processes can share a batch; nothing in memory
grows with the data set. Of a folder of pictures the index is made at every opening and is gone with it; that of tar
files, which takes longer, lies beside them and is made once.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, overload
from urllib.parse import quote

import numpy as np

from . import DataError
from .decoding import Box
from .embeddings import digest_of

T = TypeVar("T")
AT_ONCE = 1024  # rows that are read together where all are asked for
SCHEMA = """
CREATE TABLE IF NOT EXISTS pictures (row INTEGER PRIMARY KEY, key BLOB, file BLOB, start INTEGER, bytes INTEGER,
    x REAL, y REAL, w REAL, h REAL, width INTEGER, height INTEGER, mode TEXT, first INTEGER, captions INTEGER);
CREATE TABLE IF NOT EXISTS captions (place INTEGER PRIMARY KEY, caption TEXT);
CREATE TABLE IF NOT EXISTS shards (name TEXT PRIMARY KEY, bytes INTEGER);
CREATE TABLE IF NOT EXISTS left_out (reason TEXT, pictures INTEGER, named TEXT);
CREATE TABLE IF NOT EXISTS about (digest TEXT);
"""


@dataclass(frozen=True)
class Item:
    """A picture and its captions."""

    key: str  # its name in the data set
    image: Path  # the file that it is, or lies in
    captions: tuple[str, ...]  # at least one, none empty
    box: Box | None = None  # of what it shows; the picture is cropped around it
    span: tuple[int, int] | None = None  # of a picture inside a tar file: its first byte, how many there are
    size: tuple[int, int] | None = field(default=None, compare=False)  # width, height; known where it has been opened
    mode: str = field(default="", compare=False)  # Pillow's, "RGB" or "L" for example


class Rows(Sequence[T]):
    """Rows of an index as a sequence, read where asked: `read(start, stop)` has those that the index so numbers."""

    def __init__(self, read: Callable[[int, int], list[T]], rows: range) -> None:
        self.read, self.first, self.size = read, rows.start, len(rows)

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> list[T]: ...
    def __getitem__(self, place: int | slice) -> T | list[T]:
        if isinstance(place, slice):
            start, stop, _ = place.indices(self.size)
            return self.read(self.first + start, self.first + stop)
        if not -self.size <= place < self.size:
            raise IndexError(f"rows run from 0 to {self.size - 1}, not {place}")
        return self[(start := int(place) % self.size) : start + 1][0]

    def __iter__(self) -> Iterator[T]:
        for start in range(0, self.size, AT_ONCE):
            yield from self[start : start + AT_ONCE]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)


class Writer:
    """Fills an index's file; if not `passing`, goes on after an interruption: what isn't committed is not there."""

    def __init__(self, path: Path, passing: bool = False) -> None:
        self.database = sqlite3.connect(path)
        self.database.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" * passing + SCHEMA)
        self.pictures, self.captions = (
            self.database.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("pictures", "captions")
        )

    def add(self, item: Item) -> None:
        box, span, size = item.box or (None,) * 4, item.span or (None,) * 2, item.size or (None,) * 2
        where = os.fsencode(item.key), os.fsencode(item.image)
        values = (self.pictures, *where, *span, *box, *size, item.mode, self.captions, len(item.captions))
        self.database.execute("INSERT INTO pictures VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)", values)
        self.database.executemany("INSERT INTO captions VALUES (?,?)", enumerate(item.captions, self.captions))
        self.pictures, self.captions = self.pictures + 1, self.captions + len(item.captions)

    def finish(self) -> None:
        """Note the digest, which says that the index is whole, and close it."""
        captions = self.database.execute("SELECT caption FROM captions ORDER BY place")
        self.database.execute("INSERT INTO about VALUES (?)", (digest_of(caption for (caption,) in captions),))
        self.database.commit()
        self.database.close()


class Index:
    """An index that has been made; `root` is what the pictures' files are relative to. Raises DataError if damaged."""

    def __init__(self, path: Path, root: Path = Path()) -> None:
        self.path, self.root = path, root
        self._opened: tuple[int, sqlite3.Connection] | None = None
        ((self.pictures, places),) = self.query("SELECT (SELECT count(*) FROM pictures), count(*) FROM captions")
        self.texts = Rows(self._texts, range(places))  # all captions, one after the other
        if not (digest := self.query("SELECT digest FROM about")):
            raise self._damaged("unfinished")
        self.digest: str = digest[0][0]  # a hash of all captions
        self.shards = dict(self.query("SELECT name, bytes FROM shards"))  # the tar files
        self.left_out = self.query("SELECT * FROM left_out ORDER BY rowid")  # what can't be used, how many, names

    def _damaged(self, how: object) -> DataError:
        return DataError(f"{self.path} is damaged ({how}): delete {self.path.parent} to have it made again")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}  # every process opens the file for itself

    def query(self, sql: str, *values: int) -> list[tuple]:
        """Rows of an SQL query; threads may share the connection, which only reads, a forked process may not."""
        try:
            if self._opened is None or self._opened[0] != os.getpid():
                address = f"file:{quote(str(self.path.absolute()))}?mode=ro&immutable=1"
                self._opened = os.getpid(), sqlite3.connect(address, uri=True, check_same_thread=False)
            return self._opened[1].execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise self._damaged(error) from None

    def items(self, start: int, stop: int) -> list[Item]:
        """The rows from `start` up to `stop`."""
        rows = self.query("SELECT * FROM pictures WHERE row >= ? AND row < ? ORDER BY row", start, stop)
        if not rows:
            return []
        texts = iter(self._texts(rows[0][-2], rows[-1][-2] + rows[-1][-1]))
        return [self._item(row, tuple(islice(texts, row[-1]))) for row in rows]

    def _item(self, row: tuple, captions: tuple[str, ...]) -> Item:
        _, key, file, start, length, x, y, w, h, width, height, mode, _, _ = row
        return Item(
            os.fsdecode(key), self.root / os.fsdecode(file), captions, None if x is None else (x, y, w, h),
            None if start is None else (start, length), None if width is None else (width, height), mode,
        )  # fmt: skip

    def captions(self, start: int, stop: int) -> list[list[str]]:
        """Those of the rows from `start` up to `stop`."""
        return [list(item.captions) for item in self.items(start, stop)]

    def _texts(self, start: int, stop: int) -> list[str]:
        found = self.query("SELECT caption FROM captions WHERE place >= ? AND place < ? ORDER BY place", start, stop)
        return [caption for (caption,) in found]

    def spans(self, rows: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers (B,) -> each one's first caption's place and number of captions (B,)."""
        sql = "SELECT first, captions FROM pictures WHERE row = ?"
        first, count = np.array([self.query(sql, int(row))[0] for row in rows], dtype=np.int64).reshape(-1, 2).T
        return first, count


def passing_index(items: Iterable[Item]) -> Index:
    """An index of these items, in a temporary file that goes when nothing uses it any more."""
    handle, name = tempfile.mkstemp(prefix="galip-index-")
    os.close(handle)
    path = Path(name)
    try:
        writer = Writer(path, passing=True)
        for item in items:
            writer.add(item)
        writer.finish()
        index = Index(path)
    except BaseException:
        path.unlink()
        raise
    weakref.finalize(index, _remove, path, os.getpid())
    return index


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked process has the index too
        path.unlink(missing_ok=True)
