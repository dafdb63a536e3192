"""Data sets of real pictures with captions: CUB birds, Oxford flowers, CelebA faces, COCO, CC3M, CC12M, your own.

Each is read from the layout that the authors' code expects, into one kind of item; what can't be used is left out and
named. The door to the modules behind it: `data_layouts` (which files), `data_files` and `data_pictures` (reading them),
`data_photos` (the pictures of a split), `data_summary` (numbers and sheet).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ..clip.bridge import bpe_tokenizer
from ..images import save_png
from . import summary as data_summary
from .data_files import (
    SPLITS,
    BadRow,
    Box,
    DataError,
    Row,
    check_key,
    find_image,
    read_boxes,
    read_captions,
    stripped,
    without_suffix,
)
from .decoding import read_header, square_around
from .download import download
from .layouts import LAYOUTS, NAMES, expected, list_rows
from .pictures import Item, Photos

__all__ = ["NAMES", "DataError", "Item", "Photos", "describe", "download", "open_dataset"]


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
        raise DataError(f"there is no folder {folder}. {expected(name)}")
    photos = Photos(name, split, folder, image_size)
    boxes = read_boxes(folder / "CUB_200_2011") if name in LAYOUTS and LAYOUTS[name].boxes else None
    rows = list_rows(name, folder, split)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such pictures are left out and counted
        for row in tqdm(rows, desc=f"{name} {split}", disable=not progress):
            try:
                item, size, mode = _open_row(row, boxes)
            except BadRow as error:
                photos.leave_out(error)
                continue
            photos.items.append(item)
            photos.sizes.append(size)
            photos.modes.append(mode)
            photos.cut += [item.key for caption in item.captions if _is_cut(caption, context_length)]
    if not photos.items:
        raise DataError(f"nothing usable in {folder}: {photos.summary()}. {expected(name)}")
    return photos


def _open_row(row: Row, boxes: dict[str, Box] | None) -> tuple[Item, tuple[int, int], str]:
    check_key(row.key)
    path = find_image(row)
    captions = stripped(row.captions, row.key) if isinstance(row.captions, tuple) else read_captions(row.captions)
    size, mode = read_header(path)
    if boxes is None:
        return Item(row.key, path, captions), size, mode
    box = boxes.get(without_suffix(row.key))
    if box is None:
        raise BadRow("no bounding box", path)
    square_around(box, size, path)  # only to see that it can be cut out
    return Item(row.key, path, captions, box), size, mode


def _is_cut(caption: str, context_length: int) -> bool:
    room = context_length - 2  # besides begin and end
    if len(caption.encode()) - caption.count(" ") <= room:  # no token is shorter than a byte
        return False
    return sum(map(_pieces, caption.split())) > room


@lru_cache(2**17)
def _pieces(word: str) -> int:
    """Tokens of a word: no token spans two, and words repeat far more often than captions do."""
    return len(bpe_tokenizer().encode(word))


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
    opened = [_open(name, folder, split, image_size, progress, context_length) for split in splits]
    if check:
        for photos in opened:
            photos.check(progress)
    picture = data_summary.draw_sheet(opened[0])  # before the counting: it may find pictures that can't be decoded
    print(f"{name} in {opened[0].folder}")
    numbers = {photos.split: data_summary.numbers(photos) for photos in opened}
    for photos in opened:
        data_summary.print_numbers(photos, numbers[photos.split])
    if sheet is not None:
        print(f"sheet: {save_png(picture, sheet)}")
    return {"name": name, "folder": str(opened[0].folder), "splits": numbers, "sheet": picture}
