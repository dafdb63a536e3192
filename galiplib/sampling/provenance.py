"""Where a picture comes from: the weights' name and fingerprint, written into every PNG and read back from it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..checkpoints.onnx import engine_of
from ..checkpoints.store import fingerprint
from ..files import WeightsError
from ..images import Picture, contact_sheet, save_png
from ..system import TextToImage
from .recipe import Recipe

KEYS = ("caption", "seed", "checkpoint", "weights", "averaged", "settings", "precision", "engine")
NOT_NOTED = {"precision": "fp32", "engine": "torch"}  # in older files


@dataclass(frozen=True)
class Origin:
    """The weights that made a picture."""

    checkpoint: str  # "mini" or the path they were loaded from
    weights: str  # `fingerprint` of generator and CLIP
    ema: bool = True  # the averaged weights of a run, rather than those in training
    precision: str = "fp32"  # or "bf16", after `to_bf16`
    engine: str = "torch"  # or "onnx", ONNX Runtime: equal up to rounding

    @classmethod
    def of(cls, generator: TextToImage, checkpoint: str | Path, ema: bool = True, precision: str = "fp32") -> Self:
        """Of a generator that was loaded from `checkpoint`."""
        return cls(str(checkpoint), fingerprint(generator), ema, precision, engine_of(generator))

    def check(self, generator: TextToImage, png: str | Path) -> None:
        """Raises WeightsError if these are not the generator's weights; `png` is the file that asks for them."""
        if fingerprint(generator) != self.weights:
            raise WeightsError(
                f"the weights in {self.checkpoint} are not those that made {png}: it was trained on or replaced since. "
                "Say where they lie now: replay(png, checkpoint=...)"
            )

    def metadata(self, recipe: Recipe) -> dict[str, str]:
        """The text of a picture's PNG: `KEYS`; `settings` is JSON."""
        settings = json.dumps(recipe.settings, ensure_ascii=False)
        averaged = "yes" if self.ema else "no"
        own = self.checkpoint, self.weights, averaged, settings, self.precision, self.engine
        return dict(zip(KEYS, (recipe.caption, str(recipe.seed), *own), strict=True))


def save_picture(image: Picture, path: str | Path, recipe: Recipe, origin: Origin) -> Path:
    """Write one picture as a PNG that `replay` makes again; a file that holds it already stays as it is.

    Raises FileExistsError for a file that holds anything else, OSError, naming it, if it can't be written.
    """
    return Path(path) if is_there(path, recipe, origin) else save_png(image, path, origin.metadata(recipe))


def save_sheet(
    images: Tensor | np.ndarray, recipes: Sequence[Recipe], path: str | Path, origin: Origin, **layout: Any
) -> Path:
    """Write pictures as one PNG that says what they were made of; `layout` is that of `contact_sheet`."""
    captions = " | ".join(dict.fromkeys(recipe.caption for recipe in recipes))
    seeds = ", ".join(dict.fromkeys(str(recipe.seed) for recipe in recipes))
    text = {"caption": captions, "seed": seeds, "checkpoint": origin.checkpoint, "weights": origin.weights}
    return save_png(contact_sheet(images, **layout), path, {**text, "made": recipes[0].settings})


def is_there(path: str | Path, recipe: Recipe, origin: Origin) -> bool:
    """Whether the PNG of a recipe lies there already, by any engine. Raises FileExistsError if something else does."""
    if not Path(path).exists():
        return False
    differs = ["no picture of galiplib"]
    with suppress(ValueError):
        theirs, found = read_png(path)
        wanted = origin.metadata(recipe)
        theirs_now = found.metadata(theirs).items()
        differs = [key for key, value in theirs_now if key != "engine" and value != wanted[key]]
    if not differs:
        return True
    raise FileExistsError(
        f"{path} is there already and holds something else ({', '.join(differs)}): choose another name or move it away"
    )


def read_png(png: str | Path) -> tuple[Recipe, Origin]:
    """A PNG's recipe and the weights it was made with. Raises ValueError, naming the file, if it holds none."""
    try:
        with Image.open(png) as picture:
            text = NOT_NOTED | dict(getattr(picture, "text", {}))
    except UnidentifiedImageError:
        raise ValueError(f"{png} is no picture") from None
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{png} is damaged: {error}") from None
    if missing := [key for key in KEYS if key not in text]:
        raise ValueError(
            f"{png} doesn't say how it was made (no {', '.join(missing)} in it): a PNG of `galip sample`, "
            "`save_picture` or the panel does, if no other program has saved it again"
        )
    try:
        recipe = Recipe.of({"caption": text["caption"], "seed": int(text["seed"]), **json.loads(text["settings"])})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{png} doesn't hold a valid recipe: {error}") from None
    averaged, *how = text["averaged"] == "yes", text["precision"], text["engine"]
    return recipe, Origin(text["checkpoint"], text["weights"], averaged, *how)


def stem_of(caption: str) -> str:
    """The start of a file name that tells the caption, safe on every file system."""
    return "_".join(re.findall(r"[a-z0-9]+", caption.lower()))[:60].strip("_") or "picture"


def file_name(recipe: Recipe) -> str:
    """A name for the picture that tells caption and seed, and other settings as a hash."""
    words = stem_of(recipe.caption)
    extra = json.dumps([recipe.caption, recipe.settings]) if recipe.settings or words == "picture" else ""
    tail = f"_{hashlib.sha256(extra.encode()).hexdigest()[:6]}" if extra else ""
    return f"{words}_seed{recipe.seed}{tail}.png"
