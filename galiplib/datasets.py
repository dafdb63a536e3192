"""Data sets of real pictures with captions: CUB birds, Oxford flowers, CelebA faces, COCO, CC3M, CC12M, your own.

Each is read from the layout that the authors' code expects, into one kind of item. What can't be used is left out and
named; what is used is cropped and resized as the authors do (short side 76/64 of the crop, random crop, random flip).
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from .clip_bridge import bpe_tokenizer
from .data_files import (
    SPLITS,
    BadRow,
    DataError,
    Row,
    check_key,
    find_image,
    list_images,
    read_boxes,
    read_captions,
    read_header,
    read_image,
    read_keys,
    read_table,
    square_around,
    stripped,
    without_suffix,
)
from .download import download as download  # one module opens, describes and fetches data sets
from .sampling import contact_sheet, save_png

NAMES = ("birds", "flowers", "faces", "coco", "cc3m", "cc12m", "folder")
KEEP_BYTES = 2**30  # a split that fits is decoded once: every later epoch then costs no decoding
SHEET_PICTURES = 24
STOP_WORDS = frozenset(
    "a an and are as at by for from has have he her his in into is it its of on or s she some that the their them "
    "there these they this to two up very was which while who with".split()
)


@dataclass(frozen=True)
class Layout:
    """Where a data set keeps its files, relative to its folder; `{part}` stands for the split's own folder.

    Attributes:
        images: folders of pictures; the first that has the key counts.
        texts: the folder of caption files.
        parts: names of the split's own folders, for train and for test.
        boxes: whether pictures are cropped to CUB's bounding boxes, and unseen classes are tested.
        short_names: whether a caption file is named by the key up to its first `_`.
    """

    images: tuple[str, ...] = ("images",)
    texts: str = "text"
    parts: tuple[str, str] = SPLITS
    boxes: bool = False
    short_names: bool = False

    def part(self, split: str) -> str:
        return self.parts[SPLITS.index(split)]


LAYOUTS = {
    "birds": Layout(images=("CUB_200_2011/images",), boxes=True),
    "flowers": Layout(),
    "faces": Layout(),
    "coco": Layout(images=("images/{part}/jpg", "images/{part}"), parts=("train2014", "val2014")),
    "cc3m": Layout(images=("images/{part}",), texts="text/{part}", short_names=True),
    "cc12m": Layout(short_names=True),
}
OWN_LAYOUT = """
  a.jpg, more/b.png, ...  pictures, also in folders (jpg, jpeg, png, webp, bmp)
  and their captions in one of:
    captions.csv          header image,caption (and, if you like, split: train or test); a row a caption
    captions.jsonl        {"image": "a.jpg", "caption": "..."} or "captions": [...], one a line
    a.txt, more/b.txt     beside each picture, a caption a line"""


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
    box: tuple[float, float, float, float] | None = None


class Photos:
    """One split of one data set, as `open_dataset` makes it.

    Attributes:
        name, split, folder, image_size: as asked for.
        items: what can be used.
        sizes: width and height of each item's file, pixels.
        modes: Pillow's mode of each item's file ("RGB", "L", ...).
        left_out: what can't be used, reason -> files or keys; grows if a picture turns out undecodable.
        cut: keys with a caption of more tokens than CLIP reads, once a caption.
    """

    def __init__(self, name: str, split: str, folder: Path, image_size: int) -> None:
        self.name, self.split, self.folder, self.image_size = name, split, folder, image_size
        self.items: list[Item] = []
        self.sizes: list[tuple[int, int]] = []
        self.modes: list[str] = []
        self.left_out: dict[str, list[str]] = {}
        self.cut: list[str] = []
        self.short_side = round(image_size * 76 / 64)
        self._bad_rows: set[int] = set()
        self._kept: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

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
        if item.box is None:
            return image
        try:
            return image.crop(square_around(item.box, image.size))
        except ValueError as error:
            raise BadRow("box outside the image", item.image, error) from None

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

    def check(self, progress: bool = True) -> int:
        """Decode every picture -> how many can't be; those are left out with a warning each."""
        before = len(self._bad_rows)
        for row in tqdm(range(len(self)), desc=f"{self.name} {self.split}: decoding", disable=not progress):
            try:
                self.picture(row)
            except BadRow as error:
                self._drop(row, error)
        return len(self._bad_rows) - before

    def summary(self) -> str:
        """How much there is, and what is left out and why."""
        texts = sum(len(self.items[row].captions) for row in self.good_rows)
        line = f"{self.name} {self.split}: {len(self.good_rows):,} pictures, {texts:,} captions"
        if self.left_out:
            reasons = [f"{len(names):,} {reason} ({_some(names)})" for reason, names in self.left_out.items()]
            line += f"; left out {sum(map(len, self.left_out.values())):,}: {', '.join(reasons)}"
        if self.cut:
            line += f"; {len(self.cut):,} captions are longer than CLIP reads and will be cut ({_some(self.cut)})"
        return line

    def _leave_out(self, error: BadRow) -> None:
        path = error.path
        inside = isinstance(path, Path) and path.is_relative_to(self.folder)
        name = path.relative_to(self.folder).as_posix() if inside else str(path)
        self.left_out.setdefault(error.reason, []).append(name)

    def _drop(self, row: int, error: BadRow) -> None:
        with self._lock:
            if row in self._bad_rows:
                return
            self._bad_rows.add(row)
            self._leave_out(error)
        warnings.warn(f"left out: {error}", stacklevel=3)

    def _readable(self, row: int) -> tuple[int, np.ndarray]:
        """The first row from `row` on that can be decoded, and its resized picture (h, w, 3)."""
        for step in range(len(self)):
            candidate = (int(row) + step) % len(self)
            if candidate in self._bad_rows:
                continue
            try:
                return candidate, self._resized(candidate)
            except BadRow as error:
                self._drop(candidate, error)
        raise DataError(f"none of the {len(self):,} pictures of {self.name} {self.split} can be decoded")

    def _resized(self, row: int) -> np.ndarray:
        if row in self._kept:
            return self._kept[row]
        image, short = self.picture(row), self.short_side
        long = int(short * max(image.size) / min(image.size))
        size = (short, long) if image.width <= image.height else (long, short)
        resized = np.asarray(image.resize(size, Image.Resampling.BILINEAR))  # (h, w, 3)
        if self._fits_memory:
            self._kept[row] = resized
        return resized

    @cached_property
    def _fits_memory(self) -> bool:
        shapes = np.array(self.sizes)
        return 3 * self.short_side**2 * (shapes.max(1) / shapes.min(1)).sum() <= KEEP_BYTES


