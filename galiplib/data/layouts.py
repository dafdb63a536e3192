"""Which files belong to a split: where a data set keeps them, its lists of keys, or a split made from the names."""

from __future__ import annotations

import hashlib
import os
import pickle
import stat
import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from . import SPLITS, BadRow, DataError
from .captions import read_lines, read_table
from .decoding import SUFFIXES, Box

Identity = tuple[int, int, bool]  # of a file: its disk, its number there, whether it is no folder


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
TABLES = ("captions.csv", "captions.tsv", "captions.jsonl")
TEXTS = (".txt", ".caption")
QUIET = (".json", ".parquet", ".pickle", ".md", ".db", ".ini")  # of files that lie beside pictures and are no news
OWN_LAYOUT = """
  a.jpg, more/b.png, ...  pictures, also in folders (jpg, png, webp, ...: docs/files.md lists the endings)
  and their captions in one of:
    captions.csv or .tsv  header image,caption (and, if you like, split: train or test); a row a caption
    captions.jsonl        {"image": "a.jpg", "caption": "..."} or "captions": [...], one a line
    a.txt, more/b.txt     beside each picture, a caption a line"""


@dataclass(frozen=True)
class Row:
    """A picture as its data set lists it, before anything of it is opened."""

    key: str
    image: Path | BadRow  # where it lies, or why it can't be used
    captions: Path | tuple[str, ...]  # the file with a caption a line, or the captions


def list_rows(name: str, folder: Path, split: str, left_out: list[BadRow]) -> list[Row]:
    """What a split lists; a file is in one row of one split only, also if it has several paths.

    `left_out` is told of what lies in a folder of one's own and is in no row, by the training split. Warns if there is
    no list, so that the split is made here; raises DataError for a bad one.
    """
    find = Finder()
    if name == "folder":
        return _own_rows(folder, split, left_out, find)
    layout = LAYOUTS[name]
    keys, tested = _keys(name, folder, split)
    for key in tested if split == "train" else ():
        find.image(_roots(layout, folder, "test"), key, "picture of the test split")
    roots, texts = _roots(layout, folder, split), folder / layout.texts.format(part=layout.parts[SPLITS.index(split)])
    rows = []
    for key in keys:
        bare = without_suffix(key)
        if layout.short_names:
            parent, slash, last = bare.rpartition("/")
            bare = parent + slash + last.partition("_")[0]
        rows.append(Row(key, find.image(roots, key), find.text(texts, f"{bare}.txt")))
    return rows


def _roots(layout: Layout, folder: Path, split: str) -> list[Path]:
    return [folder / image.format(part=layout.parts[SPLITS.index(split)]) for image in layout.images]


def _keys(name: str, folder: Path, split: str) -> tuple[list[str], list[str]]:
    """The keys of a split: its list, or else what is made from the folder; and those known to be the test split's."""
    lists = {each: folder / each / "filenames.pickle" for each in SPLITS}
    tested = read_keys(lists["test"]) if lists["test"].is_file() else []
    if lists[split].is_file():
        return (tested if split == "test" else read_keys(lists[split])), tested
    layout = LAYOUTS[name]
    roots = _roots(layout, folder, split)
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
        groups = held_out({group(key) for key in keys}, share)
        tested = [key for key in keys if group(key) in groups]
        keys = [key for key in keys if (group(key) in groups) == (split == "test")]
        how = f"a {'quarter of the classes' if layout.boxes else 'tenth of the pictures'} is for testing"
    message = f"there is no {lists[split]}: the split is made here ({how}) and is not the literature's"
    warnings.warn(message, stacklevel=4)  # at whoever called `open_dataset`
    return keys, tested


