"""Shards from any of our data sets: tar files that webdataset and everything that reads its layout can read.

<out>/<split>/00000.tar, ...   key.json {"key": name in the data set, "captions": [...]}, key.jpg or key.png
<out>/<split>/manifest.json    what they were made from; pictures, captions, bytes, SHA-256 of each shard
<out>/<split>/index/           where everything lies in them (`index`), the captions' embeddings
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image
from tqdm import tqdm
from webdataset import TarWriter

from ..files import write_atomically, write_json
from . import BadRow, DataError, minibirds
from .pictures import Photos
from .shards import missing_shard, read_manifest

JPEG_QUALITY = 95
TOGETHER = 256  # samples that are drawn or decoded side by side
PER_SHARD = 10_000  # as img2dataset


class Sample(NamedTuple):
    """One picture to write: its name in the data set, captions, and the bytes of its file."""

    key: str
    captions: tuple[str, ...]
    picture: bytes


class Samples(Protocol):
    """What is written: samples by number, each the same at every call."""

    suffix: str  # of the picture's files, "jpg" or "png"
    image_size: int  # side for which they are meant, pixels
    drawn: bool  # whether training draws crops and flips from them

    def __len__(self) -> int: ...
    def sample(self, row: int) -> Sample:
        """Raises BadRow for a picture that can't be used."""


class DrawnBirds:
    """Mini birds, drawn one by one when asked for, as PNG, which keeps every pixel."""

    suffix, drawn = "png", False

    def __init__(self, split: str, count: int, image_size: int, seed: int) -> None:
        self.split, self.image_size, self.birds = split, image_size, minibirds.birds(split, count, seed)

    def __len__(self) -> int:
        return len(self.birds)

    def sample(self, row: int) -> Sample:
        bird, pose = self.birds[row]
        picture = encoded(minibirds.render(bird, pose, self.image_size), "png")
        return Sample(f"{self.split}_{row}", tuple(minibirds.captions(bird, pose)), picture)


class ResizedPhotos:
    """Photographs as training wants them before it crops: cut to their box, short side 76/64 of the size; as JPEG."""

    suffix, drawn = "jpg", True

    def __init__(self, photos: Photos) -> None:
        self.photos, self.image_size = photos, photos.image_size

    def __len__(self) -> int:
        return len(self.photos)

    def sample(self, row: int) -> Sample:
        item = self.photos.items[row]
        return Sample(item.key, item.captions, encoded(self.photos.resized(row), "jpg"))


