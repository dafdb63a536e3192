"""Where everything lies in WebDataset shards: looked up once, then read from disk by number.

The `webdataset` library reads shards as a stream, shuffled through a buffer; where such a stream stood can't be had
back without reading everything again. Here the tar files stay as they are, but an index says at which byte of which
shard a picture begins, so any picture can be read at any time: a run can resume exactly, and processes can share a
batch. The index lies on disk and is read where asked; nothing in memory grows with the number of samples.

    <index>/index.json      the shards that it describes, counts, what had to be left out
    <index>/samples.i64     a row a picture: shard, first byte, bytes, first caption, number of captions
    <index>/captions.i64    a row a caption: first byte in captions.utf8, bytes
    <index>/captions.utf8   all captions, one after the other
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from tqdm import tqdm
from webdataset.tariterators import base_plus_ext

from ..files import write_atomically, write_json
from .data_files import CAPTION_FIELDS, SUFFIXES, BadRow, DataError, stripped
from .disk_rows import Table, Texts

FORMAT = 1
PICTURES = {suffix[1:] for suffix in SUFFIXES}


@dataclass(frozen=True)
class ShardIndex:
    """What an index folder holds.

    Attributes:
        folder: where it lies.
        shards: the tar files.
        samples: a row a picture: shard, first byte, bytes, first caption, number of captions.
        texts: all captions.
        digest: a hash of all captions.
        left_out: samples that can't be used, reason -> how many.
    """

    folder: Path
    shards: list[Path]
    samples: Table
    texts: Texts
    digest: str
    left_out: dict[str, int]


def open_index(shards: Sequence[Path], folder: Path, progress: bool = True) -> ShardIndex:
    """Open the index of some shards; the first time, every shard is gone through once, which may be interrupted.

    Raises:
        DataError: for a shard that is missing, cut, no tar file, or not the one that was indexed; if no sample at all
            has a picture and a caption.
        OSError: if the folder can't be written.
    """
    path = folder / "index.json"
    if not path.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / ".lock").acquire()  # a second process waits for the first one's index
        except OSError as error:
            raise OSError(f"can't write {folder} ({error.strerror}): data.index can name another folder") from None
        with lock:
            if not path.is_file():
                _build(shards, folder, progress)
    try:
        about = json.loads(path.read_text())
        known = {entry["name"]: entry["bytes"] for entry in about["shards"]}
        rows, captions = int(about["samples"]), int(about["captions"])
        digest, left_out = about["digest"], dict(about["left_out"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error!r}): delete {folder} to have it made again") from None
    _compare(shards, known, path)
    texts = Texts(Table(folder / "captions.i64", np.int64, 2, captions), folder / "captions.utf8")
    samples = Table(folder / "samples.i64", np.int64, 5, rows)
    return ShardIndex(folder, list(shards), samples, texts, digest, left_out)


def _compare(shards: Sequence[Path], known: dict[str, int], path: Path) -> None:
    names = {shard.name for shard in shards}
    if missing := [name for name in known if name not in names]:
        raise DataError(
            f"{shards[0].parent / missing[0]} is missing (so are {len(missing)} of the {len(known)} shards in {path}): "
            f"bring it back, or delete {path.parent} to go on with what is there"
        )
    if new := [shard for shard in shards if shard.name not in known]:
        raise DataError(
            f"{new[0]} is not in {path} ({len(new)} shards are new): delete {path.parent} to have them read in; a run "
            "that goes on then sees other batches"
        )
    for shard in shards:
        if (size := shard.stat().st_size) != known[shard.name]:
            raise DataError(
                f"{shard} has {size:,} bytes, {path} says {known[shard.name]:,}: it is cut or another file; bring the "
                f"right one back, or delete {path.parent} if this one is right"
            )


# ---------------------------------------------------------------- making it


def _build(shards: Sequence[Path], folder: Path, progress: bool) -> None:
    parts = [folder / f"{shard.name}.part" for shard in shards]
    for shard, part in zip(tqdm(shards, desc="index of the shards", unit="shard", disable=not progress), parts,
                           strict=True):  # fmt: skip
        if not part.is_file():
            found = scan(shard)
            write_atomically(part, lambda stream, found=found: np.savez(stream, **found))
    _join(shards, parts, folder)
    for part in parts:
        part.unlink()


def _join(shards: Sequence[Path], parts: Sequence[Path], folder: Path) -> None:
    digest, left_out, listed = hashlib.sha256(), Counter(), []
    captions = text_bytes = pictures = 0
    names = ("samples.i64", "captions.i64", "captions.utf8")
    streams = [open(folder / name, "wb") for name in names]
    try:
        for number, (shard, part) in enumerate(zip(shards, parts, strict=True)):
            with np.load(part) as found:  # no pickle
                samples, lengths, content = found["samples"], found["lengths"], found["content"].tobytes()
                left_out.update(json.loads(found["left_out"].item()))
                size = int(found["bytes"])
            firsts = captions + np.cumsum(samples[:, 2]) - samples[:, 2]
            shard_column = np.full(len(samples), number)
            rows = np.stack([shard_column, samples[:, 0], samples[:, 1], firsts, samples[:, 2]], 1)
            starts = text_bytes + np.cumsum(lengths) - lengths
            for stream, values in zip(streams, (rows, np.stack([starts, lengths], 1)), strict=False):
                stream.write(values.astype(np.int64).tobytes())
            streams[2].write(content)
            place = 0
            for length in lengths.tolist():
                digest.update(content[place : place + length] + b"\0")
                place += length
            listed.append({"name": shard.name, "bytes": size, "samples": len(samples)})
            captions, text_bytes, pictures = captions + len(lengths), text_bytes + len(content), pictures + len(samples)
        for stream in streams:
            stream.flush()
            os.fsync(stream.fileno())
    finally:
        for stream in streams:
            stream.close()
    if not pictures:
        reasons = ", ".join(f"{count:,} with {reason}" for reason, count in left_out.items()) or "they are empty"
        raise DataError(
            f"no sample in {shards[0].parent} can be used: {reasons}. Right would be key.jpg (or png, webp) with "
            "key.txt (a caption a line) or key.json (caption or captions) beside it in the tar"
        )
    about = {"format": FORMAT, "samples": pictures, "captions": captions, "digest": digest.hexdigest()[:12]}
    write_json(folder / "index.json", {**about, "left_out": dict(left_out), "shards": listed})


def scan(path: Path) -> dict[str, Any]:
    """Go through a shard's members; pictures are passed over, captions read.

    Returns:
        samples (n, 3): first byte, bytes, number of captions; lengths (m,): bytes of each caption; content: the
        captions as UTF-8; left_out: JSON, reason -> how many; bytes: of the shard.

    Raises:
        DataError: if the shard is missing, cut or no tar file.
    """
    samples, texts, left_out = [], [], Counter()
    size = _check_end(path)
    try:
        with tarfile.open(path, "r:") as archive:
            for members in _samples_of(archive):
                try:
                    picture = next((members[suffix] for suffix in members if suffix in PICTURES), None)
                    if picture is None:
                        raise BadRow("no picture", path)
                    captions = _captions(archive, members, path)
                except BadRow as error:
                    left_out[error.reason] += 1
                    continue
                samples.append((picture.offset_data, picture.size, len(captions)))
                texts += [text.encode() for text in captions]
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{path} is cut or no tar file ({error}): get or make it once more") from None
    return {
        "samples": np.array(samples, dtype=np.int64).reshape(-1, 3),
        "lengths": np.array([len(text) for text in texts], dtype=np.int64),
        "content": np.frombuffer(b"".join(texts), dtype=np.uint8),
        "left_out": json.dumps(left_out),
        "bytes": size,
    }


def _check_end(path: Path) -> int:
    """The bytes of a tar file, which ends in 1,024 zeros; raises DataError if this one doesn't."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as stream:
            stream.seek(max(0, size - 1024))
            end = stream.read()
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror}): bring the shard back") from None
    if len(end) < 1024 or any(end):
        raise DataError(f"{path} is cut: a tar file ends in 1,024 zero bytes, this one doesn't; get or make it anew")
    return size


