"""A file of captions -> a folder of pictures, with a manifest and a contact sheet; stopped and started at will."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..clip.bridge import ClipBridge
from ..data.captions import is_text, read_csv, read_json_lines, read_lines
from ..data.decoding import read_image
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

NOTED = ("file", "settings", *Origin.__dataclass_fields__)  # in a line of a manifest, besides the above


def read_captions(path: str | Path, count: int = 1, seed: int = 0, **settings: Any) -> list[Recipe]:
    """The recipes in a file, `count` of each line with the seeds `seed`, `seed` + 1, ...; one that comes again goes on.

    Args:
        path: text with a caption a line; a .csv or .tsv with a column `caption` and others of `Recipe`, in which a cell
            that is filled in overrides `seed` and `settings`; a .jsonl of the like, as our own manifest.jsonl is.
        settings: for all lines, as `sample` takes them.

    Raises:
        ValueError: naming file and line, for a caption that is empty or can't be decoded, an unknown column, a value
            out of range; or for a file that holds no caption.
        OSError: if it can't be read.
    """
    path, recipes, again = Path(path), [], Counter[Any]()
    check_count(count)
    table = _values, read_csv(path, partial(_check, path))
    manifest = _of_manifest, read_json_lines(path, '{"caption": "..."}')
    texts = dict, ((number, {"caption": text}) for number, text in read_lines(path))
    kinds: dict[str, tuple[Callable, Iterator]] = {".csv": table, ".tsv": table, ".jsonl": manifest}
    values, lines = kinds.get(path.suffix.lower(), texts)
    for line, fields in lines:
        try:
            if not all(is_text(text) for text in fields.values() if isinstance(text, str)):
                raise ValueError("is no text in UTF-8, nor in UTF-16 with its byte order mark: save the file as UTF-8")
            own = values(fields)
            first = {"seed": seed + count * again[own.get("caption")], **settings, **own}
            again[own.get("caption")] += "seed" not in own
            recipes += [Recipe.of({**first, "seed": first["seed"] + i}) for i in range(count)]
        except (ValueError, TypeError) as error:
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


def _of_manifest(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a line of a manifest says of the recipe: the weights are whatever is asked for now."""
    own = {name: value for name, value in fields.items() if name not in NOTED and value is not None}
    return {**(fields.get("settings") or {}), **own}


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
        found = [fields["file"] for _, fields in read_json_lines(manifest, '{"file": "..."}')]
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
    weights = {name: value for name, value in asdict(origin).items() if name != "engine"}  # that is in the PNGs
    for path, recipe in planned.items():
        if path.exists():
            record = {"file": path.name, "caption": recipe.caption, "seed": recipe.seed, "settings": recipe.settings}
            lines.append(json.dumps({**record, **weights}, ensure_ascii=False) + "\n")
    if lines:
        write_atomically(manifest, lambda stream: stream.write("".join(lines).encode()))


def _write_sheet(shown: list[tuple[Path, Recipe]], sheet: Path, origin: Origin) -> Path:
    made = np.stack([np.asarray(read_image(path)) for path, _ in shown])  # (N, H, W, 3)
    recipes = [recipe for _, recipe in shown]
    labels, scale = [f"{recipe.text} · {recipe.seed}" for recipe in recipes], max(1, round(112 / made.shape[1]))
    return save_sheet(made, recipes, sheet, origin, columns=8, captions=labels, scale=scale, font_size=11)
