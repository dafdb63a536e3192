"""Which files belong to a split: where a data set keeps them, its lists of keys, or a split made from the names."""

from __future__ import annotations

import hashlib
import os
import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import SPLITS, BadRow, DataError
from .captions import read_lines, read_table
from .decoding import SUFFIXES, Box


@dataclass(frozen=True)
class Layout:
    """Where a data set keeps its files, relative to its folder; `{part}` stands for the split's own folder."""

    images: tuple[str, ...] = ("images",)  # folders of pictures; the first that has the key counts
    texts: str = "text"  # the folder of caption files
    parts: tuple[str, str] = SPLITS  # names of the split's own folders, for train and for test
    boxes: bool = False  # whether pictures are cropped to CUB's bounding boxes, and unseen classes are tested
    short_names: bool = False  # whether a caption file is named by the key up to its first `_`


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


@dataclass(frozen=True)
class Row:
    """A picture as its data set lists it, before anything of it is opened."""

    key: str
    bases: tuple[Path, ...]  # where the picture may lie, with or without suffix
    captions: Path | tuple[str, ...]  # the file with a caption a line, or the captions


def list_rows(name: str, folder: Path, split: str) -> list[Row]:
    """What a split lists. Warns if there is no list, so that the split is made here; raises DataError for a bad one."""
    if name == "folder":
        return _own_rows(folder, split)
    layout = LAYOUTS[name]
    part = layout.parts[SPLITS.index(split)]
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
    warnings.warn(message, stacklevel=4)  # at whoever called `open_dataset`
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


# ---------------------------------------------------------------- lists of keys


class _ListUnpickler(pickle.Unpickler):
    """Reads lists of plain values and refuses everything that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        found = f"{module}.{name}"
        raise DataError(
            f"holds more than a list of strings or numbers ({found}): refused, for it could run any program"
        )


def read_keys(path: Path) -> list[str]:
    """The keys in a `filenames.pickle`, white space stripped, written by Python 2 or 3.

    Raises DataError for a damaged file, and for one that holds anything but a list of strings; none of it is run.
    """
    keys = _read_list(path, (str, bytes), "strings: it must list the keys of the split's pictures")
    return [(_decoded(key) if isinstance(key, bytes) else key).strip() for key in keys]


def read_classes(name: str, folder: Path, split: str) -> Callable[[str], Any]:
    """Key -> its class, by `class_info.pickle`, a number for each of the listed keys, or CUB's folders; else None.

    Raises DataError as `read_keys` does.
    """
    path = folder / split / "class_info.pickle"
    if path.is_file():
        numbers = _read_list(path, (int,), "whole numbers: it must list the classes of the split's pictures")
        return dict(zip(read_keys(path.with_name("filenames.pickle")), numbers, strict=False)).get
    boxes = name in LAYOUTS and LAYOUTS[name].boxes
    return lambda key: key.rpartition("/")[0] or None if boxes else None


def _read_list(path: Path, kinds: tuple[type, ...], what: str) -> list[Any]:
    try:
        with path.open("rb") as stream:
            found = _ListUnpickler(stream, encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{path} {error}") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DataError(f"{path} is no readable pickle ({error}): get it once more") from None
    if not isinstance(found, (list, tuple)) or not all(isinstance(each, kinds) for each in found):
        raise DataError(f"{path} holds no list of {what}")
    return list(found)


def _decoded(key: bytes) -> str:
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key.decode("latin1")


def check_key(key: str) -> None:
    """Raises BadRow for a key that names no file below its folder: empty, absolute or with `..`."""
    parts = key.replace("\\", "/").split("/")
    if not key or "\0" in key or ".." in parts or not parts[0] or Path(key).anchor:
        raise BadRow("unsafe key", repr(key))


def without_suffix(key: str) -> str:
    """The key without the suffix of a picture, if it has one."""
    return os.path.splitext(key)[0] if key.lower().endswith(SUFFIXES) else key


def list_images(folder: Path) -> list[str]:
    """All pictures in a folder and those below it, sorted, as paths relative to it; hidden ones don't count."""
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        seen = [name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
        found += [(Path(root).relative_to(folder) / name).as_posix() for name in seen]
    return sorted(found)


def find_image(row: Row) -> Path:
    """The file of a row's picture: as named, or with one of `SUFFIXES`; raises BadRow if there is none."""
    for base in row.bases:
        for suffix in ("", *SUFFIXES) if base.name.lower().endswith(SUFFIXES) else SUFFIXES:
            if os.path.isfile(f"{base}{suffix}"):  # never raises, however odd the name
                return base.with_name(base.name + suffix)
    raise BadRow("missing image", row.bases[0])


# ---------------------------------------------------------------- boxes


def read_fields(path: Path, form: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each line that is not empty; raises DataError for one without the fields of `form`."""
    for number, line in read_lines(path):
        if len(fields := line.split()) != len(form.split()):
            raise DataError(f"{path}, line {number}: {line!r} is not of the form {form!r}")
        yield number, fields


def read_boxes(folder: Path) -> dict[str, Box]:
    """CUB's bounding boxes -> {`<class>/<name>`: (x, y, w, h) in pixels}; raises DataError for missing or bad files."""
    images, lines = folder / "images.txt", folder / "bounding_boxes.txt"
    for path in (images, lines):
        if not path.is_file():
            raise DataError(
                f"{path} is missing: the birds are cropped to the boxes that images.txt and bounding_boxes.txt name; "
                "both come with CUB_200_2011.tgz"
            )
    keys = {identity: without_suffix(name) for _, (identity, name) in read_fields(images, "id name")}
    boxes = {}
    for number, (identity, *values) in read_fields(lines, "id x y w h"):
        try:
            x, y, w, h = map(float, values)
        except ValueError:
            raise DataError(f"{lines}, line {number}: {values} are not all numbers") from None
        if identity in keys:
            boxes[keys[identity]] = x, y, w, h
    return boxes
