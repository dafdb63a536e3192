"""Pictures: the one place where their range of values changes, contact sheets, PNG files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from .files import write_atomically

Picture = Image.Image | Tensor | np.ndarray
CAPTION_LINES = 8  # of a sheet: longer ones end in '…'


class EvaluationError(ValueError):
    """Something that can't be measured; the message says what and where."""


class NotFinite(EvaluationError, FloatingPointError):
    """NaN or infinity: a fault of the weights, not of the data."""


class TooFew(EvaluationError):
    """Too few real pictures to measure by."""


def to_images(pixels: np.ndarray) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_range(images: Tensor, wanted: str = "signed", numbers: Sequence[int] | None = None) -> Tensor:
    """Images (B, 3, H, W), float and about [-1, 1], in the range that a measure wants.

    What lies outside [-1, 1] is cut off, as when a picture is shown or saved: the generator has no tanh.

    Args:
        wanted: "signed": float in [-1, 1] (judge, CLIP bridge); "unit": float in [0, 1] (torchmetrics, pyiqa);
            "byte": uint8 in 0..255, rounded (InceptionV3). ValueError for others.
        numbers: of the pictures, for the NotFinite about one that is not; by default from 0 on.
    """
    bad = (~images.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
    if bad:
        number = bad[0] if numbers is None else numbers[bad[0]]
        raise NotFinite(f"picture {number} is not finite ({len(bad)} of {len(images)} aren't)")
    signed = images.float().clamp(-1, 1)
    if wanted == "byte":
        return ((signed + 1) * 127.5).round().to(torch.uint8)
    if wanted not in ("signed", "unit"):
        raise ValueError(f"unknown range {wanted!r}: one of signed, unit, byte")
    return signed if wanted == "signed" else signed * 0.5 + 0.5


def check_finite(images: Tensor) -> None:
    """Raises NotFinite if a picture of (N, ...) holds NaN or infinity; says how many do."""
    if bad := int((~images.isfinite()).flatten(1).any(dim=1).sum()):
        why = "the weights have probably diverged; take an earlier checkpoint"
        raise NotFinite(f"{bad} of {len(images)} pictures hold NaN or infinity: {why}")


def to_uint8(images: Tensor | np.ndarray) -> np.ndarray:
    """Pictures (N, 3, H, W) in [-1, 1] -> (N, H, W, 3) uint8; pictures that are uint8 already pass through.

    Raises ValueError for another shape, FloatingPointError for pictures with NaN or infinity in them.
    """
    expected = "expected (N, 3, H, W) in [-1, 1] or (N, H, W, 3) uint8"
    images = torch.tensor(images) if isinstance(images, np.ndarray) else images.detach().cpu()
    ready = images.dtype == torch.uint8
    if images.ndim != 4 or images.shape[3 if ready else 1] != 3:
        raise ValueError(f"pictures of shape {tuple(images.shape)} and {images.dtype}: {expected}")
    if ready:
        return images.numpy()
    check_finite(images)
    return to_range(images, "byte").permute(0, 2, 3, 1).numpy()


def contact_sheet(
    images: Tensor | np.ndarray, columns: int, captions: Sequence[str] | None = None, scale: int = 1, gap: int = 6,
    font_size: int = 12,
) -> Image.Image:  # fmt: skip
    """A grid of pictures, as `to_uint8` takes them, on white.

    Args:
        captions: one per picture or one per row, written above it and wrapped.
        scale: whole-number magnification.
        gap: pixels between pictures and around them.

    Raises ValueError for no pictures, columns or scale below one, or another number of captions.
    """
    pixels = to_uint8(images)
    number = len(pixels)
    if number < 1 or columns < 1 or scale < 1:
        raise ValueError(f"pictures, columns and scale must be at least 1, not {number}, {columns}, {scale}")
    columns = min(columns, number)
    starts = range(0, number, columns)
    texts = [""] * number if captions is None else captions
    if len(texts) not in (number, len(starts)):
        raise ValueError(f"{len(texts)} captions for {number} pictures in {len(starts)} rows: one each or one a row")
    height, width = (side * scale for side in pixels.shape[1:3])
    font, line = ImageFont.load_default(font_size), font_size + 3
    share = 1 if len(texts) == number else columns  # pictures that a caption has above it
    room = share * (width + gap) - gap
    labels = {index * share: wrap(text, room, font, CAPTION_LINES) for index, text in enumerate(texts)}
    lines = [max(len(labels.get(start + column, ())) for column in range(columns)) for start in starts]
    above = [count * line + gap if count else 0 for count in lines]  # pixels of text above each row

    size = gap + columns * (width + gap), gap + sum(above) + len(starts) * (height + gap)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for index, array in enumerate(pixels):
        row, column = divmod(index, columns)
        x = gap + column * (width + gap)
        y = gap + sum(above[: row + 1]) + row * (height + gap)
        sheet.paste(Image.fromarray(array).resize((width, height), Image.Resampling.NEAREST), (x, y))
        for offset, text in enumerate(reversed(labels.get(index, ())), start=1):  # from the picture upwards
            draw.text((x, y - offset * line - 2), text, fill=(40, 40, 44), font=font)
    return sheet


def wrap(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, max_lines: int) -> list[str]:
    """Lines of at most `width` pixels: a word that is too long is broken, too long a text ends in '…'."""
    lines: list[str] = []
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
            last = lines[max_lines - 1]
            while last and font.getlength(last + "…") > width:
                last = last[:-1]
            return [*lines[: max_lines - 1], last.rstrip() + "…"]
    return lines


def png_bytes(image: Picture, metadata: Mapping[str, object] | None = None) -> bytes:
    """A picture, (3, H, W) in [-1, 1], (H, W, 3) uint8 or PIL's, as a PNG that keeps `metadata` as text.

    Caption, seed, checkpoint and the like; `Image.open(path).text` reads them.
    """
    if not isinstance(image, Image.Image):
        image = Image.fromarray(to_uint8(image[None])[0])
    info = PngInfo()
    for key, value in (metadata or {}).items():
        info.add_text(key, str(value))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def save_png(image: Picture, path: str | Path, metadata: Mapping[str, object] | None = None) -> Path:
    """Write a picture of `png_bytes`, whole or not at all; missing folders are made.

    Raises ValueError if the name does not end in .png, OSError, naming the file, if it can't be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path} is to be a PNG: give it a name that ends in .png")
    data = png_bytes(image, metadata)
    write_atomically(path, lambda stream: stream.write(data))
    return path
