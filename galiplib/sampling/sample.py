"""From recipes to pictures, and from a picture file back to its recipe. No widgets and no files but PNGs in here.

On a CPU every picture passes through the network alone unless a batch size is given: so caption, seed and weights
decide it bit for bit, whatever is drawn along with it. In batches it is equal up to rounding (the kernels of a
convolution depend on the batch), as it is on another machine.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from ..build import text_of
from ..checkpoints.loading import load_generator
from ..checkpoints.onnx import PICTURES, by_engine, engine_of
from ..clip.bridge import CLIP, ClipBridge
from ..data.decoding import read_image
from ..images import check_finite, to_uint8
from ..system import Text, TextToImage
from .bf16 import to_bf16
from .provenance import read_png
from .recipe import Recipe, check_caption

MAX_COUNT = 4096  # pictures of one caption: more is a slip of the keyboard
GPU_BATCH = 32


@dataclass(frozen=True)
class Samples:
    """Pictures with what they were made from; entry i of each belongs to picture i."""

    images: Tensor  # (N, 3, H, W) float on the CPU, clamped to [-1, 1]
    recipes: list[Recipe]
    scores: list[float] | None = None  # cosines of picture and caption in CLIP's eyes, where `rank` made them
    engine: str = "torch"  # what drew them, or "onnx"

    def __len__(self) -> int:
        return len(self.images)

    @property
    def captions(self) -> list[str]:
        """N captions; those of mixtures tell the shares."""
        return [recipe.text for recipe in self.recipes]

    @property
    def seeds(self) -> list[int]:
        """N seeds of the noise."""
        return [recipe.seed for recipe in self.recipes]


def sample(
    generator: TextToImage, bridge: ClipBridge, captions: str | Sequence[str], count: int = 1, seed: int = 0,
    batch_size: int | None = None, progress: bool = False, **settings: Any,
) -> Samples:  # fmt: skip
    """Draw `count` pictures of each caption: all of the first caption, then all of the second, ...

    Picture i of a caption has the seed `seed + i`, so it stays the same whatever the count and the other captions.
    `settings` are more of a `Recipe`, the same for all, such as truncation, or towards and share; `batch_size` is that
    of `draw`; `progress` shows a bar.

    Raises ValueError for an empty caption, or a count, seed, batch size or setting out of range, else as `draw`.
    """
    return collect(generator, bridge, recipes_of(captions, count, seed, **settings), batch_size, progress)


def recipes_of(captions: str | Sequence[str], count: int = 1, seed: int = 0, **settings: Any) -> list[Recipe]:
    """The recipes of `sample`; raises ValueError as it does."""
    texts = [captions] if isinstance(captions, str) else list(captions)
    if not texts:
        raise ValueError("no caption: write what the picture should show")
    check_count(count)
    for index, text in enumerate(texts):
        check_caption(text, "the caption" if len(texts) == 1 else f"caption {index}")
    return [Recipe.of({"caption": text, "seed": seed + i, **settings}) for text in texts for i in range(count)]


def check_count(count: int, name: str = "count", least: int = 1) -> None:
    """Raises ValueError for a number of pictures that is out of range or no whole number."""
    if not isinstance(count, int) or not least <= count <= MAX_COUNT:
        raise ValueError(f"{name} must lie between {least} and {MAX_COUNT}, not {count}")


def interpolate(
    generator: TextToImage, bridge: ClipBridge, caption_a: str, caption_b: str | None = None, steps: int = 8,
    seed: int = 0, seed_b: int | None = None, truncation: float = 1.0,
) -> Samples:  # fmt: skip
    """The pictures of `walk`; raises as it and `draw` do."""
    return collect(generator, bridge, walk(caption_a, caption_b, steps, seed, seed_b, truncation))


def walk(
    caption_a: str, caption_b: str | None, steps: int, seed: int = 0, seed_b: int | None = None, truncation: float = 1.0
) -> list[Recipe]:
    """Recipes from one caption to another, straight from sentence to sentence, and from one noise to another on an arc.

    Without `caption_b` the caption holds still, without `seed_b` the noise does. Raises ValueError for an empty
    caption, or fewer than two or more than MAX_COUNT steps.
    """
    check_count(steps, "steps", least=2)
    start, made = {"caption": caption_a, "seed": seed, "truncation": truncation}, []
    for share in torch.linspace(0, 1, steps).tolist():
        captions = {} if caption_b is None else {"towards": caption_b, "share": share}
        noises = {} if seed_b is None else {"seed_b": seed_b, "turn": share}
        made.append(Recipe.of({**start, **captions, **noises}))
    return made


def rank(
    generator: TextToImage, bridge: ClipBridge, caption: str, make: int = 32, keep: int = 8, seed: int = 0,
    progress: bool = False, **settings: Any,
) -> Samples:  # fmt: skip
    """Draw `make` pictures of a caption and keep the `keep` that CLIP finds most like it, best first.

    The score is the cosine of the picture's and the caption's CLIP embeddings. Where that CLIP's similarity is what
    the generator was trained on, it says what pleases it, and hardly anything about how sharp or true a picture is.
    Raises as `sample`, and ValueError for a `keep` outside 1 .. `make`.
    """
    check_count(make, "make")
    if not isinstance(keep, int) or not 1 <= keep <= make:
        raise ValueError(f"keep must lie between 1 and the {make} pictures made, not {keep}")
    return nearest(bridge, sample(generator, bridge, caption, make, seed, progress=progress, **settings), keep)


@torch.inference_mode()
def nearest(bridge: ClipBridge, made: Samples, keep: int) -> Samples:
    """The pictures whose CLIP embeddings have the largest cosines with their sentences', best first."""
    read, scores = _reader(bridge, made.recipes), []
    for image, recipe in zip(made.images, made.recipes, strict=True):
        embedding = bridge.encode_image(image[None].to(bridge.pixel_mean))[1][0].float()  # (E,)
        scores.append(F.cosine_similarity(embedding, _mixed(read, recipe).sentence[0].float(), dim=0).item())
    best = sorted(range(len(made)), key=lambda index: -scores[index])[:keep]
    scored = [made.recipes[i] for i in best], [scores[i] for i in best]
    return Samples(made.images[best], *scored, made.engine)