def encoded(pixels: np.ndarray, suffix: str) -> bytes:
    """(H, W, 3) uint8 -> the bytes of a picture's file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG" if suffix == "jpg" else "PNG", quality=JPEG_QUALITY)  # PNG has none
    return stream.getvalue()


def write_shards(
    samples: Samples, folder: str | Path, made: dict[str, Any], per_shard: int = PER_SHARD, progress: bool = True
) -> Path:
    """Write one split; finished shards stay as they are, so that an interrupted call goes on -> its manifest.

    `made` tells what the samples are made from: a folder with another such note is not written to. Raises DataError if
    it holds something else, no sample can be used, or a shard is to have none; OSError if it can't be written.
    """
    if per_shard < 1:
        raise DataError(f"a shard needs at least one picture, not {per_shard}")
    folder = Path(folder)
    path = folder / "manifest.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0).acquire()
    except Timeout:
        raise DataError(f"another process writes shards to {folder}") from None
    except OSError as error:
        raise OSError(f"can't write {folder}: {error.strerror or error}") from None
    with lock:
        manifest = _begun(path, {**made, "per_shard": per_shard, "suffix": samples.suffix}, samples)
        done, count, label = len(manifest["shards"]) * per_shard, len(samples), f"shards {made.get('split', '')}"
        with tqdm(total=count, initial=min(done, count), desc=label, unit="picture", disable=not progress) as bar:
            for start in range(done, count, per_shard):
                rows = range(start, min(start + per_shard, count))
                entry, left_out = _write_shard(samples, rows, folder / f"{start // per_shard:05d}.tar", bar)
                manifest["shards"].append(entry)
                manifest["left_out"] = dict(Counter(manifest["left_out"]) + left_out)
                write_json(path, manifest)
        manifest["complete"] = True
        write_json(path, manifest)
    if not sum(entry["samples"] for entry in manifest["shards"]):
        raise DataError(f"none of the {len(samples):,} pictures for {folder} can be used: {manifest['left_out']}")
    return path


def _begun(path: Path, made: dict[str, Any], samples: Samples) -> dict[str, Any]:
    """The manifest so far; raises DataError if the folder's is of something else."""
    if not path.is_file():
        if other := min(path.parent.glob("*.tar"), default=None):
            raise DataError(f"{other} is there, but no {path.name}: choose another folder, nothing is overwritten")
        about = {"format": 1, "galiplib": version("galiplib"), "image_size": samples.image_size, "drawn": samples.drawn}
        return {**about, "made": made, "complete": False, "left_out": {}, "shards": []}
    manifest = read_manifest(path)
    before = manifest["made"]
    if unlike := [key for key in {**before, **made} if before.get(key) != made.get(key)]:
        listed = ", ".join(f"{key} ({before.get(key)!r}, now {made.get(key)!r})" for key in unlike)
        raise DataError(f"{path} tells of other shards: {listed}. Choose another folder, or delete it")
    for name in (entry["name"] for entry in manifest["shards"]):
        if not (path.parent / name).is_file():
            raise missing_shard(path.parent / name, path, f"delete {path.parent} to make all anew")
    return manifest


def _write_shard(samples: Samples, rows: range, path: Path, bar: tqdm) -> tuple[dict[str, Any], Counter[str]]:
    """Write one shard, whole or not at all -> its entry in the manifest; what was left out, reason -> how many."""
    counts, left_out = Counter(samples=0, captions=0), Counter[str]()

    def fill(stream: BinaryIO) -> None:
        with TarWriter(stream, encoder=False, mtime=0) as archive:
            for row, sample in zip(rows, _prepared(samples, rows), strict=True):
                bar.update()
                if isinstance(sample, BadRow):
                    left_out[sample.reason] += 1
                    continue
                fields = json.dumps({"key": sample.key, "captions": sample.captions}).encode()
                archive.write({"__key__": f"{row:09d}", "json": fields, samples.suffix: sample.picture})
                counts.update(samples=1, captions=len(sample.captions))

    write_atomically(path, fill)
    return {"name": path.name, **counts, "bytes": path.stat().st_size, "sha256": _checksum(path)}, left_out


def _prepared(samples: Samples, rows: range) -> Iterator[Sample | BadRow]:
    def prepare(row: int) -> Sample | BadRow:
        try:
            return samples.sample(row)
        except BadRow as error:
            return error

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        for start in range(0, len(rows), TOGETHER):
            yield from pool.map(prepare, rows[start : start + TOGETHER])


def _checksum(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_shards(folder: str | Path, progress: bool = True) -> int:
    """Read all shards of a folder and compare their checksums with the manifests' -> how many shards there are.

    Raises DataError naming the first shard that is missing or not what was written, or if there is no manifest.
    """
    manifests = sorted(Path(folder).glob("*/manifest.json"))
    if not manifests:
        raise DataError(f"{folder} holds no */manifest.json: only shards that `galip shards` made can be checked")
    listed = [(path.parent / entry["name"], entry["sha256"]) for path in manifests
              for entry in read_manifest(path)["shards"]]  # fmt: skip
    for path, checksum in tqdm(listed, desc="checksums", unit="shard", disable=not progress):
        if not path.is_file():
            raise DataError(f"{path} is missing: bring it back, or make the shards anew")
        if _checksum(path) != checksum:
            raise DataError(
                f"{path} is not what was written, its checksum differs: delete it and the manifest's folder, and make "
                "the shards anew"
            )
    return len(listed)
