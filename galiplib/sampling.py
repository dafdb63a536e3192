"""From captions to pictures and picture files: what notebooks, widgets and the command line share."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from .clip_bridge import ClipBridge
from .files import write_atomically
from .generator import Generator

MAX_COUNT = 4096  # pictures of one caption: more is a slip of the keyboard
Picture = Image.Image | Tensor | np.ndarray
SEEDS = 2**32  # torch's CPU generator looks at the lowest 32 bits only


@dataclass(frozen=True)
class Samples:
    """Pictures with what they were made from; entry i of each belongs to picture i.

    Attributes:
        images: (N, 3, H, W) float on the CPU, clamped to [-1, 1].
        captions: N captions.
        seeds: N seeds of the noise.
    """

    images: Tensor
    captions: list[str]
    seeds: list[int]

    def __len__(self) -> int:
        return len(self.images)


def noise_of(seeds: Sequence[int], noise_dim: int) -> Tensor:
    """N seeds -> noise (N, noise_dim), standard normal; each row depends on its own seed only.

    Raises:
        ValueError: for a seed outside 0 .. 2**32 - 1.
    """
    for seed in seeds:
        if not 0 <= seed < SEEDS:
            raise ValueError(f"the seed must lie between 0 and {SEEDS - 1}, not {seed}")
    rows = [torch.randn(noise_dim, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows)  # (N, Z)


def sample(
    generator: Generator,
    bridge: ClipBridge,
    captions: str | Sequence[str],
    count: int = 1,
    seed: int = 0,
    batch_size: int = 64,
) -> Samples:
    """Draw `count` pictures of each caption: all of the first caption, then all of the second, ...

    Picture i of a caption has the seed `seed + i`, so it is the same (up to rounding) whatever the count, the
    other captions and the batch size; but for `conditioning: recurrent-reference`, which warns of it.

    Raises:
        ValueError: for an empty caption, or a count, seed or batch size out of range.
        FloatingPointError: for pictures with NaN or infinity in them.
    """
    texts = _checked_captions(captions)
    if not 1 <= count <= MAX_COUNT:
        raise ValueError(f"count must lie between 1 and {MAX_COUNT}, not {count}")
    seeds = [seed + index for index in range(count)]
    noise = noise_of(seeds, generator.noise_dim).repeat(len(texts), 1)  # (captions * count, Z)
    sentences = _sentences(bridge, texts, batch_size).repeat_interleave(count, dim=0)  # (captions * count, E)
    images = _generate(generator, noise, sentences, batch_size)
    return Samples(images, [text for text in texts for _ in seeds], seeds * len(texts))


def interpolate(
    generator: Generator, bridge: ClipBridge, caption_a: str, caption_b: str, steps: int = 8, seed: int = 0
) -> Samples:
    """Walk in a straight line from one caption's sentence embedding to the other's, with the same noise.

    Returns:
        `steps` pictures, the first of `caption_a`, the last of `caption_b`; their captions tell the mixture.

    Raises:
        ValueError: for an empty caption, or fewer than two or more than MAX_COUNT steps.
        FloatingPointError: for pictures with NaN or infinity in them.
    """
    if not 2 <= steps <= MAX_COUNT:
        raise ValueError(f"steps must lie between 2 and {MAX_COUNT}, not {steps}")
    ends = _sentences(bridge, _checked_captions([caption_a, caption_b]), batch_size=2)  # (2, E)
    share = torch.linspace(0, 1, steps)
    sentences = torch.lerp(ends[:1], ends[1:], share[:, None].to(ends))  # (steps, E)
    noise = noise_of([seed], generator.noise_dim).expand(steps, -1)
    images = _generate(generator, noise, sentences, batch_size=64)
    mixed = [f"{1 - t:.0%} {caption_a}, {t:.0%} {caption_b}" for t in share.tolist()[1:-1]]
    return Samples(images, [caption_a, *mixed, caption_b], [seed] * steps)


def _checked_captions(captions: str | Sequence[str]) -> list[str]:
    texts = [captions] if isinstance(captions, str) else list(captions)
    if not texts:
        raise ValueError("no caption: write what the picture should show")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"caption {index} is no text but {text!r}")
        if not text.strip():
            which = "the caption" if len(texts) == 1 else f"caption {index}"
            raise ValueError(f"{which} is empty: write what the picture should show")
    return texts


@torch.inference_mode()
def _sentences(bridge: ClipBridge, texts: list[str], batch_size: int) -> Tensor:
    """Captions -> sentence embeddings (captions, E); each different caption is encoded once."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    different = list(dict.fromkeys(texts))
    tokens = bridge.tokenize(different).to(bridge.pixel_mean.device)
    encoded = torch.cat([bridge.encode_text(part) for part in tokens.split(batch_size)])
    index = {text: row for row, text in enumerate(different)}
    return encoded[[index[text] for text in texts]]


@torch.inference_mode()
def _generate(generator: Generator, noise: Tensor, sentences: Tensor, batch_size: int) -> Tensor:
    """Noise (N, Z), sentence embeddings (N, E) -> pictures (N, 3, H, W) on the CPU, clamped to [-1, 1]."""
    weight = next(generator.parameters())
    parts = []
    for z, sentence in zip(noise.split(batch_size), sentences.split(batch_size), strict=True):
        parts.append(generator(z.to(weight), sentence.to(weight)).float().cpu())
    images = torch.cat(parts)
    _check_finite(images)
    return images.clamp(-1, 1)


