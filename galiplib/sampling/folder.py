"""A file of captions -> a folder of pictures, with a manifest and a contact sheet; stopped and started at will."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..clip.bridge import ClipBridge
from ..files import write_atomically
from ..images import contact_sheet, save_png
from ..systems.galip import Generator
from .provenance import Origin, file_name, is_there, save_picture
from .recipe import Recipe
from .sample import check_count, draw

MANIFEST, SHEET = "manifest.jsonl", "sheet.png"
SHEET_PICTURES = 96  # the first ones of a long list
COLUMNS = {
    "caption": str, "seed": int, "truncation": float, "towards": str, "share": float, "seed_b": int, "turn": float,
    "late": str, "late_from": int,
}  # fmt: skip


@dataclass(frozen=True)
class Planned:
    """A picture to be made: its recipe and the file that it goes to."""

    recipe: Recipe
    path: Path


def read_captions(path: str | Path, count: int = 1, seed: int = 0, **settings: Any) -> list[Recipe]:
    """The recipes in a file, `count` of each line with the seeds `seed`, `seed` + 1, ...

    Args:
        path: text with a caption a line, or a .csv with a column `caption` and others of `Recipe`; a cell that is
            filled in overrides `seed` and `settings`.
        settings: for all lines, as `sample` takes them.

    Raises:
        ValueError: naming file and line, for a caption that is empty, an unknown column, a value out of range, a file
            that is not UTF-8 or holds no caption.
        OSError: if it can't be read.
    """
    path = Path(path)
    check_count(count)
    recipes = []
    for line, values in _lines(path):
        try:
            first = {"seed": seed, **settings, **values}
            recipes += [Recipe.of({**first, "seed": first["seed"] + i}) for i in range(count)]
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from None
    if not recipes:
        raise ValueError(f"{path} holds no caption: write one a line")
    return recipes


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, values) of each line with a caption; empty lines of a text are passed over."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error}") from None
    if path.suffix.lower() != ".csv":
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                yield number, {"caption": line.strip()}
        return
    reader = csv.DictReader(text.splitlines(keepends=True))
    names = [name.strip() for name in reader.fieldnames or []]
    if unknown := [name for name in names if name not in COLUMNS]:
        raise ValueError(f"{path}: unknown column {', '.join(map(repr, unknown))}; known are {', '.join(COLUMNS)}")
    if "caption" not in names:
        raise ValueError(f"{path} has no column 'caption' in its first line")
    for row in reader:
        values = {}
        if None in row:
            raise ValueError(f"{path}, line {reader.line_num}: more cells than columns; a comma needs quotes around it")
        for name, cell in zip(names, row.values(), strict=True):
            if name == "caption" or (cell or "").strip():
                try:
                    values[name] = COLUMNS[name]((cell or "").strip())
                except ValueError:
                    raise ValueError(f"{path}, line {reader.line_num}: {name} is no number but {cell!r}") from None
        yield reader.line_num, values


def plan(recipes: list[Recipe], folder: str | Path, origin: Origin) -> tuple[list[Planned], int]:
    """The files that the recipes go to, and how many of them are there already.

    Raises:
        FileExistsError: naming a file of the folder that holds something else than it would get.
    """
    folder = Path(folder)
    digits = max(4, len(str(len(recipes))))
    planned = [
        Planned(recipe, folder / f"{number:0{digits}d}_{file_name(recipe)}") for number, recipe in enumerate(recipes, 1)
    ]
    done = sum(is_there(one.path, origin.metadata(one.recipe)) for one in planned)
    manifest, sheet = folder / MANIFEST, folder / SHEET
    if manifest.exists():
        names = {one.path.name for one in planned}
        others = [name for name in _files_of(manifest) if name not in names]
        if others:
            raise FileExistsError(
                f"{manifest} is of another list of captions (it has {others[0]}): choose another folder or move it away"
            )
    elif sheet.exists():
        raise FileExistsError(f"{sheet} is there already, but no {MANIFEST}: choose another folder or move it away")
    return planned, done


def _files_of(manifest: Path) -> list[str]:
    try:
        return [json.loads(line)["file"] for line in manifest.read_text().splitlines()]
    except (ValueError, KeyError, TypeError):
        raise FileExistsError(f"{manifest} is there already and no manifest of pictures: move it away") from None


def sample_file(
    generator: Generator, bridge: ClipBridge, recipes: list[Recipe], folder: str | Path, origin: Origin,
    progress: bool = True,
) -> Path:  # fmt: skip
    """Draw recipes, of `read_captions` or others, into a folder: PNGs, manifest.jsonl, sheet.png.

    What is there already is not drawn again, so after a stop (Ctrl-C, a crash) the same call goes on. A line of the
    manifest holds file, caption, seed, settings, checkpoint, and the weights' fingerprint.

    Returns:
        the contact sheet's path; it shows the first 96 pictures.

    Raises:
        FileExistsError: before anything is drawn, for a file of the folder that would be overwritten with another.
        ValueError, FloatingPointError: as `draw`. OSError: for a folder that can't be written.
    """
    folder = Path(folder)
    planned, done = plan(recipes, folder, origin)
    todo = [one for one in planned if not one.path.exists()] if done else planned
    with tqdm(total=len(planned), initial=done, desc="pictures", disable=not progress) as bar:
        try:
            parts = draw(generator, bridge, [one.recipe for one in todo]) if todo else ()
            waiting = iter(todo)
            for part in parts:
                for image, one in zip(part, waiting, strict=False):
                    save_picture(image, one.path, one.recipe, origin)
                    bar.update()
        finally:
            _write_manifest(planned, folder, origin)
    return _write_sheet(planned[:SHEET_PICTURES], folder, origin)


def _write_manifest(planned: list[Planned], folder: Path, origin: Origin) -> None:
    lines = []
    for one in planned:
        if one.path.exists():
            record = {"file": one.path.name, "caption": one.recipe.caption, "seed": one.recipe.seed}
            lines.append(json.dumps({**record, "settings": one.recipe.settings, **asdict(origin)}, ensure_ascii=False))
    if lines:
        write_atomically(folder / MANIFEST, lambda stream: stream.write(("\n".join(lines) + "\n").encode()))


def _write_sheet(planned: list[Planned], folder: Path, origin: Origin) -> Path:
    pictures = []
    for one in planned:
        with Image.open(one.path) as picture:
            pictures.append(np.asarray(picture.convert("RGB")))
    labels = [f"{one.recipe.text} · {one.recipe.seed}" for one in planned]
    scale = max(1, round(112 / pictures[0].shape[0]))
    sheet = contact_sheet(np.stack(pictures), columns=8, captions=labels, scale=scale, font_size=11)
    return save_png(sheet, folder / SHEET, {"checkpoint": origin.checkpoint, "weights": origin.weights})
