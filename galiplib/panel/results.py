"""What the sampler panel has made: files in memory, to be shown, downloaded and kept."""

from __future__ import annotations

import io
import re
import time
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch

from ..files import write_atomically
from ..images import png_bytes
from ..sampling.animation import encode_animation
from ..sampling.provenance import Origin, file_name, stem_of
from ..sampling.recipe import Recipe
from ..sampling.sample import Samples, draw, nearest
from ..system import TextToImage
from . import html as panel_html
from .jobs import Job

PNG = "image/png"
KINDS = {"gif": "image/gif", "mp4": "video/mp4"}
TILE, CELL, LARGE = 180, 84, 360  # width of a picture in the views, pixels


@dataclass(frozen=True)
class Drawing:
    """One result."""

    title: str  # what it is, for the status and the history
    files: dict[str, bytes]  # by name: PNGs or one animation
    kind: str  # MIME type of the files
    shown: str  # HTML for its view
    first: bytes  # the first picture as a PNG
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the panel's controls, to come back to

    @classmethod
    def of_pictures(cls, made: Samples, origin: Origin, title: str, settings: Mapping[str, Any]) -> Self:
        """Single pictures side by side, each a link that downloads it."""
        width = LARGE if len(made) == 1 else TILE
        files, shown = _linked(made, origin, width)
        labels = [f"seed {seed}" for seed in made.seeds]
        if made.scores:
            labels = [f"{label} · {score:.3f}" for label, score in zip(labels, made.scores, strict=True)]
        return cls(title, files, PNG, panel_html.figures(shown, labels, width), next(iter(files.values())), settings)

    @classmethod
    def of_grid(cls, made: Samples, origin: Origin, columns: int, title: str, settings: Mapping[str, Any]) -> Self:
        """Captions below each other, seeds side by side."""
        files, cells = _linked(made, origin, CELL)
        rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
        heads = [f"seed {seed}" for seed in made.seeds[:columns]]
        shown = panel_html.table(rows, made.captions[::columns], heads)
        return cls(title, files, PNG, shown, next(iter(files.values())), settings)

    @classmethod
    def of_walk(cls, made: Samples, origin: Origin, kind: str, title: str, settings: Mapping[str, Any]) -> Self:
        """An animation; `kind` is gif or mp4."""
        side = made.images.shape[-1]
        comment = f"{title}; {origin.checkpoint} {origin.weights}"
        data = encode_animation(made.images, kind, scale=max(1, round(224 / side)), comment=comment)
        name = f"{stem_of(made.recipes[0].caption)}_walk.{kind}"
        shown = panel_html.picture(data, KINDS[kind], LARGE, side, title)
        first = png_bytes(made.images[0], origin.metadata(made.recipes[0]))
        return cls(title, {name: data}, KINDS[kind], panel_html.figures([shown], [title], LARGE), first, settings)

    def download(self) -> str:
        """HTML of a button that saves the file, or a zip of the files."""
        if len(self.files) == 1:
            name, data = next(iter(self.files.items()))
            return panel_html.download(data, self.kind, name, "Download", button=True)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, data in self.files.items():
                archive.writestr(name, data)
        name = re.sub(r"_seed.*", "", next(iter(self.files))) + ".zip"
        return panel_html.download(buffer.getvalue(), "application/zip", name, "Download", button=True)

    def keep(self, folder: str | Path) -> list[Path]:
        """Write the files, under another name where one is taken by something else; OSError names what can't be."""
        return [_write(Path(folder) / name, data) for name, data in self.files.items()]


class Made(NamedTuple):
    """What `drawing_job` returns."""

    drawing: Drawing
    seconds: float  # that its pictures took
    notes: list[str]  # what CLIP left out of the captions


def drawing_job(
    generator: TextToImage, origin: Origin, recipes: Sequence[Recipe], make: Callable[[Samples, Origin], Drawing],
    best: int | None = None,
) -> Job:  # fmt: skip
    """Draw recipes, keep the `best` nearest to CLIP if asked for, make a drawing of them: a job -> `Made`."""
    started, done, parts = time.perf_counter(), 0, []
    steps = draw(generator, generator.bridge, recipes)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)  # words that CLIP doesn't read
        parts.append(next(steps))
    for part in steps:
        done += len(parts[-1])
        yield done, len(recipes)
        parts.append(part)
    made = Samples(torch.cat(parts), list(recipes))
    if best is not None:
        made = nearest(generator.bridge, made, best)
    seconds = time.perf_counter() - started
    return Made(make(made, origin), seconds, [str(warning.message) for warning in warned])


def _linked(made: Samples, origin: Origin, width: int) -> tuple[dict[str, bytes], list[str]]:
    """PNG files, and HTML of each picture, a link that downloads it."""
    files, shown = {}, []
    for image, recipe in zip(made.images, made.recipes, strict=True):
        name, data = file_name(recipe), png_bytes(image, origin.metadata(recipe))
        picture = panel_html.picture(data, PNG, width, image.shape[-1], f"{recipe.text}, seed {recipe.seed}")
        files[name] = data
        shown.append(panel_html.download(data, PNG, name, picture))
    return files, shown


def _write(path: Path, data: bytes) -> Path:
    names = (path.with_stem(f"{path.stem}_{number}") if number > 1 else path for number in count(1))
    path = next(name for name in names if not name.exists() or name.read_bytes() == data)
    if not path.exists():
        write_atomically(path, lambda stream: stream.write(data))
    return path
