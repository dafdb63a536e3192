"""The one reader of picture files, with care: nothing is decoded that Pillow holds unsafe."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from . import BadRow, DataError

Box = tuple[float, float, float, float]  # x, y, w, h in pixels
SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".jfif", ".jpe", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif",
)  # fmt: skip
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF")  # by content, for names often lie; none runs programs
HEIF = (b"ftypheic", b"ftypheix", b"ftypheim", b"ftypheis", b"ftyphevc", b"ftypmif1", b"ftypmsf1")  # from byte 4 on
MAX_ASPECT = 50  # a thinner strip would be resized to a picture that fills the memory


def read_header(path: Path) -> tuple[tuple[int, int], str, bool]:
    """Size (width, height), Pillow's mode, and whether more than one frame: of a picture that is not decoded.

    Raises BadRow if it is unreadable or unsafely large.
    """
    with _opened(path, path, "unreadable image") as image:
        # the second picture in a camera's JPEG (MPO) is no frame but a preview
        return image.size, image.mode, image.format != "MPO" and getattr(image, "is_animated", False)


def read_image(path: Path, upright: bool = True, content: bytes | None = None) -> Image.Image:
    """Decode a picture, its first frame, as RGB, transparency on white, turned as its EXIF says if `upright`.

    If `content` of the file has been read already, `path` is a name for messages. Raises BadRow if it can't be decoded.
    """
    with _opened(path if content is None else io.BytesIO(content), path, "undecodable image") as image:
        image.load()
        return to_rgb(_upright(image) if upright else image)


@contextmanager
def _opened(source: Path | io.BytesIO, path: Path, reason: str) -> Iterator[Image.Image]:
    """A picture opened by Pillow; BadRow if it is too large, or whatever is done with it fails."""
    try:
        with Image.open(source, formats=_formats()) as image:
            _check(image, path)
            yield image
    except BadRow:
        raise
    except Image.DecompressionBombError as error:
        raise BadRow("too many pixels", path, error) from None
    except Exception as error:  # Pillow's readers raise many kinds on damaged files
        raise _bad(error, path, source, reason) from None


@lru_cache(1)
def _formats() -> tuple[str, ...]:
    if find_spec("pillow_heif") is None:
        return FORMATS
    import pillow_heif

    pillow_heif.register_heif_opener()
    return (*FORMATS, "HEIF")


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


def _check(image: Image.Image, path: Path) -> None:
    size, limit = image.size, Image.MAX_IMAGE_PIXELS
    if limit is not None and size[0] * size[1] > limit:
        raise BadRow("too many pixels", path, f"{size[0]}x{size[1]}; Pillow's limit is {limit:,}")
    if max(size) > MAX_ASPECT * min(size):
        raise BadRow("too long and thin", path, f"{size[0]}x{size[1]}")
    if image.mode == "F":
        raise BadRow("floating-point pixels", path, "what is black and what is white is not said; save it with 8 bits")


def _bad(error: Exception, path: Path, source: Path | io.BytesIO, reason: str) -> BadRow:
    """What to say of a picture that Pillow fails to read."""
    if not isinstance(error, Image.UnidentifiedImageError):
        return BadRow(reason, path, error)
    with io.BytesIO(source.getvalue()) if isinstance(source, io.BytesIO) else source.open("rb") as stream:
        start = stream.read(12)
    if start[4:] in HEIF:
        return BadRow("HEIC picture (pip install pillow-heif reads it)", path)
    return BadRow(reason, path, "not a picture that Pillow knows")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF is common and says nothing about the picture
        return image


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode as 8-bit RGB; what is transparent becomes white, 16-bit grey keeps its highest bits."""
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        clear = grey == image.info.get("transparency", -1)
        return Image.fromarray(np.where(clear, 255, grey >> 8).astype(np.uint8)).convert("RGB")
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