def collect(
    generator: TextToImage, bridge: ClipBridge, recipes: Sequence[Recipe], batch_size: int | None = None,
    progress: bool = False,
) -> Samples:  # fmt: skip
    """All pictures of `draw` together; `progress` shows a bar."""
    parts = []
    with tqdm(total=len(recipes), desc="pictures", delay=1, disable=not progress) as bar:
        for part in draw(generator, bridge, recipes, batch_size):
            parts.append(part)
            bar.update(len(part))
    return Samples(torch.cat(parts), list(recipes), engine=engine_of(generator))


def draw(
    generator: TextToImage, bridge: ClipBridge, recipes: Sequence[Recipe], batch_size: int | None = None
) -> Iterator[Tensor]:
    """Yield the recipes' pictures, (B, 3, H, W) on the CPU, clamped to [-1, 1], a batch at a time.

    A batch is by default 1 on a CPU, so that nothing but its recipe decides a picture, elsewhere 32. Larger ones are
    faster with small networks.

    Raises:
        ValueError: for a batch size below one, a caption of which the CLIP knows no word, a block that isn't there.
        FloatingPointError: for pictures with NaN or infinity in them.
    """
    weight = next(generator.parameters())
    if batch_size is None:
        batch_size = 1 if weight.device.type == "cpu" else GPU_BATCH
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    blocks, latest = generator.late_blocks, max((recipe.late_from for recipe in recipes), default=0)
    if not blocks and any(recipe.late for recipe in recipes):
        raise ValueError("this generator has no late blocks that could get another caption")
    if latest > blocks:
        raise ValueError(f"late_from must lie between 0 and {blocks}, the number of generator blocks, not {latest}")
    read = _reader(bridge, recipes, generator.wants)
    for part in _batches(recipes, batch_size):
        with torch.inference_mode():
            drawn = [recipe.noise(generator.noise_dim, generator.truncates) for recipe in part]
            noise = torch.stack(drawn).to(weight)  # (B, Z) or (B, Z + 1)
            text = _together([_mixed(read, recipe) for recipe in part], weight)
            if part[0].late:
                late = _together([read(recipe.late) for recipe in part], weight).sentence  # (B, E)
                images = generator(noise, text.sentence, (noise, late), part[0].late_from)
            else:
                images = generator.picture_of(noise, text)
            images = images.float().cpu()
        check_finite(images)
        yield images.clamp(-1, 1)