def held_out(names: Iterable[str], share: int) -> set[str]:
    """One in `share` of the names, at least one but never all, chosen by their hashes: the same on every machine."""
    ordered = sorted(set(names), key=lambda name: hashlib.sha256(name.encode("utf-8", "replace")).digest())
    return set(ordered[: min(max(1, len(ordered) // share), len(ordered) - 1)])


def _own_rows(folder: Path, split: str, left_out: list[BadRow], find: Finder) -> list[Row]:
    said = left_out if split == "train" else []
    files = list_files(folder, said)
    pictures, tables = _ending(files, SUFFIXES), [name for name in files if name.lower() in TABLES]
    if len(tables) > 1:
        raise DataError(f"{folder} holds {' and '.join(tables)}: keep the one that counts")
    if tables:
        table = read_table(folder / tables[0])
        ordered = sorted(table.captions, key=lambda key: table.splits[key] != "test")  # which is to be met first
        images = {key: find.image([folder], key) for key in ordered}
        rows = [Row(key, images[key], tuple(texts)) for key, texts in table.captions.items()]
        splits, used, said[:0] = table.splits, {*pictures, *tables}, table.left_out
        new = [name for name in pictures if name not in splits and _identity(folder / name) not in find.met]
        _say(said, f"picture that {tables[0]} doesn't list", folder, new)
    else:
        texts = _ending(files, TEXTS)[::-1]  # .txt after .caption
        named = {_folded(_stem(name)): name for name in texts} | {_stem(name): name for name in texts}
        stems = {key: _stem(key) for key in pictures}
        beside = {key: named.get(stem) or named.get(_folded(stem), f"{stem}.txt") for key, stem in stems.items()}
        rows = [Row(key, find.image([folder], key), folder / text) for key, text in beside.items()]
        splits, used = {}, {*pictures, *texts}
        _say(said, "captions without a picture", folder, set(texts).difference(beside.values()))
    _say(said, "file that is not read", folder, {*files}.difference(used, _ending(files, QUIET)))
    if any(splits.values()):
        return [row for row in rows if splits[row.key] == split]
    tested = held_out((row.key for row in rows), 10)
    return [row for row in rows if (row.key in tested) == (split == "test")]


def _ending(names: Iterable[str], endings: tuple[str, ...]) -> list[str]:
    return [name for name in names if name.lower().endswith(endings)]


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _say(left_out: list[BadRow], reason: str, folder: Path, names: Iterable[str]) -> None:
    left_out += [BadRow(reason, folder / name) for name in sorted(names)]


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


# ---------------------------------------------------------------- files


def list_files(folder: Path, left_out: list[BadRow]) -> list[str]:
    """All files in a folder and below it, links followed, sorted, as paths relative to it; hidden ones don't count.

    A folder that can't be opened is noted; one that has been met, as behind a link to one above, is not entered again.
    """
    found, starts, met = list[str](), [str(folder)], set[Identity | None]()
    for start in starts:  # first what is no link, so that a picture's own path counts
        for root, folders, names in os.walk(
            start, onerror=lambda error: left_out.append(BadRow("folder that can't be opened", Path(error.filename)))
        ):
            own = _identity(root)
            if own in met:
                folders.clear()
                continue
            met.add(own)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            starts += [os.path.join(root, name) for name in folders if os.path.islink(os.path.join(root, name))]
            way = Path(root).relative_to(folder).as_posix()
            prefix = "" if way == "." else f"{way}/"
            found += [prefix + name for name in names if not name.startswith(".")]
    return sorted(found)


def list_images(folder: Path) -> list[str]:
    """All pictures in a folder and those below it, as `list_files` has them."""
    return _ending(list_files(folder, []), SUFFIXES)


def _identity(path: str | Path) -> Identity | None:
    """What tells a file or folder from all others, whatever its paths; None if there is none, however odd the name."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, stat.S_ISREG(found.st_mode)


def _folded(name: str) -> str:
    """The same for names that differ only in capitals or in how letters are composed (a Mac takes é apart)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


class Finder:
    """Finds files by their names, also by those with other capitals or composed in another way; each picture once."""

    def __init__(self) -> None:
        self.met: dict[Identity | None, str] = {}  # pictures -> what to say of one that is found again
        self._names = lru_cache(16)(self._names_in)

    def image(self, folders: Sequence[Path], key: str, again: str = "second path to a picture") -> Path | BadRow:
        """A picture, as named or with one of `SUFFIXES`, in the first folder that has it; BadRow: why there is none."""
        try:
            check_key(key)
        except BadRow as error:
            return error
        names = [key + suffix for suffix in (("", *SUFFIXES) if key.lower().endswith(SUFFIXES) else SUFFIXES)]
        for look in (Path.joinpath, self._alike):
            for path in (look(folder, name) for folder in folders for name in names):
                own = _identity(path)
                if own in self.met:
                    return BadRow(self.met[own], path)
                if own and own[-1]:
                    self.met[own] = again
                    return path
        return BadRow("missing image", folders[0] / key)

    def text(self, folder: Path, name: str) -> Path:
        """A file of captions; as named, if there is none."""
        exact = folder / name
        return exact if _identity(exact) else self._alike(folder, name)

    def _alike(self, folder: Path, name: str) -> Path:
        """The only file of this name, as named if there is none or more than one."""
        place = folder
        for part in name.split("/"):
            others = [] if _identity(place / part) else self._names(place).get(_folded(part), [])
            place /= others[0] if len(others) == 1 else part
        return place

    @staticmethod
    def _names_in(folder: Path) -> dict[str, list[str]]:
        found = defaultdict(list)
        with suppress(OSError):
            for name in os.listdir(folder):
                found[_folded(name)].append(name)
        return found


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
