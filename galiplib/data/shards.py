"""A data set in WebDataset shards: .tar files of `key.jpg` (or png, webp) with `key.json` or `key.txt` for captions.

As `galip shards` writes them or as img2dataset leaves them (CC3M, CC12M). Pictures are read by number, through an
index (`shard_index`), in an order that is a function of seed and epoch; so a run resumes exactly where it stood, and
each of several processes reads its own pictures of a batch and no others. Memory doesn't grow with the data set.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from braceexpand import braceexpand
from PIL import Image

from ..clip.bridge import ClipBridge
from .data_files import SPLITS, DataError
from .decoding import read_image
from .disk_rows import Table, read_bytes
from .embeddings import embeddings_file
from .index import ShardIndex, open_index
from .pictures import Pictures

BLOCK, WINDOW = 256, 64  # neighbours that stay together; blocks that are shuffled among each other
ENCODED = 4096  # captions that go through CLIP together, each once
TESTED = 30_000  # pictures held out at most where no split is given: as many as an FID on COCO takes


def shuffled_rows(count: int, seed: int, epoch: int, start: int, stop: int) -> np.ndarray:
    """The rows at places `start` up to `stop` of an epoch over `count` rows, (stop - start,): a shuffled order.

    Blocks of 256 neighbours come in random order, and the rows of 64 such blocks, 16,384 of them, are shuffled among
    each other, so that reads stay close together. It is what webdataset's shuffling of shards and its buffer do; but
    any part can be computed at once, without a buffer that would have to be filled again after an interruption.
    """
    _, begins = _blocks(count, seed, epoch)
    first, last = np.searchsorted(begins, [start, stop - 1], side="right") - 1
    found = np.concatenate([_window(count, seed, epoch, window) for window in range(first, last + 1)])
    return found[start - begins[first] : stop - begins[first]]


@lru_cache(2)
def _blocks(count: int, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """The order of the blocks; the place at which every window begins."""
    order = np.random.default_rng((seed, epoch)).permutation(-(-count // BLOCK))
    sizes = np.minimum(BLOCK, count - order * BLOCK)
    return order, (np.cumsum(sizes) - sizes)[::WINDOW]


@lru_cache(2)
def _window(count: int, seed: int, epoch: int, window: int) -> np.ndarray:
    """The rows of a window, shuffled."""
    starts = _blocks(count, seed, epoch)[0][window * WINDOW : (window + 1) * WINDOW] * BLOCK
    rows = np.concatenate([np.arange(start, min(start + BLOCK, count)) for start in starts])
    return np.random.default_rng((seed, 5, epoch, window)).permutation(rows)


class Shards(Pictures):
    """One split of a data set in shards, as `open_shards` makes it.

    Attributes:
        index: where pictures and captions lie.
        first: the index's row that is row 0 here.
        drawn: whether crops and flips are drawn; mini birds are shown as they are.
    """

    def __init__(
        self, index: ShardIndex, split: str, folder: Path, image_size: int, rows: range, drawn: bool = True
    ) -> None:
        super().__init__("shards", split, folder, image_size)
        self.index, self.first, self.count, self.drawn = index, rows.start, len(rows), drawn
        if not drawn:
            self.short_side = image_size

    def __len__(self) -> int:
        return self.count

    def pixels(
        self, rows: Sequence[int] | np.ndarray, random: np.random.Generator | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers (B,) -> pictures (B, S, S, 3) uint8, and the rows they show, as `Pictures.pixels`."""
        return super().pixels(rows, random if self.drawn else None)

    def picture(self, index: int) -> Image.Image:
        """A picture as RGB; raises BadRow naming shard and place, if it can't be read or decoded."""
        shard, start, length, _, _ = self.index.samples[[self.first + index]][0].tolist()
        path = self.index.shards[shard]
        where = path.with_name(f"{path.name}, picture at byte {start}")
        return read_image(where, content=read_bytes(path, start, length))

    @property
    def captions(self) -> RowCaptions:
        """The captions of every row, read where asked."""
        return RowCaptions(self)

    def draw(self, rows: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """A random caption of each row -> places among all captions of the index (B,)."""
        _, _, _, first, count = self.index.samples[self.first + rows].T
        return first + random.integers(count)

    def sentences(self, bridge: ClipBridge, progress: Callable[[range], range] = iter) -> Table:
        """The embeddings of all captions of the index, (M, E) float32 on disk: computed once a CLIP, beside the index.

        An interrupted computation goes on where it stopped; `galip shards` has made them beforehand.
        """
        texts = self.index.texts
        path = embeddings_file(bridge, texts, "captions", self.index.folder, progress, self.index.digest, ENCODED)
        return Table(path, np.float32, bridge.embed_dim, len(texts))


class RowCaptions(Sequence[list[str]]):
    """The captions of a split in shards: a list a row, read where asked."""

    def __init__(self, shards: Shards) -> None:
        self.shards = shards

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, row: int) -> list[str]:
        if not -len(self) <= row < len(self):
            raise IndexError(f"rows run from 0 to {len(self) - 1}, not {row}")
        index = self.shards.index
        _, _, _, first, count = index.samples[[self.shards.first + int(row) % len(self)]][0].tolist()
        return index.texts[first : first + count]