def _place(room: int, share: float | None) -> int:
    """Where a crop begins that has `room` pixels to spare: in the centre (as torchvision), or at a share in [0, 1)."""
    return round(room / 2) if share is None else int(share * (room + 1))


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join([*names[:most], *(["..."] if len(names) > most else [])])


# ---------------------------------------------------------------- opening


def open_dataset(
    name: str,
    folder: str | Path | None = None,
    split: str = "train",
    image_size: int = 256,
    progress: bool = True,
    context_length: int = 77,
) -> Photos:
    """Open a split: every file is looked at once, pictures are decoded later.

    The split is the data set's own (`<split>/filenames.pickle`, or the `split` of your own table). Without one it is
    made, always the same, from the names alone: a tenth of the pictures is for testing, of birds a quarter of the
    classes, so that they are unseen as in the literature.

    Args:
        name: one of `NAMES`; "folder" is your own data (`captions.csv`, `captions.jsonl`, or a .txt a picture).
        folder: by default data/<name>.
        split: "train" or "test".
        image_size: side of the pictures that `Photos.pixels` makes, pixels.
        context_length: tokens that CLIP reads; longer captions are counted.

    Warns:
        UserWarning: once, if anything is left out or longer than CLIP reads; once, if the split had to be made.

    Raises:
        DataError: for an unknown name or split, a folder that is missing or laid out otherwise, a damaged list or
            table, or a split with no usable picture.
    """
    photos = _open(name, folder, split, image_size, progress, context_length)
    if photos.left_out or photos.cut:
        warnings.warn(photos.summary(), stacklevel=2)
    return photos


def _open(
    name: str, folder: str | Path | None, split: str, image_size: int, progress: bool, context_length: int
) -> Photos:
    if name not in NAMES:
        raise DataError(f"unknown data set {name!r}: one of {', '.join(NAMES)}")
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r} of {name}: one of {', '.join(SPLITS)}")
    if image_size < 1:
        raise DataError(f"image_size must be at least 1, not {image_size}")
    folder = Path("data") / name if folder is None else Path(folder)
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}. {_expected(name)}")
    photos = Photos(name, split, folder, image_size)
    boxes = read_boxes(folder / "CUB_200_2011") if name in LAYOUTS and LAYOUTS[name].boxes else None
    rows = _own_rows(folder, split) if name == "folder" else _rows(name, folder, split)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such pictures are left out and counted
        for row in tqdm(rows, desc=f"{name} {split}", disable=not progress):
            try:
                item, size, mode = _open_row(row, boxes)
            except BadRow as error:
                photos._leave_out(error)
                continue
            photos.items.append(item)
            photos.sizes.append(size)
            photos.modes.append(mode)
            photos.cut += [item.key for caption in item.captions if _tokens(caption, context_length) > context_length]
    if not photos.items:
        raise DataError(f"nothing usable in {folder}: {photos.summary()}. {_expected(name)}")
    return photos