def _samples_of(archive: tarfile.TarFile) -> Iterator[dict[str, tarfile.TarInfo]]:
    """Neighbours of one key as webdataset groups them, {suffix: member}."""
    key, members = None, {}
    for member in archive:
        archive.members = []  # it keeps all that it has seen
        base, suffix = base_plus_ext(member.name)
        if base is None or not member.isfile():
            continue
        if base != key and members:
            yield members
            members = {}
        key = base
        members[suffix.lower()] = member
    if members:
        yield members


def _captions(archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo], path: Path) -> tuple[str, ...]:
    """The captions of a sample: from its .json, else its .txt, a line each; raises BadRow if there are none."""
    where = f"{path}, {next(iter(members.values())).name}"
    if "json" in members:
        try:
            fields = json.loads(archive.extractfile(members["json"]).read())
        except (ValueError, RecursionError):
            raise BadRow("unreadable captions", where) from None
        fields = fields if isinstance(fields, dict) else {}
        found = next((fields[name] for name in ("captions", *CAPTION_FIELDS) if fields.get(name)), None)
        if isinstance(found, str):
            found = [found]
        if isinstance(found, list) and all(isinstance(text, str) for text in found):
            return stripped(found, where)
    if "txt" in members:
        return stripped(archive.extractfile(members["txt"]).read().decode("utf-8", "replace").split("\n"), where)
    raise BadRow("missing captions", where)