def _check_finite(images: Tensor) -> None:
    bad = (~images.isfinite()).flatten(1).any(dim=1)
    if bad.any():
        raise FloatingPointError(
            f"{int(bad.sum())} of {len(images)} pictures hold NaN or infinity: "
            "the weights have probably diverged; take an earlier checkpoint"
        )


# ---------------------------------------------------------------- pictures for people


def to_uint8(images: Tensor | np.ndarray) -> np.ndarray:
    """Pictures (N, 3, H, W) in [-1, 1] -> (N, H, W, 3) uint8; pictures that are uint8 already pass through.

    Raises:
        ValueError: for another shape.
        FloatingPointError: for pictures with NaN or infinity in them.
    """
    expected = "expected (N, 3, H, W) in [-1, 1] or (N, H, W, 3) uint8"
    images = torch.tensor(images) if isinstance(images, np.ndarray) else images.detach().cpu()
    ready = images.dtype == torch.uint8
    if images.ndim != 4 or images.shape[3 if ready else 1] != 3:
        raise ValueError(f"pictures of shape {tuple(images.shape)} and {images.dtype}: {expected}")
    if ready:
        return images.numpy()
    images = images.float()
    _check_finite(images)
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round()  # (N, 3, H, W)
    return pixels.byte().permute(0, 2, 3, 1).numpy()


def contact_sheet(
    images: Tensor | np.ndarray,
    columns: int,
    captions: Sequence[str] | None = None,
    scale: int = 1,
    gap: int = 6,
    font_size: int = 12,
    max_lines: int = 8,
) -> Image.Image:
    """A grid of pictures on white.

    Args:
        images: as `to_uint8` takes them.
        columns: pictures in a row.
        captions: one per picture or one per row, written above it and wrapped, to `max_lines` lines at most.
        scale: whole-number magnification.
        gap: pixels between pictures and around them.

    Raises:
        ValueError: for no pictures, columns or scale below one, or another number of captions.
    """
    pixels = to_uint8(images)
    number = len(pixels)
    if number < 1 or columns < 1 or scale < 1:
        raise ValueError(f"pictures, columns and scale must be at least 1, not {number}, {columns}, {scale}")
    columns = min(columns, number)
    rows = -(-number // columns)
    texts = [""] * number if captions is None else list(captions)
    if len(texts) not in (number, rows):
        raise ValueError(f"{len(texts)} captions for {number} pictures in {rows} rows: one each or one a row")
    height, width = (side * scale for side in pixels.shape[1:3])
    sheet_width = gap + columns * (width + gap)
    room = width
    if len(texts) < number:  # one a row: all the room to the first picture's
        texts = [texts[i // columns] if i % columns == 0 else "" for i in range(number)]
        room = sheet_width - 2 * gap
    font = ImageFont.load_default(font_size)
    line = font_size + 3
    labels = [wrap(text, room, font, max_lines) for text in texts]
    lines = [max(map(len, labels[r * columns : (r + 1) * columns])) for r in range(rows)]
    above = [count * line + gap if count else 0 for count in lines]  # pixels of text above each row

    sheet = Image.new("RGB", (sheet_width, gap + sum(above) + rows * (height + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, array in enumerate(pixels):
        row, column = divmod(index, columns)
        x = gap + column * (width + gap)
        y = gap + sum(above[: row + 1]) + row * (height + gap)
        picture = Image.fromarray(array).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(picture, (x, y))
        for offset, text in enumerate(reversed(labels[index]), start=1):  # from the picture upwards
            draw.text((x, y - offset * line - 2), text, fill=(40, 40, 44), font=font)
    return sheet


def wrap(text: str, width: int, font: ImageFont.FreeTypeFont, max_lines: int) -> list[str]:
    """Lines of at most `width` pixels: a word that is too long is broken, too long a text ends in '…'."""
    lines = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
        if len(lines) > max_lines:
            break
    if len(lines) > max_lines:
        last = lines[max_lines - 1]
        while last and font.getlength(last + "…") > width:
            last = last[:-1]
        lines = [*lines[: max_lines - 1], last.rstrip() + "…"]
    return lines


def png_bytes(image: Picture, metadata: Mapping[str, object] | None = None) -> bytes:
    """A picture, (3, H, W) in [-1, 1], (H, W, 3) uint8 or PIL's, as a PNG that keeps `metadata` as text."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(to_uint8(image[None])[0])
    info = PngInfo()
    for key, value in (metadata or {}).items():
        info.add_text(key, str(value))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def save_png(image: Picture, path: str | Path, metadata: Mapping[str, object] | None = None) -> Path:
    """Write a picture as PNG, whole or not at all.

    Args:
        image: as `png_bytes` takes it.
        path: a name that ends in .png; missing folders are made.
        metadata: caption, seed, checkpoint and the like, kept in the file; `Image.open(path).text` reads it.

    Raises:
        ValueError: for another ending.
        OSError: if the file can't be written; the message names it.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path} is to be a PNG: give it a name that ends in .png")
    data = png_bytes(image, metadata)
    write_atomically(path, lambda stream: stream.write(data))
    return path
