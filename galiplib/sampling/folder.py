"""A file of captions -> a folder of pictures, with a manifest and a contact sheet; stopped and started at will."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..clip.bridge import ClipBridge
from ..data.captions import read_csv, read_lines
from ..files import write_atomically
from ..system import TextToImage
from .provenance import Origin, file_name, is_there, save_picture, save_sheet
from .recipe import Recipe
from .sample import check_count, draw

MANIFEST, SHEET = "manifest.jsonl", "sheet.png"
SHEET_PICTURES = 96  # the first ones of a long list
COLUMNS = {
    "caption": str, "seed": int, "truncation": float, "towards": str, "share": float, "seed_b": int, "turn": float,
    "late": str, "late_from": int,
}  # fmt: skip


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
    path, recipes = Path(path), []
    check_count(count)
    lines = ((number, {"caption": text}) for number, text in read_lines(path, strict=True))
    table = path.suffix.lower() == ".csv"
    for line, cells in read_csv(path, partial(_check, path), strict=True) if table else lines:
        try:
            first = {"seed": seed, **settings, **_values(cells)}
            recipes += [Recipe.of({**first, "seed": first["seed"] + i}) for i in range(count)]
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}") from None
    if not recipes:
        raise ValueError(f"{path} holds no caption: write one a line")
    return recipes


def _check(path: Path, header: list[str]) -> None:
    if unknown := [name for name in header if name not in COLUMNS]:
        raise ValueError(f"{path}: unknown column {', '.join(map(repr, unknown))}; known are {', '.join(COLUMNS)}")
    if "caption" not in header:
        raise ValueError(f"{path} has no column 'caption' in its first line")


def _values(cells: Mapping[str, str | None]) -> dict[str, Any]:
    """The caption of a row, and of its other cells those that are filled in."""
    values = {}
    for name, cell in cells.items():
        text = (cell or "").strip()
        if text or name == "caption":
            try:
                values[name] = COLUMNS[name](text)
            except ValueError:
                raise ValueError(f"{name} is no number but {text!r}") from None
    return values


def plan(recipes: Sequence[Recipe], folder: str | Path) -> dict[Path, Recipe]:
    """The files that the recipes go to. Raises FileExistsError for a folder with the pictures of another list."""
    folder, digits = Path(folder), max(4, len(str(len(recipes))))
    planned = {folder / f"{number:0{digits}d}_{file_name(recipe)}": recipe for number, recipe in enumerate(recipes, 1)}
    manifest, sheet = folder / MANIFEST, folder / SHEET
    if not manifest.exists():
        if sheet.exists():
            raise FileExistsError(f"{sheet} is there already, but no {MANIFEST}: choose another folder or move it away")
        return planned
    try:
        found = [json.loads(line)["file"] for line in manifest.read_text().splitlines()]
    except (ValueError, KeyError, TypeError):
        raise FileExistsError(f"{manifest} is there already and no manifest of pictures: move it away") from None
    names = {path.name for path in planned}
    if others := [name for name in found if name not in names]:
        raise FileExistsError(
            f"{manifest} is of another list of captions (it has {others[0]}): choose another folder or move it away"
        )
    return planned


def sample_file(
    generator: TextToImage, bridge: ClipBridge, recipes: Sequence[Recipe], folder: str | Path, origin: Origin,
    progress: bool = True,
) -> Path:  # fmt: skip
    """Draw recipes, of `read_captions` or others, into a folder: PNGs, manifest.jsonl, sheet.png.

    What is there already is not drawn again, so after a stop (Ctrl-C, a crash) the same call goes on. A line of the
    manifest holds file, caption, seed, settings, checkpoint, and the weights' fingerprint. Returns the path of the
    contact sheet, which shows the first 96 pictures.

    Raises as `draw`, FileExistsError, before anything is drawn, for a file of the folder that would be overwritten with
    another, and OSError for a folder that can't be written.
    """
    planned = plan(recipes, folder)
    todo = [path for path, recipe in planned.items() if not is_there(path, recipe, origin)]
    with tqdm(total=len(planned), initial=len(planned) - len(todo), desc="pictures", disable=not progress) as bar:
        try:
            waiting = iter(todo)
            for part in draw(generator, bridge, [planned[path] for path in todo]):
                for image, path in zip(part, waiting, strict=False):
                    save_picture(image, path, planned[path], origin)
                    bar.update()
        finally:
            _write_manifest(planned, Path(folder) / MANIFEST, origin)
    return _write_sheet(list(planned.items())[:SHEET_PICTURES], Path(folder) / SHEET, origin)


def _write_manifest(planned: dict[Path, Recipe], manifest: Path, origin: Origin) -> None:
    lines = []
    for path, recipe in planned.items():
        if path.exists():
            record = {"file": path.name, "caption": recipe.caption, "seed": recipe.seed, "settings": recipe.settings}
            lines.append(json.dumps({**record, **asdict(origin)}, ensure_ascii=False) + "\n")
    if lines:
        write_atomically(manifest, lambda stream: stream.write("".join(lines).encode()))


def _write_sheet(shown: list[tuple[Path, Recipe]], sheet: Path, origin: Origin) -> Path:
    made = np.stack([np.asarray(Image.open(path).convert("RGB")) for path, _ in shown])  # (N, H, W, 3)
    recipes = [recipe for _, recipe in shown]
    labels, scale = [f"{recipe.text} · {recipe.seed}" for recipe in recipes], max(1, round(112 / made.shape[1]))
    return save_sheet(made, recipes, sheet, origin, columns=8, captions=labels, scale=scale, font_size=11)
