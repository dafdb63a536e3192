"""The one reader of picture files, with care: nothing is decoded that Pillow holds unsafe."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from . import BadRow, DataError

Box = tuple[float, float, float, float]  # x, y, w, h in pixels
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")  # by content; names often lie, but no format that runs programs
MAX_ASPECT = 50  # a thinner strip would be resized to a picture that fills the memory


def read_header(path: Path) -> tuple[tuple[int, int], str]:
    """Size (width, height) and Pillow's mode of a picture, not decoded; BadRow if unreadable or unsafely large."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            size, mode = image.size, image.mode
    except Image.DecompressionBombError as error:
        raise BadRow("too many pixels", path, error) from None
    except Exception as error:  # Pillow's readers raise many kinds on damaged files
        raise BadRow("unreadable image", path, _short(error)) from None
    _check_size(size, path)
    return size, mode


def read_image(path: Path, upright: bool = True, content: bytes | None = None) -> Image.Image:
    """Decode a picture as RGB, transparency on white, turned as its EXIF says if `upright`; BadRow if it can't be.

    If `content` of the file has been read already, `path` is a name for messages.
    """
    try:
        with Image.open(path if content is None else io.BytesIO(content), formats=FORMATS) as image:
            _check_size(image.size, path)
            image.load()
            return to_rgb(_upright(image) if upright else image)
    except BadRow:
        raise
    except Exception as error:
        raise BadRow("undecodable image", path, _short(error)) from None


def read_bytes(path: Path, start: int, length: int) -> bytes:
    """A part of a file; raises DataError if the file is gone or ends before.

    It is opened every time: a file kept open for each of thousands of shards is more than systems allow.
    """
    try:
        with open(path, "rb", buffering=0) as stream:
            stream.seek(start)
            content = stream.read(length)
            size = stream.seek(0, 2)
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror}): bring it back and start again") from None
    if len(content) != length:
        raise DataError(f"{path} is cut: it ends at byte {size:,}, not at {start + length:,} or later")
    return content


def _check_size(size: tuple[int, int], path: Path) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and size[0] * size[1] > limit:
        raise BadRow("too many pixels", path, f"{size[0]}x{size[1]}; Pillow's limit is {limit:,}")
    if max(size) > MAX_ASPECT * min(size):
        raise BadRow("too long and thin", path, f"{size[0]}x{size[1]}")


def _short(error: Exception) -> str:
    return "not a picture that Pillow knows" if isinstance(error, Image.UnidentifiedImageError) else str(error)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF is common and says nothing about the picture
        return image


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode as 8-bit RGB; what is transparent becomes white, 16-bit grey keeps its highest bits."""
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def square_around(box: Box, size: tuple[int, int], path: Path) -> tuple[int, int, int, int]:
    """What is cut out for a box x, y, w, h: 1.5 times its longer side around its centre, clipped to the image.

    `size` is the image's width and height; returned are left, top, right, bottom in whole pixels, as the literature
    rounds them (DF-GAN). Raises BadRow for a box without area, or one outside the image.
    """
    x, y, w, h = box
    if all(map(math.isfinite, box)) and w > 0 and h > 0 and -w < x < size[0] and -h < y < size[1]:
        reach, centre = int(0.75 * max(w, h)), (int(x + w / 2), int(y + h / 2))
        left, top = (max(0, c - reach) for c in centre)
        right, bottom = (min(side, c + reach) for c, side in zip(centre, size, strict=True))
        if left < right and top < bottom:
            return left, top, right, bottom
    raise BadRow("box outside the image", path, f"{box} in {size[0]}x{size[1]} pixels")
