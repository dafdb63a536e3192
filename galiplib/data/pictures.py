"""Pictures with captions: a split of a data set, decoded, cropped and resized when asked for.

The transform is the authors': a bird is cropped to 1.5 times its box, the short side is resized to 76/64 of the image
size, then a random crop is taken and flipped half the time.
"""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import get_worker_info
from tqdm import tqdm

from .data_files import BadRow, Box, DataError
from .decoding import read_image, square_around

KEEP_BYTES = 2**30  # a split that fits is decoded once: every later epoch then costs no decoding


@dataclass(frozen=True)
class Item:
    """A picture and its captions.

    Attributes:
        key: its name in the data set.
        image: the file.
        captions: at least one, none empty.
        box: x, y, w, h in pixels of what it shows; the picture is cropped around it.
    """

    key: str
    image: Path
    captions: tuple[str, ...]
    box: Box | None = None


class Pictures(ABC):
    """What all splits of photographs have in common, wherever their files lie: crops and flips, and what is left out.

    Attributes:
        name, split, folder, image_size: as asked for.
        left_out: what can't be used, reason -> files or keys; grows if a picture turns out undecodable.
    """

    labels = None  # the truth about photographs is not known

    def __init__(self, name: str, split: str, folder: Path, image_size: int) -> None:
        self.name, self.split, self.folder, self.image_size = name, split, folder, image_size
        self.left_out: dict[str, list[str]] = {}
        self.short_side = round(image_size * 76 / 64)
        self._bad_rows: dict[int, BadRow] = {}
        self._kept: dict[int, np.ndarray] = {}

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def picture(self, index: int) -> Image.Image:
        """A picture as RGB; raises BadRow naming the file, if it can't be decoded."""

    @property
    def fits_memory(self) -> bool:
        """Whether all resized pictures together are few enough to be kept."""
        return False

    def pixels(
        self, rows: Sequence[int] | np.ndarray, random: np.random.Generator | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pictures for training, short side resized to 76/64 of the image size, then cropped.

        A picture that can't be decoded is left out, with a warning, and the next row's takes its place.

        Args:
            rows: B row numbers.
            random: draws crop and flip of every picture; without it, the centre is cropped and nothing flipped.

        Returns:
            (B, S, S, 3) uint8, and the (B,) rows that they show.

        Raises:
            IndexError: for a row that does not exist.
            DataError: if no picture at all can be decoded.
        """
        rows, side = np.asarray(rows, dtype=np.int64), self.image_size
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows run from 0 to {len(self) - 1}, not from {rows.min()} to {rows.max()}")
        # Drawn before any file is opened, so that a bad picture changes no other.
        draws = [(None, None, 0)] * len(rows) if random is None else random.random((len(rows), 3))
        threads = 1 if all(int(row) in self._kept for row in rows) else min(_cpus(), 16)
        if threads > 2:
            with ThreadPoolExecutor(threads) as pool:
                found = list(pool.map(self._readable, rows))
        else:
            found = [self._readable(row) for row in rows]
        batch = np.empty((len(rows), side, side, 3), dtype=np.uint8)
        for index, ((_, picture), (x, y, flip)) in enumerate(zip(found, draws, strict=True)):
            top, left = (_place(picture.shape[axis] - side, share) for axis, share in ((0, y), (1, x)))
            crop = picture[top : top + side, left : left + side]
            batch[index] = crop[:, ::-1] if flip > 0.5 else crop
        return batch, np.array([row for row, _ in found], dtype=np.int64)

    def leave_out(self, error: BadRow) -> None:
        """Note what can't be used, and why."""
        path = error.path
        inside = isinstance(path, Path) and path.is_relative_to(self.folder)
        name = path.relative_to(self.folder).as_posix() if inside else str(path)
        self.left_out.setdefault(error.reason, []).append(name)

    def _drop(self, row: int, error: BadRow) -> None:
        if self._bad_rows.setdefault(row, error) is error:  # one thread wins
            self.leave_out(error)
            warnings.warn(f"left out: {error}", stacklevel=3)

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

    def _none_left(self) -> DataError:
        return DataError(f"none of the {len(self):,} pictures of {self.name} {self.split} can be decoded")

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


class Photos(Pictures):
    """One split of one data set, as `open_dataset` makes it.

    Attributes:
        items: what can be used.
        sizes: width and height of each item's file, pixels.
        modes: Pillow's mode of each item's file ("RGB", "L", ...).
        cut: keys with a caption of more tokens than CLIP reads, once a caption.
    """

    def __init__(self, name: str, split: str, folder: Path, image_size: int) -> None:
        super().__init__(name, split, folder, image_size)
        self.items: list[Item] = []
        self.sizes: list[tuple[int, int]] = []
        self.modes: list[str] = []
        self.cut: list[str] = []

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def captions(self) -> list[list[str]]:
        """The captions of every item; items may have different numbers of them."""
        return [list(item.captions) for item in self.items]

    @property
    def good_rows(self) -> list[int]:
        """The rows that have not turned out undecodable so far."""
        return [row for row in range(len(self)) if row not in self._bad_rows]

    def picture(self, index: int) -> Image.Image:
        """An item's picture as RGB, cropped to its box if it has one, in full resolution.

        Raises:
            DataError: naming the file, if it can't be decoded.
        """
        item = self.items[index]
        image = read_image(item.image, upright=item.box is None)  # boxes count in pixels as stored
        return image if item.box is None else image.crop(square_around(item.box, image.size, item.image))

    def check(self, progress: bool = True) -> int:
        """Decode every picture -> how many can't be; those are left out with a warning each.

        Raises:
            DataError: if none can.
        """
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
        texts = sum(len(self.items[row].captions) for row in self.good_rows)
        line = f"{self.name} {self.split}: {len(self.good_rows):,} pictures, {texts:,} captions"
        if self.left_out:
            reasons = [f"{len(names):,} {reason} ({some(names)})" for reason, names in self.left_out.items()]
            line += f"; left out {sum(map(len, self.left_out.values())):,}: {', '.join(reasons)}"
        if self.cut:
            line += f"; {len(self.cut):,} captions are longer than CLIP reads and will be cut ({some(self.cut)})"
        return line

    @cached_property
    def fits_memory(self) -> bool:
        """Whether all resized pictures together are small enough to be kept."""
        shapes = np.array(self.sizes)
        return 3 * self.short_side**2 * (shapes.max(1) / shapes.min(1)).sum() <= KEEP_BYTES


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
