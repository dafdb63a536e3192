"""Which files belong to a split: where every data set keeps them, its lists of keys, or a split made from the names."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .data_files import SPLITS, DataError, Row, list_images, read_keys, read_table, without_suffix


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
NAMES = (*LAYOUTS, "folder")
OWN_LAYOUT = """
  a.jpg, more/b.png, ...  pictures, also in folders (jpg, jpeg, png, webp, bmp)
  and their captions in one of:
    captions.csv          header image,caption (and, if you like, split: train or test); a row a caption
    captions.jsonl        {"image": "a.jpg", "caption": "..."} or "captions": [...], one a line
    a.txt, more/b.txt     beside each picture, a caption a line"""


def list_rows(name: str, folder: Path, split: str) -> list[Row]:
    """What a split lists, before anything of it is opened.

    Warns:
        UserWarning: if there is no list, so that the split is made here.

    Raises:
        DataError: for a list or table that can't be read.
    """
    if name == "folder":
        return _own_rows(folder, split)
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
    warnings.warn(message, stacklevel=5)  # at whoever called `open_dataset` or `describe`
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


def expected(name: str) -> str:
    """How the folder of a data set should look, for messages."""
    if name == "folder":
        return f"Your own data should look like this:{OWN_LAYOUT}"
    layout = LAYOUTS[name]
    braced = "{" + ",".join(layout.parts) + "}"
    lines = [f"{layout.images[-1].format(part=braced)}/<key>.jpg"]
    if layout.boxes:
        lines.append("CUB_200_2011/images.txt, CUB_200_2011/bounding_boxes.txt")
    key = "<key up to the first _>" if layout.short_names else "<key>"
    lines.append(f"{layout.texts.format(part=braced)}/{key}.txt  (a caption a line)")
    lines.append("{train,test}/filenames.pickle  (lists of keys)")
    listed = "".join(f"\n  {line}" for line in lines)
    return (
        f"The layout should be:{listed}\n`galip download {name}` or datasets.download({name!r}) "
        "fetches it, or says where it is to be had."
    )
