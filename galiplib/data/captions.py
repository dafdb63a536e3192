"""The one reader of captions: text with one a line, tables and JSON lines, in a folder or in a shard.

A file that many pictures hang on raises `DataError` with file and line; one that spoils a single picture raises
`BadRow`, which the caller may count and pass over.
"""

from __future__ import annotations

import codecs
import csv
import json
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from . import SPLITS, BadRow, DataError
from .decoding import SUFFIXES

IMAGE_FIELDS, CAPTION_FIELDS = ("image", "file", "filename", "file_name"), ("caption", "text")
BYTE_ORDER_MARKS = {  # -> encoding; UTF-32's come first, for one of them begins as one of UTF-16's does
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
NOT_TEXT = "caption that is no UTF-8 text"
MARKED = "galiplib.marked"  # how to decode: half a character, as no text can hold, marks what can't be
codecs.register_error(MARKED, lambda error: ("\udfff", error.end))  # type: ignore[attr-defined]


def _encoding(start: bytes) -> str:
    """By its byte order mark, else UTF-8."""
    return next((name for mark, name in BYTE_ORDER_MARKS.items() if start.startswith(mark)), "utf-8-sig")


def is_text(text: str) -> bool:
    """Whether all of a text could be decoded, and it is text: no half of a surrogate pair, which JSON may hold, no NUL.

    Where there are NULs, a file is UTF-16 without a byte order mark, or none of text.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


@contextmanager
def open_text(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """A text file, decoded by its byte order mark, else as UTF-8; `newline` as `open` takes it.

    What can't be decoded becomes half a character: see `is_text`.
    """
    with path.open("rb") as stream:
        encoding = _encoding(stream.read(4))
    with path.open(encoding=encoding, errors=MARKED, newline=newline) as text:
        yield text


# ---------------------------------------------------------------- of one picture


def read_captions(path: Path, left_out: list[BadRow] | None = None) -> tuple[str, ...]:
    """The captions of a file, one a line; raises BadRow if it is missing. Else as `kept`."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # of a name that no file can have
        raise BadRow("missing captions", path) from None
    except OSError as error:
        raise BadRow("unreadable captions", path, error.strerror) from None
    return captions_of(content, path, left_out)


def captions_of(content: bytes, where: Path | str, left_out: list[BadRow] | None = None) -> tuple[str, ...]:
    """The captions in the bytes of a text file, one a line, as `kept`."""
    return kept(re.split("\r\n|\r|\n", content.decode(_encoding(content), MARKED)), where, left_out)


def captions_in(fields: Mapping[str, Any]) -> list[str] | None:
    """The captions that a line of a table or a JSON object names, [] if none; None if they are no texts."""
    found: Any = next((fields[name] for name in ("captions", *CAPTION_FIELDS) if fields.get(name)), [])
    found = [found] if isinstance(found, str) else found
    return found if isinstance(found, list) and all(isinstance(text, str) for text in found) else None


def captions_of_json(content: bytes, where: str) -> list[str]:
    """The captions in the bytes of a JSON object, not stripped; [] if it names none. Raises BadRow for no JSON."""
    try:
        fields = json.loads(content.decode(_encoding(content), MARKED))
    except (ValueError, RecursionError):
        raise BadRow("unreadable captions", where) from None
    return (isinstance(fields, dict) and captions_in(_lower(fields))) or []


def _lower(fields: dict[str, Any]) -> dict[str, Any]:
    return {name.strip().lower(): value for name, value in fields.items()}


def kept(captions: Iterable[str], where: Path | str, left_out: list[BadRow] | None) -> tuple[str, ...]:
    """The captions without white space at their ends and without empty ones.

    One that is no text is left out and noted, by its number; if there is no other, that is raised, a BadRow, as is a
    picture that has none at all.
    """
    texts, bad = [], list[BadRow]()
    for number, caption in enumerate(captions, 1):
        if not is_text(caption):
            bad.append(BadRow(NOT_TEXT, Path(f"{where}:{number}")))
        elif text := caption.replace("\ufeff", "").strip():  # where files were put together, a mark is in between
            texts.append(text)
    if not texts:
        raise bad[0] if bad else BadRow("empty captions", where)
    if left_out is not None:
        left_out += bad
    return tuple(texts)


# ---------------------------------------------------------------- of many pictures


def read_lines(path: Path, newline: str | None = None) -> Iterator[tuple[int, str]]:
    """Line number and text, stripped, of each line that is not empty."""
    with open_text(path, newline) as stream:
        for number, line in enumerate(stream, 1):
            if text := line.replace("\ufeff", "").strip():
                yield number, text


def read_csv(path: Path, check: Callable[[list[str]], None]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells of each row of a table, separated by tabs if its name ends in .tsv, else by commas.

    `check` is given the names of the columns, stripped and in small letters, and raises if they won't do. Raises
    DataError for too many cells, a quote that stays open, two columns of one name.
    """
    with open_text(path, "") as stream:
        comma = "\t" if path.suffix.lower() == ".tsv" else ","
        # strict, else a quote that is left open swallows the rest
        reader = csv.DictReader(stream, restval="", strict=True, delimiter=comma)
        try:
            header = [(name or "").strip().lower() for name in reader.fieldnames or []]
            check(header)
            if twice := [name for name in header if name and header.count(name) > 1]:
                raise DataError(f"{path}: two columns are called {twice[0]!r}; give a picture a row for each caption")
            reader.fieldnames = header
            for cells in reader:
                if None in cells:
                    raise DataError(
                        f"{path}, line {reader.line_num}: more cells than columns; "
                        'a caption with a comma in it must stand in "quotes"'
                    )
                for line in (line for cell in cells.values() for line in cell.splitlines()[1:]):
                    if line.partition(comma)[0].strip(' "').lower().endswith(SUFFIXES):
                        raise DataError(f"{path}, before line {reader.line_num}: a quote stays open up to there")
                yield reader.line_num, cells
        except csv.Error as error:
            raise DataError(f"{path}, after line {reader.line_num}: {error}; are the quotes in pairs?") from None


def read_json_lines(path: Path, form: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line that is not empty, its names in small letters.

    Raises DataError for one that is not of this form.
    """
    for number, line in read_lines(path, newline="\n"):
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: is no JSON ({error})") from None
        if not isinstance(fields, dict):
            raise DataError(f"{path}, line {number}: must be of the form {form}")
        yield number, _lower(fields)


@dataclass
class Table:
    """What a `captions.csv`, `.tsv` or `.jsonl` says of pictures, by their paths below its folder."""

    captions: dict[str, list[str]] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)  # "" if none is given
    left_out: list[BadRow] = field(default_factory=list)  # captions that are no text


def read_table(path: Path) -> Table:
    """Captions from a table; raises DataError with file and line, for a line or header of another form."""
    images, texts = " or ".join(IMAGE_FIELDS), " or ".join(CAPTION_FIELDS)
    form = '{"image": "a.jpg", "caption": "..."}, or have "captions": [...]'

    def check(header: list[str]) -> None:
        if not set(header) & set(IMAGE_FIELDS) or not set(header) & set(CAPTION_FIELDS):
            raise DataError(
                f"{path}: the header is {','.join(header)!r}; it needs the columns {images} and {texts}, "
                "with a comma between them (and, if you like, split)"
            )

    lines: Iterator[tuple[int, Mapping[str, Any]]]
    lines = read_json_lines(path, form) if path.suffix.lower() == ".jsonl" else read_csv(path, check)
    table, roots = Table(), {Path(os.path.abspath(path.parent)), path.parent.resolve()}
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
        key = _key(image.strip(), roots)
        if table.splits.setdefault(key, split) != split:
            raise DataError(f"{path}, line {number}: {key} is in two splits, {table.splits[key]!r} and {split!r}")
        good = [text for text in found if is_text(text)] if is_text(key) else []
        table.left_out += [BadRow(NOT_TEXT, Path(f"{path}:{number}"))] * (len(found) - len(good))
        if good or not found:
            table.captions.setdefault(key, []).extend(good)
    given = set(table.splits.values())
    if "" in given and len(given) > 1:
        bare = next(key for key, split in table.splits.items() if not split)
        raise DataError(f"{path}: {bare} has no split while others have: give all of them one, or none")
    return table


def _key(name: str, roots: Iterable[Path]) -> str:
    """The path of a picture below its table's folder, written in one way; one that is not there stays as it is."""
    path = posixpath.normpath(name.replace("\\", "/"))
    inside = (root for root in roots if os.path.isabs(path) and Path(path).is_relative_to(root))
    return next((Path(path).relative_to(root).as_posix() for root in inside), path)
