"""The one reader of captions: text with one a line, tables and JSON lines, in a folder or in a shard.

A file that many pictures hang on raises `DataError` with file and line; one that spoils a single picture raises
`BadRow`, which the caller may count and pass over.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from . import SPLITS, BadRow, DataError

IMAGE_FIELDS, CAPTION_FIELDS = ("image", "file", "filename", "file_name"), ("caption", "text")
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # its byte order marks


def _encoding(start: bytes) -> str:
    return "utf-16" if start[:2] in UTF_16 else "utf-8-sig"


@contextmanager
def open_text(path: Path, newline: str | None = None, strict: bool = False) -> Iterator[TextIO]:
    """A text file, decoded by its byte order mark, else as UTF-8; `newline` as `open` takes it.

    What can't be decoded becomes a substitute character; if `strict`, it raises DataError.
    """
    with path.open("rb") as stream:
        encoding = _encoding(stream.read(2))
    with path.open(encoding=encoding, errors="strict" if strict else "replace", newline=newline) as text:
        try:
            yield text
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is no UTF-8 text: {error}") from None


# ---------------------------------------------------------------- of one picture


def read_captions(path: Path) -> tuple[str, ...]:
    """The captions of a file, one a line, stripped; raises BadRow if it is missing or holds none."""
    if not os.path.isfile(path):
        raise BadRow("missing captions", path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadRow("unreadable captions", path, error.strerror) from None
    return captions_of(content, path)


def captions_of(content: bytes, where: Path | str) -> tuple[str, ...]:
    """The captions in the bytes of a text file, one a line; raises BadRow if there are none."""
    text = content.decode(_encoding(content), "replace")
    return stripped(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), where)


def captions_in(fields: Mapping[str, Any]) -> list[str] | None:
    """The captions that a line of a table or a JSON object names, [] if none; None if they are no texts."""
    found: Any = next((fields[name] for name in ("captions", *CAPTION_FIELDS) if fields.get(name)), [])
    found = [found] if isinstance(found, str) else found
    return found if isinstance(found, list) and all(isinstance(text, str) for text in found) else None


def captions_of_json(content: bytes, where: str) -> list[str]:
    """The captions in the bytes of a JSON object, not stripped; [] if it names none. Raises BadRow for no JSON."""
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        raise BadRow("unreadable captions", where) from None
    return (isinstance(fields, dict) and captions_in(fields)) or []


def stripped(captions: Sequence[str], where: Path | str) -> tuple[str, ...]:
    """The captions without white space at their ends and without empty ones; raises BadRow if none is left."""
    kept = tuple(text for caption in captions if (text := caption.strip()))
    if not kept:
        raise BadRow("empty captions", where)
    try:
        "".join(kept).encode()
    except UnicodeEncodeError:  # half a surrogate pair, as JSON may hold it
        raise BadRow("unreadable captions", where) from None
    return kept


# ---------------------------------------------------------------- of many pictures


def read_lines(path: Path, strict: bool = False, newline: str | None = None) -> Iterator[tuple[int, str]]:
    """Line number and text, stripped, of each line that is not empty."""
    with open_text(path, newline, strict) as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield number, line.strip()


def read_csv(
    path: Path, check: Callable[[list[str]], None], strict: bool = False
) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells of each row of a table; raises DataError for too many cells or a quote that stays open.

    `check` is given the names of the columns, stripped and in small letters, and raises if they won't do.
    """
    with open_text(path, "", strict) as stream:
        reader = csv.DictReader(stream, restval="", strict=True)  # else a quote left open would swallow the rest
        try:
            header = [(name or "").strip().lower() for name in reader.fieldnames or []]
            check(header)
            reader.fieldnames = header
            for cells in reader:
                if None in cells:
                    raise DataError(
                        f"{path}, line {reader.line_num}: more cells than columns; "
                        'a caption with a comma in it must stand in "quotes"'
                    )
                yield reader.line_num, cells
        except csv.Error as error:
            raise DataError(f"{path}, after line {reader.line_num}: {error}; are the quotes in pairs?") from None


def read_json_lines(path: Path, form: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line that is not empty; raises DataError for one that is not of this form."""
    for number, line in read_lines(path, newline="\n"):
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: is no JSON ({error})") from None
        if not isinstance(fields, dict):
            raise DataError(f"{path}, line {number}: must be of the form {form}")
        yield number, fields


def read_table(path: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Captions from a `captions.csv` or `captions.jsonl` -> {image: captions}, {image: split, "" if none is given}.

    Raises DataError with file and line, for a line or header of another form.
    """
    images, texts = " or ".join(IMAGE_FIELDS), " or ".join(CAPTION_FIELDS)
    form = '{"image": "a.jpg", "caption": "..."}, or have "captions": [...]'

    def check(header: list[str]) -> None:
        if not set(header) & set(IMAGE_FIELDS) or not set(header) & set(CAPTION_FIELDS):
            raise DataError(
                f"{path}: the header is {','.join(header)!r}; it needs the columns {images} and {texts}, "
                "with a comma between them (and, if you like, split)"
            )

    lines: Iterator[tuple[int, Mapping[str, Any]]]
    lines = read_csv(path, check) if path.suffix == ".csv" else read_json_lines(path, form)
    captions: dict[str, list[str]] = {}
    splits: dict[str, str] = {}
    for number, fields in lines:
        if not set(fields) & {"captions", *CAPTION_FIELDS}:  # of a table, the header has been looked at
            raise DataError(f"{path}, line {number}: must be of the form {form}")
        image = next((fields[name] for name in IMAGE_FIELDS if fields.get(name)), None)
        found, split = captions_in(fields), fields.get("split") or ""
        if not isinstance(image, str) or not image.strip():
            raise DataError(f"{path}, line {number}: names no image; the field is {images}")
        if found is None:
            raise DataError(f"{path}, line {number}: the captions must be a text or a list of texts")
        split = split.strip().lower() if isinstance(split, str) else split
        if split not in ("", *SPLITS):
            raise DataError(f"{path}, line {number}: the split must be train or test, not {split!r}")
        key = image.strip().replace("\\", "/")
        captions.setdefault(key, []).extend(found)
        if splits.setdefault(key, split) != split:
            raise DataError(f"{path}, line {number}: {key} is in two splits, {splits[key]!r} and {split!r}")
    given = set(splits.values())
    if "" in given and len(given) > 1:
        bare = next(key for key, split in splits.items() if not split)
        raise DataError(f"{path}: {bare} has no split while others have: give all of them one, or none")
    return captions, splits