def _batches(recipes: Sequence[Recipe], batch_size: int) -> Iterator[list[Recipe]]:
    """Neighbours of which the same blocks get a caption of their own, at most `batch_size` of them."""
    for _, alike in groupby(recipes, key=lambda recipe: (bool(recipe.late), recipe.late_from)):
        waiting = list(alike)
        for start in range(0, len(waiting), batch_size):
            yield waiting[start : start + batch_size]


def _reader(bridge: ClipBridge, recipes: Iterable[Recipe], wants: Collection[str] = ()) -> Callable[[str], Text]:
    """Caption -> what is wanted of it, each encoded once and alone; all are checked here, before anything is drawn.

    Warns of words that are not read.
    """
    tokens = {}  # caption -> (1, context)
    for text in dict.fromkeys(text for recipe in recipes for text in recipe.captions):
        if unread := bridge.unread(text):
            room = f"longer than the {bridge.context_length} tokens that CLIP reads"
            shown = unread if len(unread) <= 60 else f"{unread[:60]}…"
            warnings.warn(f"the caption is {room}; left out: {shown}", stacklevel=2)
        tokens[text] = bridge.tokenize(text)
    return cache(lambda text: text_of(bridge, tokens[text], wants))


def _mixed(read: Callable[[str], Text], recipe: Recipe) -> Text:
    """The text of a recipe, of one row: between two captions also the words are mixed, place by place."""
    if recipe.share in (0, 1):
        return read(recipe.towards if recipe.share else recipe.caption)
    first = read(recipe.caption).sentence
    both = _together([read(recipe.caption), read(recipe.towards)], first)
    sentence = torch.lerp(both.sentence[:1], both.sentence[1:], recipe.share)
    if both.words is None or both.mask is None:
        return Text(sentence)
    return Text(sentence, torch.lerp(both.words[:1], both.words[1:], recipe.share), both.mask.all(0, keepdim=True))


def _together(texts: Sequence[Text], like: Tensor) -> Text:
    """Texts as one, in the type and on the device of `like`, shorter ones filled up behind their ends."""
    sentence = torch.cat([text.sentence for text in texts]).to(like)
    words = [text.words[0] for text in texts if text.words is not None]
    masks = [text.mask[0] for text in texts if text.mask is not None]
    if not words:
        return Text(sentence)
    mask = pad_sequence(masks, batch_first=True, padding_value=True).to(like.device)
    return Text(sentence, pad_sequence(words, batch_first=True).to(like), mask)


# ---------------------------------------------------------------- a picture made again


def replay(
    png: str | Path, checkpoint: str | Path | None = None, clip_model: CLIP | None = None,
    device: str | torch.device = "cpu", engine: str = "auto",
) -> Samples:  # fmt: skip
    """Make a picture again from the caption, seed, settings and checkpoint noted in its file.

    On the machine that made it, it is identical to the file, pixel by pixel; where it is not (other versions, another
    processor or engine), a warning says by how much.

    Args:
        png: a file of `save_picture`, `galip sample` or the panel. ValueError if it holds no recipe.
        checkpoint: where the weights lie now, if they were moved; WeightsError if they are gone or not the same.
        clip_model: as for `load_generator`.
        engine: "torch" or "onnx" (`by_engine`); "auto" is the one that drew it, if that takes no export.
    """
    recipe, origin = read_png(png)
    if checkpoint is not None:
        origin = dataclasses.replace(origin, checkpoint=str(checkpoint))
    generator = load_generator(origin.checkpoint, clip_model, device, origin.ema)
    origin.check(generator, png)
    if origin.precision == "bf16":
        to_bf16(generator)
    elif engine != "auto" or origin.engine == "onnx":
        generator = by_engine(generator, engine, PICTURES)
    made = collect(generator, generator.bridge, [recipe])
    before = np.asarray(read_image(Path(png))).astype(int)  # (H, W, 3)
    now = to_uint8(made.images)[0]
    if before.shape != now.shape:
        warnings.warn(f"{png} was resized since: made again at {now.shape[1]} x {now.shape[0]}", stacklevel=2)
    elif changed := int((before != now).sum()):
        most = f"by {abs(before - now).max()} of 255 at most"
        why = "made with other versions or on another processor, or edited since"
        if origin.engine != made.engine:
            why = f"drawn by {origin.engine} then and by {made.engine} now, which are equal up to rounding"
        warnings.warn(f"{changed} of {now.size} values differ from {png}, {most}: {why}", stacklevel=2)
    return made
