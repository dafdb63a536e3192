"""Pictures in a row as GIF or MP4."""

from __future__ import annotations

import io
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..files import write_atomically
from ..images import to_uint8


def encode_animation(
    images: Tensor | np.ndarray, kind: str, fps: int = 12, scale: int = 1, bounce: bool = True, comment: str = ""
) -> bytes:
    """Frames (N, 3, H, W) in [-1, 1] or (N, H, W, 3) uint8 -> the bytes of an endless GIF or of an MP4 (H.264).

    Args:
        kind: "gif" (256 colours a frame) or "mp4" (colours at half resolution, so take a scale of 2 or more).
        scale: whole-number magnification.
        bounce: play back and forth.
        comment: kept in the file.

    Raises ValueError for another kind, no frames, a scale or fps below one, or pictures as `to_uint8` says; ImportError
    for an MP4 without imageio-ffmpeg.
    """
    if not encodes(kind):
        raise ValueError(f"an animation can be a gif or an mp4, not {kind!r}")
    if min(len(images), scale, fps) < 1:
        raise ValueError(f"frames, scale and fps must be at least 1, not {len(images)}, {scale}, {fps}")
    frames = to_uint8(images).repeat(scale, axis=1).repeat(scale, axis=2)
    return ENCODERS[kind](np.concatenate([frames, frames[-2:0:-1]]) if bounce else frames, fps, comment)


def encodes(kind: str) -> bool:
    """Whether an animation can be of a kind, "gif" or "mp4"; raises ImportError for an MP4 without imageio-ffmpeg."""
    if kind == "mp4" and find_spec("imageio_ffmpeg") is None:
        raise ImportError("an MP4 needs imageio-ffmpeg: pip install 'galiplib[notebooks]'; a GIF doesn't")
    return kind in ENCODERS


def save_animation(images: Tensor | np.ndarray, path: str | Path, **options: Any) -> Path:
    """Write frames as `encode_animation` makes them; the file's ending, .gif or .mp4, says which kind.

    Raises as it does, and OSError, naming the file, if that can't be written.
    """
    data = encode_animation(images, Path(path).suffix.lower().removeprefix("."), **options)
    write_atomically(path, lambda stream: stream.write(data))
    return Path(path)


def _gif(frames: np.ndarray, fps: int, comment: str) -> bytes:
    first, *others = (Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in frames)
    buffer = io.BytesIO()
    duration = round(100 / fps) * 10  # ms; GIF counts in hundredths of a second
    text = comment.encode()[:60_000]
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=duration, loop=0, disposal=1, comment=text)
    return buffer.getvalue()


def _mp4(frames: np.ndarray, fps: int, comment: str) -> bytes:
    from imageio_ffmpeg import write_frames

    height, width = (side - side % 2 for side in frames.shape[1:3])  # H.264 with halved colours wants even sides
    options = ["-crf", "16", "-metadata", f"comment={comment}", "-movflags", "+faststart"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "walk.mp4"
        codec = {"codec": "libx264", "quality": None, "macro_block_size": 1, "output_params": options}
        film = write_frames(path, (width, height), fps=fps, **codec)
        film.send(None)
        for frame in frames:
            film.send(frame[:height, :width].tobytes())
        film.close()
        return path.read_bytes()


ENCODERS = {"gif": _gif, "mp4": _mp4}