def _open_row(row: Row, boxes: dict[str, Any] | None) -> tuple[Item, tuple[int, int], str]:
    check_key(row.key)
    path = find_image(row)
    captions = stripped(row.captions, row.key) if isinstance(row.captions, tuple) else read_captions(row.captions)
    size, mode = read_header(path)
    if boxes is None:
        return Item(row.key, path, captions), size, mode
    box = boxes.get(without_suffix(row.key))
    if box is None:
        raise BadRow("no bounding box", path)
    try:
        square_around(box, size)
    except ValueError as error:
        raise BadRow("box outside the image", path, error) from None
    return Item(row.key, path, captions, box), size, mode


def _rows(name: str, folder: Path, split: str) -> list[Row]:
    layout = LAYOUTS[name]
    part = layout.part(split)
    roots = [folder / image.format(part=part) for image in layout.images]
    texts = folder / layout.texts.format(part=part)
    rows = []
    for key in _keys(name, folder, split, roots):
        bare = without_suffix(key)
        if layout.short_names:
            parent, slash, last = bare.rpartition("/")
            bare = parent + slash + last.partition("_")[0]
        rows.append(Row(key, tuple(root / key for root in roots), texts / f"{bare}.txt"))
    return rows


def _keys(name: str, folder: Path, split: str, roots: list[Path]) -> list[str]:
    """The keys of a split: its list, or else what is made from the folder."""
    lists = {each: folder / each / "filenames.pickle" for each in SPLITS}
    if lists[split].is_file():
        return read_keys(lists[split])
    layout = LAYOUTS[name]
    root = next((root for root in roots if root.is_dir()), roots[0])
    keys = list(dict.fromkeys(without_suffix(key) for key in list_images(root)))
    other = lists[SPLITS[1 - SPLITS.index(split)]]
    if any("{part}" in image for image in layout.images):
        how = f"all pictures in {root}"
    elif other.is_file():
        taken = {without_suffix(key) for key in read_keys(other)}
        keys, how = [key for key in keys if key not in taken], f"all pictures that {other} does not list"
    else:
        group = (lambda key: key.partition("/")[0]) if layout.boxes else str
        share = 4 if layout.boxes else 10
        tested = held_out({group(key) for key in keys}, share)
        keys = [key for key in keys if (group(key) in tested) == (split == "test")]
        how = f"a {'quarter of the classes' if layout.boxes else 'tenth of the pictures'} is for testing"
    message = f"there is no {lists[split]}: the split is made here ({how}) and is not the literature's"
    warnings.warn(message, stacklevel=5)
    return keys


