"""Pictures in a row as GIF or MP4."""

from __future__ import annotations

import io
import subprocess
import tempfile
from pathlib import Path

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

    Raises:
        ValueError: for another kind, no frames, a scale or fps below one, or pictures as `to_uint8` says.
        ImportError: for an MP4 without imageio-ffmpeg.
    """
    frames = to_uint8(images).repeat(scale, axis=1).repeat(scale, axis=2) if scale >= 1 else []
    if len(frames) == 0 or fps < 1:
        raise ValueError(f"frames, scale and fps must be at least 1, not {len(images)}, {scale}, {fps}")
    if bounce:
        frames = np.concatenate([frames, frames[-2:0:-1]])
    match kind:
        case "gif":
            return _gif(frames, fps, comment)
        case "mp4":
            return _mp4(frames, fps, comment)
    raise ValueError(f"an animation can be a gif or an mp4, not {kind!r}")


def save_animation(images: Tensor | np.ndarray, path: str | Path, **options: int | bool | str) -> Path:
    """Write frames as `encode_animation` makes them; the file's ending, .gif or .mp4, says which kind.

    Raises:
        ValueError, ImportError: as `encode_animation`.
        OSError: if the file can't be written; the message names it.
    """
    path = Path(path)
    data = encode_animation(images, path.suffix.lower().removeprefix("."), **options)
    write_atomically(path, lambda stream: stream.write(data))
    return path


def _gif(frames: np.ndarray, fps: int, comment: str) -> bytes:
    pictures = [Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in frames]
    buffer = io.BytesIO()
    duration = round(100 / fps) * 10  # ms; GIF counts in hundredths of a second
    pictures[0].save(
        buffer, "GIF", save_all=True, append_images=pictures[1:], duration=duration, loop=0, disposal=1,
        comment=comment.encode()[:60_000],
    )  # fmt: skip
    return buffer.getvalue()


def _mp4(frames: np.ndarray, fps: int, comment: str) -> bytes:
    try:
        from imageio_ffmpeg import get_ffmpeg_exe
    except ModuleNotFoundError as error:
        raise ImportError("an MP4 needs imageio-ffmpeg: pip install 'galiplib[notebooks]'; a GIF doesn't") from error
    height, width = frames.shape[1:3]
    frames = frames[:, : height - height % 2, : width - width % 2]  # H.264 with halved colours wants even sides
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "walk.mp4"
        done = subprocess.run(
            [*_ffmpeg(get_ffmpeg_exe(), frames, fps, comment), str(path)],
            input=np.ascontiguousarray(frames).tobytes(), capture_output=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"ffmpeg could not write the MP4: {done.stderr.decode(errors='replace').strip()}")
        return path.read_bytes()


def _ffmpeg(program: str, frames: np.ndarray, fps: int, comment: str) -> list[str]:
    return [
        program, "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24",
        "-s", f"{frames.shape[2]}x{frames.shape[1]}", "-r", str(fps), "-i", "-",
        "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "16", "-metadata", f"comment={comment}",
        "-movflags", "+faststart",
    ]  # fmt: skip
