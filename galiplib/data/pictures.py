"""Pictures with captions: a split of a data set, decoded, cropped and resized when asked for.

The transform is the authors': a bird is cropped to 1.5 times its box, the short side is resized to 76/64 of the image
size, then a random crop is taken and flipped half the time.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import get_worker_info
from tqdm import tqdm

from . import BadRow, DataError
from .batches import Pixels, Source
from .decoding import read_bytes, read_image, square_around
from .embeddings import digest_of
from .index import Index, Item, Rows
from .layouts import read_classes

KEEP_BYTES = 2**30  # a split that fits is decoded once: every later epoch then costs no decoding


class Photos(Source):
    """One split of one data set, wherever its files lie, as `open_dataset` or `open_shards` makes it.

    Args:
        image_size: side of the pictures that `pixels` makes.
        rows: those of the index that are the split; by default all.
        drawn: whether crops and flips are drawn; mini birds are shown as they are.
    """

    def __init__(
        self, name: str, split: str, folder: Path, image_size: int, index: Index, rows: range | None = None,
        drawn: bool = True,
    ) -> None:  # fmt: skip
        rows = range(index.pictures) if rows is None else rows
        self.name, self.split, self.folder, self.image_size = name, split, folder, image_size
        self.index, self.first, self.drawn = index, rows.start, drawn
        self.items: Sequence[Item] = Rows(index.items, rows)  # read where asked, as their captions
        self.captions: Sequence[list[str]] = Rows(index.captions, rows)
        self.short_side = round(image_size * 76 / 64) if drawn else image_size
        self.left_out: dict[str, list[str]] = {}  # reason -> files or keys; grows if a picture turns out undecodable
        self.cut: list[str] = []  # keys with a caption of more tokens than CLIP reads, once a caption
        self._bad_rows: dict[int, BadRow] = {}
        self._kept: dict[int, np.ndarray] = {}
        self._classes: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.items)

    @property
    def fingerprint(self) -> str:
        """Of the pictures' names and sizes, in bytes and pixels, and of their captions."""
        found = self.index.query("SELECT key, file, width, height, captions FROM pictures ORDER BY row")
        sizes = (f"{key!r} {os.path.getsize(file)} {facts}" for key, file, *facts in found)
        return digest_of([self.index.digest, *sizes])

    @property
    def good_rows(self) -> list[int]:
        """The rows that have not turned out undecodable so far."""
        return [row for row in range(len(self)) if row not in self._bad_rows]

    def smaller(self, side: int) -> int:
        """How many pictures have fewer pixels than `side` across or down, of those with a box what is cut out."""
        asked = "SELECT x, y, w, h, width, height FROM pictures WHERE row >= ? AND row < ? AND width IS NOT NULL"
        count = 0
        for *box, width, height in self.index.query(asked, self.first, self.first + len(self)):
            left, top, right, bottom = (0, 0, width, height)
            if box[0] is not None:
                left, top, right, bottom = square_around(tuple(box), (width, height), self.folder)
            count += min(right - left, bottom - top) < side
        return count

    def picture(self, row: int) -> Image.Image:
        """A picture as RGB, cropped to its box if it has one, in full resolution; raises DataError naming the file."""
        item = self.items[row]
        if item.span is None:
            image = read_image(item.image, upright=item.box is None)  # boxes count in pixels as stored
            return image if item.box is None else image.crop(square_around(item.box, image.size, item.image))
        where = item.image.with_name(f"{item.image.name}, picture at byte {item.span[0]}")
        return read_image(where, content=read_bytes(item.image, *item.span))

    def pixels(self, rows: Sequence[int] | np.ndarray, random: np.random.Generator | None = None) -> Pixels:
        """Pictures of B rows for training, short side resized to 76/64 of the image size, then cropped.

        Crop and flip are drawn; without `random`, the centre is cropped and nothing flipped. A picture that can't be
        decoded is left out, with a warning, and the next row's takes its place.

        Raises IndexError for a row that does not exist, DataError if no picture at all can be decoded.
        """
        rows, side = np.asarray(rows, dtype=np.int64), self.image_size
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows run from 0 to {len(self) - 1}, not from {rows.min()} to {rows.max()}")
        # Drawn before any file is opened, so that a bad picture changes no other.
        shares = None if random is None or not self.drawn else random.random((len(rows), 3))  # across, down, flip
        threads = 1 if all(int(row) in self._kept for row in rows) else min(_cpus(), 16)
        if threads > 2:
            with ThreadPoolExecutor(threads) as pool:
                found = list(pool.map(self._readable, rows))
        else:
            found = list(map(self._readable, rows))
        batch = np.empty((len(rows), side, side, 3), dtype=np.uint8)
        for place, (_, picture) in enumerate(found):
            x, y, flip = (None, None, 0) if shares is None else shares[place]
            top, left = _place(picture.shape[0] - side, y), _place(picture.shape[1] - side, x)
            crop = picture[top : top + side, left : left + side]
            batch[place] = crop[:, ::-1] if flip > 0.5 else crop
        return batch, np.array([row for row, _ in found], dtype=np.int64)

    def classes(self, rows: np.ndarray) -> np.ndarray:
        """Row numbers (B,) -> numbers (B,), equal where pictures are of one class by `layouts.read_classes`."""
        if self._classes is None:
            class_of = read_classes(self.name, self.folder, self.split)
            first: dict[Any, int] = {}  # class -> the first row of it
            known = (class_of(item.key) for item in self.items)
            numbers = [row if each is None else first.setdefault(each, row) for row, each in enumerate(known)]
            self._classes = np.array(numbers)
        return self._classes[rows]

    def _readable(self, row: int) -> tuple[int, np.ndarray]:
        """The first row from `row` on that can be decoded, and its resized picture (h, w, 3)."""
        for step in range(len(self)):
            candidate = (int(row) + step) % len(self)
            if candidate in self._bad_rows:
                continue
            try:
                return candidate, self.resized(candidate)
            except BadRow as error:
                self._drop(candidate, error)
        raise self._none_left()

    def resized(self, row: int) -> np.ndarray:
        """A picture (h, w, 3) uint8, its short side resized to 76/64 of the image size; raises BadRow."""
        if row in self._kept:
            return self._kept[row]
        image, short = self.picture(row), self.short_side
        long = int(short * max(image.size) / min(image.size))
        size = (short, long) if image.width <= image.height else (long, short)
        resized = np.asarray(image.resize(size, Image.Resampling.BILINEAR))  # (h, w, 3)
        if self.fits_memory:
            self._kept[row] = resized
        return resized

    @cached_property
    def fits_memory(self) -> bool:
        """Whether all resized pictures together are small enough to be kept; those in shards are taken not to be."""
        ((squares,),) = self.index.query(
            "SELECT sum(1.0 * max(width, height) / min(width, height)) FROM pictures WHERE row >= ? AND row < ?",
            self.first, self.first + len(self),
        )  # fmt: skip
        return squares is not None and 3 * self.short_side**2 * squares <= KEEP_BYTES

    def leave_out(self, error: BadRow) -> None:
        """Note what can't be used, and why."""
        name = str(error.path)
        if isinstance(error.path, Path) and error.path.is_relative_to(self.folder):
            name = error.path.relative_to(self.folder).as_posix()
        name = name.encode(errors="backslashreplace").decode()  # names of files need be no text
        self.left_out.setdefault(error.reason, []).append(name)

    def _drop(self, row: int, error: BadRow) -> None:
        if self._bad_rows.setdefault(row, error) is error:  # one thread wins
            self.leave_out(error)
            warnings.warn(f"left out: {error}", stacklevel=3)

    def _none_left(self) -> DataError:
        return DataError(f"none of the {len(self):,} pictures of {self.name} {self.split} can be decoded")

    def check(self, progress: bool = True) -> int:
        """Decode every picture -> how many can't be; those are left out with a warning each. DataError if none can."""
        before = len(self._bad_rows)
        for row in tqdm(range(len(self)), desc=f"{self.name} {self.split}: decoding", disable=not progress):
            try:
                self.picture(row)
            except BadRow as error:
                self._drop(row, error)
        if len(self._bad_rows) == len(self):
            raise self._none_left()
        return len(self._bad_rows) - before

    def summary(self) -> str:
        """How much there is, and what is left out and why."""
        texts = sum(len(captions) for row, captions in enumerate(self.captions) if row not in self._bad_rows)
        line = f"{self.name} {self.split}: {len(self) - len(self._bad_rows):,} pictures, {texts:,} captions"
        if self.left_out:
            reasons = [f"{len(names):,} {reason} ({some(names)})" for reason, names in self.left_out.items()]
            line += f"; left out {sum(map(len, self.left_out.values())):,}: {', '.join(reasons)}"
        if self.cut:
            line += f"; {len(self.cut):,} captions are longer than CLIP reads and will be cut ({some(self.cut)})"
        return line


def _place(room: int, share: float | None) -> int:
    """Where a crop begins that has `room` pixels to spare: in the centre (as torchvision), or at a share in [0, 1)."""
    return round(room / 2) if share is None else int(share * (room + 1))


def _cpus() -> int:
    if get_worker_info():  # one of several processes that read ahead
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few names, for a message."""
    return ", ".join([*names[:most], *(["..."] if len(names) > most else [])])
