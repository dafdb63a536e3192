"""Files of other people's data sets, read with care: lists of keys, captions, boxes and tables.

Nothing here trusts a file. A file that a whole data set hangs on raises `DataError`; one that spoils a single
picture raises `BadRow`, which the caller may count and pass over.
"""

from __future__ import annotations

import csv
import json
import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
IMAGE_FIELDS, CAPTION_FIELDS = ("image", "file", "filename", "file_name"), ("caption", "text")
SPLITS = ("train", "test")
Box = tuple[float, float, float, float]  # x, y, w, h in pixels


class DataError(ValueError):
    """A data set that is missing, damaged or laid out otherwise; the message names the file and what would be right."""


class BadRow(DataError):
    """One picture that can't be used: `reason` in a few words, `path` the file (or key) at fault."""

    def __init__(self, reason: str, path: Path | str, detail: object = "") -> None:
        super().__init__(f"{path}: {reason}" + (f" ({detail})" if str(detail) else ""))
        self.reason, self.path = reason, path


@dataclass(frozen=True)
class Row:
    """A picture as its data set lists it, before anything of it is opened.

    Attributes:
        key: its name in the list.
        bases: where the picture may lie, with or without suffix.
        captions: the file with a caption a line, or the captions.
    """

    key: str
    bases: tuple[Path, ...]
    captions: Path | tuple[str, ...]


# ---------------------------------------------------------------- lists of keys


class _ListUnpickler(pickle.Unpickler):
    """Reads lists of strings and refuses everything that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise DataError(f"holds more than a list of strings ({module}.{name}): refused, for it could run any program")


def read_keys(path: Path) -> list[str]:
    """The keys in a `filenames.pickle`, white space stripped, written by Python 2 or 3.

    Raises:
        DataError: for a damaged file, and for one that holds anything but a list of strings; none of it is run.
    """
    try:
        with path.open("rb") as stream:
            keys = _ListUnpickler(stream, encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{path} {error}") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DataError(f"{path} is no readable pickle ({error}): get it once more") from None
    if not isinstance(keys, (list, tuple)) or not all(isinstance(key, (str, bytes)) for key in keys):
        raise DataError(f"{path} holds no list of strings: it must list the keys of the split's pictures")
    return [(_decoded(key) if isinstance(key, bytes) else key).strip() for key in keys]


def _decoded(key: bytes) -> str:
    try:
        return key.decode("utf-8")
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
        inner = Path(root).relative_to(folder)
        found += [
            (inner / name).as_posix() for name in names if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    return sorted(found)


def find_image(row: Row) -> Path:
    """The file of a row's picture: as named, or with one of `SUFFIXES`; raises BadRow if there is none."""
    for base in row.bases:
        named = [base] if base.name.lower().endswith(SUFFIXES) else []
        for path in [*named, *(base.with_name(base.name + suffix) for suffix in SUFFIXES)]:
            if os.path.isfile(path):  # never raises, however odd the name
                return path
    raise BadRow("missing image", row.bases[0])


# ---------------------------------------------------------------- captions, boxes


def read_captions(path: Path) -> tuple[str, ...]:
    """The captions of a file, one a line, stripped; raises BadRow if it is missing or holds none."""
    if not os.path.isfile(path):
        raise BadRow("missing captions", path)
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise BadRow("unreadable captions", path, error.strerror) from None
    return stripped(text.split("\n"), path)


def stripped(captions: list[str] | tuple[str, ...], path: Path | str) -> tuple[str, ...]:
    """The captions without white space at their ends and without empty ones; raises BadRow if none is left."""
    kept = tuple(text for caption in captions if (text := caption.strip()))
    if not kept:
        raise BadRow("empty captions", path)
    return kept


def read_fields(path: Path, form: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each line that is not empty; `form` names as many fields as a line must have.

    Raises:
        DataError: for a line of another form.
    """
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), 1):
        fields = line.split()
        if len(fields) not in (0, len(form.split())):
            raise DataError(f"{path}, line {number}: {line.strip()!r} is not of the form {form!r}")
        if fields:
            yield number, fields


def read_boxes(folder: Path) -> dict[str, Box]:
    """CUB's bounding boxes -> {`<class>/<name>`: (x, y, w, h) in pixels}.

    Raises:
        DataError: if `images.txt` or `bounding_boxes.txt` is missing, or a line of them is of another form.
    """
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


# ---------------------------------------------------------------- own data


def read_table(path: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Captions from a `captions.csv` or `captions.jsonl` -> {image: captions}, {image: split, "" if none is given}.

    Raises:
        DataError: with file and line, for a line or header of another form.
    """
    captions: dict[str, list[str]] = {}
    splits: dict[str, str] = {}
    for number, fields in (_csv_lines if path.suffix == ".csv" else _json_lines)(path):
        image = next((fields[name] for name in IMAGE_FIELDS if fields.get(name)), None)
        texts = next((fields[name] for name in ("captions", *CAPTION_FIELDS) if fields.get(name) is not None), [])
        texts = [texts] if isinstance(texts, str) else texts
        split = fields.get("split") or ""
        if not isinstance(image, str) or not image.strip():
            raise DataError(f"{path}, line {number}: names no image; the field is {_either(IMAGE_FIELDS)}")
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise DataError(f"{path}, line {number}: the captions must be a text or a list of texts, not {texts!r}")
        split = split.strip().lower() if isinstance(split, str) else split
        if split not in ("", *SPLITS):
            raise DataError(f"{path}, line {number}: the split must be train or test, not {split!r}")
        key = image.strip().replace("\\", "/")
        captions.setdefault(key, []).extend(texts)
        if splits.setdefault(key, split) != split:
            raise DataError(f"{path}, line {number}: {key} is in two splits, {splits[key]!r} and {split!r}")
    given = set(splits.values())
    if "" in given and len(given) > 1:
        bare = next(key for key, split in splits.items() if not split)
        raise DataError(f"{path}: {bare} has no split while others have: give all of them one, or none")
    return captions, splits


def _csv_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)  # else a quote left open would swallow the rest
        try:
            header = [(name or "").strip().lower() for name in reader.fieldnames or []]
            if not set(header) & set(IMAGE_FIELDS) or not set(header) & set(CAPTION_FIELDS):
                raise DataError(
                    f"{path}: the header is {','.join(header)!r}; it needs the columns {_either(IMAGE_FIELDS)} and "
                    f"{_either(CAPTION_FIELDS)}, with a comma between them (and, if you like, split)"
                )
            reader.fieldnames = header
            for fields in reader:
                if None in fields:
                    raise DataError(
                        f"{path}, line {reader.line_num}: more fields than the header has; "
                        'a caption with a comma in it must stand in "quotes"'
                    )
                yield reader.line_num, fields
        except csv.Error as error:
            raise DataError(f"{path}, after line {reader.line_num}: {error}; are the quotes in pairs?") from None


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: is no JSON ({error})") from None
            if not isinstance(fields, dict) or not set(fields) & {"captions", *CAPTION_FIELDS}:
                raise DataError(
                    f'{path}, line {number}: must be of the form {{"image": "a.jpg", "caption": "..."}}, '
                    'or have "captions": [...]'
                )
            yield number, fields


def _either(names: tuple[str, ...]) -> str:
    return " or ".join(names)