def held_out(names: Iterable[str], share: int) -> set[str]:
    """One in `share` of the names, at least one but never all, chosen by their hashes: the same on every machine."""
    ordered = sorted(set(names), key=lambda name: hashlib.sha256(name.encode("utf-8", "replace")).digest())
    return set(ordered[: min(max(1, len(ordered) // share), len(ordered) - 1)])


def _own_rows(folder: Path, split: str) -> list[Row]:
    tables = [folder / name for name in ("captions.csv", "captions.jsonl") if (folder / name).is_file()]
    if len(tables) > 1:
        raise DataError(f"{folder} holds captions.csv and captions.jsonl: keep the one that counts")
    if tables:
        captions, splits = read_table(tables[0])
        rows = [Row(key, (folder / key,), tuple(texts)) for key, texts in captions.items()]
    else:
        splits = {}
        rows = [Row(key, (folder / key,), folder / f"{without_suffix(key)}.txt") for key in list_images(folder)]
    if any(splits.values()):
        return [row for row in rows if splits[row.key] == split]
    tested = held_out((row.key for row in rows), 10)
    return [row for row in rows if (row.key in tested) == (split == "test")]


def _tokens(caption: str, limit: int) -> int:
    """Tokens of a caption, begin and end included, or 0 for one that has too few bytes to reach the limit."""
    if len(caption.encode()) - caption.count(" ") + 2 <= limit:
        return 0
    return len(bpe_tokenizer().encode(caption)) + 2


def _expected(name: str) -> str:
    if name == "folder":
        return f"Your own data should look like this:{OWN_LAYOUT}"
    layout = LAYOUTS[name]
    both = "|".join(layout.parts)
    braced = "{" + both.replace("|", ",") + "}"
    lines = [f"{layout.images[-1].format(part=braced)}/<key>.jpg"]
    if layout.boxes:
        lines.append("CUB_200_2011/images.txt, CUB_200_2011/bounding_boxes.txt")
    key = "<key up to the first _>" if layout.short_names else "<key>"
    lines.append(f"{layout.texts.format(part=braced)}/{key}.txt  (a caption a line)")
    lines.append("{train,test}/filenames.pickle  (lists of keys)")
    listed = "".join(f"\n  {line}" for line in lines)
    return (
        f"The layout should be:{listed}\n`galip download {name}` or galiplib.datasets.download({name!r}) fetches it, "
        "or says where it is to be had."
    )


# ---------------------------------------------------------------- describing


def describe(
    name: str,
    folder: str | Path | None = None,
    splits: Sequence[str] = SPLITS,
    image_size: int = 128,
    sheet: str | Path | None = None,
    check: bool = False,
    progress: bool = True,
    context_length: int = 77,
) -> dict[str, Any]:
    """Print what a data set holds, and draw a sheet of its pictures with a caption each.

    Args:
        name, folder, progress, context_length: as `open_dataset` takes them.
        splits: which to look at; the sheet shows the first.
        image_size: side of the pictures on the sheet, pixels; they are cropped as for training.
        sheet: the .png to write the sheet to; by default none is written.
        check: also decode every picture, which takes a while.

    Returns:
        {"name", "folder", "splits": {split: numbers}, "sheet": the picture}; all but the sheet fits JSON.

    Raises:
        DataError: as `open_dataset` does.
    """
    opened = {split: _open(name, folder, split, image_size, progress, context_length) for split in splits}
    if check:
        for photos in opened.values():
            photos.check(progress)
    numbers = {split: _numbers(photos) for split, photos in opened.items()}
    first = opened[splits[0]]
    print(f"{name} in {first.folder}")
    for split, values in numbers.items():
        _print_numbers(split, values, opened[split], context_length)
    picture = _sheet(first)
    if sheet is not None:
        print(f"sheet: {save_png(picture, sheet)}")
    return {"name": name, "folder": str(first.folder), "splits": numbers, "sheet": picture}


def _numbers(photos: Photos) -> dict[str, Any]:
    rows = photos.good_rows
    items = [photos.items[row] for row in rows]
    texts = [caption for item in items for caption in item.captions]
    words = Counter(word for text in texts for word in re.findall(r"[^\W\d_]+", text.lower()))
    sizes = np.array(photos.sizes)[rows]  # (N, 2)
    areas = sizes.prod(1)
    classes = {parent for item in items if (parent := item.key.rpartition("/")[0])}
    return {
        "pictures": len(items),
        "classes": len(classes),
        "captions": len(texts),
        "captions_per_picture": _spread([len(item.captions) for item in items]),
        "words_per_caption": _spread([len(text.split()) for text in texts]),
        "size": {
            "median": np.median(sizes, axis=0).astype(int).tolist(),
            "smallest": sizes[areas.argmin()].tolist(),
            "largest": sizes[areas.argmax()].tolist(),
        },
        "modes": dict(Counter(photos.modes[row] for row in rows).most_common()),
        "left_out": {reason: len(names) for reason, names in photos.left_out.items()},
        "cut_captions": len(photos.cut),
        "frequent_words": [word for word, _ in words.most_common(100) if word not in STOP_WORDS][:10],
    }


def _spread(values: Sequence[int]) -> dict[str, float]:
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)}


def _print_numbers(split: str, values: dict[str, Any], photos: Photos, context_length: int) -> None:
    spreads = {
        key: "{min} to {max}, median {median:g}".format(**values[key])
        for key in ("captions_per_picture", "words_per_caption")
    }
    size = {key: "x".join(map(str, value)) for key, value in values["size"].items()}
    classes = f" in {values['classes']:,} classes" if values["classes"] else ""
    lines = {
        "captions a picture": spreads["captions_per_picture"],
        "words a caption": spreads["words_per_caption"],
        "frequent words": ", ".join(values["frequent_words"]),
        f"over {context_length} tokens": f"{values['cut_captions']:,} captions" + _named(photos.cut),
        "size of pictures": f"median {size['median']}, smallest {size['smallest']}, largest {size['largest']}",
        "modes": ", ".join(f"{mode} {count:,}" for mode, count in values["modes"].items()),
        "left out": ", ".join(f"{len(n):,} {reason}{_named(n)}" for reason, n in photos.left_out.items()) or "none",
    }
    print(f"\n{split}: {values['pictures']:,} pictures{classes}, {values['captions']:,} captions")
    for label, text in lines.items():
        print(f"  {label:20}{text}")


def _named(names: Sequence[str]) -> str:
    return f" ({_some(names)})" if names else ""


def _sheet(photos: Photos) -> Image.Image:
    """Pictures drawn at random, always the same, each under its first caption."""
    drawn = np.random.default_rng(0).permutation(len(photos))[:SHEET_PICTURES]
    pictures, rows = photos.pixels(np.sort(drawn))
    captions = [photos.items[row].captions[0] for row in rows]
    return contact_sheet(pictures, columns=6, captions=captions, gap=10)