def open_shards(
    folder: str | Path, split: str = "train", image_size: int = 256, index: str | Path | None = None,
    progress: bool = True,
) -> Shards:  # fmt: skip
    """Open a split of a data set in shards. No picture is opened; the first time, an index is made.

    Args:
        folder: with `train/*.tar` and `test/*.tar`, as `galip shards` writes them; or with `*.tar`, as img2dataset
            does, or such a pattern as `cc12m/{00000..01242}.tar`: there the last tenth of the pictures, 30,000 at
            most, is for testing.
        image_size: side of the pictures that `Shards.pixels` makes, pixels.
        index: the folder for index and embeddings; by default `index` beside the shards.

    Warns:
        UserWarning: if samples had to be left out, or the split had to be made.

    Raises:
        DataError: naming the file: for shards that are missing, cut, unfinished, or don't match their manifest or
            index; for pictures that were stored smaller than asked for.
        OSError: if the index can't be written.
    """
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r} of shards: one of {', '.join(SPLITS)}")
    shards, whole = find_shards(str(folder), split)
    place = shards[0].parent
    manifest = _manifest(place, shards)
    _check_finished(place, shards)
    default = "index" if "{" not in str(folder) else f"index of {shards[0].stem} to {shards[-1].stem}"
    own = index and Path(index) / ("" if whole else split)
    opened = open_index(shards, own or place / default, progress)
    if opened.left_out:
        listed = ", ".join(f"{count:,} with {reason}" for reason, count in opened.left_out.items())
        warnings.warn(f"{place}: {len(opened.samples):,} pictures; left out: {listed}", stacklevel=2)
    size = manifest.get("image_size", image_size)
    if size < image_size:
        raise DataError(
            f"{place / 'manifest.json'}: the pictures were stored for {size} px: set data.image_size={size}, or make "
            f"shards with data.image_size={image_size}"
        )
    rows = range(len(opened.samples))
    if whole:
        tested = min(max(1, len(rows) // 10), TESTED)
        rows = rows[:-tested] if split == "train" else rows[-tested:]
        if not rows:
            raise DataError(f"{place} holds {len(opened.samples)} picture: too few for a training and a test split")
        warnings.warn(f"{place} has no train and test folders: its last {tested:,} are for testing", stacklevel=2)
    return Shards(opened, split, place, image_size, rows, manifest.get("drawn", True))


def find_shards(folder: str, split: str) -> tuple[list[Path], bool]:
    """The tar files of a split, sorted, and whether they hold the other splits too.

    Raises:
        DataError: if there are none, or one that a pattern names is missing.
    """
    if "{" in folder:
        shards = [Path(name) for name in braceexpand(folder)]
        if missing := [shard for shard in shards if not shard.is_file()]:
            raise DataError(f"{missing[0]} is missing ({len(missing)} of the {len(shards)} shards of {folder} are)")
        return shards, True
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"there is no folder {root}: `galip shards --out {root}` makes shards, and so does img2dataset")
    found = {each: sorted((root / each).glob("*.tar")) for each in SPLITS}
    if found[split]:
        return found[split], False
    if any(found.values()):
        raise DataError(f"{root / split} holds no .tar files: other splits are there, this one is missing")
    if not (shards := sorted(root.glob("*.tar"))):
        raise DataError(f"{root} holds no shards: right would be train/*.tar and test/*.tar, or *.tar of img2dataset")
    return shards, True


def _manifest(folder: Path, shards: Sequence[Path]) -> dict[str, Any]:
    """What `galip shards` wrote about a folder, {} if it is not from there; raises DataError if it isn't so."""
    path = folder / "manifest.json"
    if not path.is_file():
        return {}
    try:
        manifest = json.loads(path.read_text())
        sizes = {entry["name"]: entry["bytes"] for entry in manifest["shards"]}
        complete = manifest["complete"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error!r}): delete it to read the shards as they are") from None
    if not complete:
        raise DataError(f"{path}: the shards are not finished; the same `galip shards` command goes on")
    there = {shard.name: shard for shard in folder.glob("*.tar")}
    for name, size in sizes.items():
        if name not in there:
            raise DataError(f"{folder / name} is missing, {path} lists it: bring the shard back or make it anew")
        if (found := there[name].stat().st_size) != size:
            raise DataError(f"{folder / name} has {found:,} bytes, {path} says {size:,}: it is cut or another file")
    if more := [shard for shard in shards if shard.name not in sizes]:
        raise DataError(f"{more[0]} is not in {path}: it belongs to something else")
    return manifest


def _check_finished(folder: Path, shards: Sequence[Path]) -> None:
    """img2dataset writes `00000_stats.json` when a shard is finished; raises DataError for one that isn't."""
    finished = {path.name.removesuffix("_stats.json") for path in folder.glob("*_stats.json")}
    if finished and (left := [shard for shard in shards if shard.stem not in finished]):
        raise DataError(f"{left[0]} has no {left[0].stem}_stats.json: let img2dataset finish it, or delete it")
