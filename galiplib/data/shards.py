"""A data set in WebDataset shards: .tar files of `key.jpg` (or png, webp) with `key.json` or `key.txt` for captions.

As `galip shards` writes them or as img2dataset leaves them (CC3M, CC12M). Pictures are read by number, through an
index (`index`), in an order that is a function of seed and epoch; so a run resumes exactly where it stood, and each of
several processes reads its own pictures of a batch and no others. (The `webdataset` library reads a stream, shuffled
through a buffer; where it stood can't be had back without reading everything again.)
"""

from __future__ import annotations

import json
import os
import posixpath
import sqlite3
import tarfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from braceexpand import braceexpand
from filelock import FileLock
from tqdm import tqdm
from webdataset.tariterators import base_plus_ext

from . import SPLITS, BadRow, DataError, EmptySplit
from .batches import Captions
from .captions import captions_of, captions_of_json, kept
from .decoding import SUFFIXES
from .embeddings import Progress, Table, TextEncoder, digest_of, embeddings_file
from .index import Index, Item, Writer
from .pictures import Photos, some

BLOCK, WINDOW = 256, 64  # neighbours that stay together; blocks that are shuffled among each other
NAMED = 4  # names that an index keeps of what a shard lacks: one more than messages show
ENCODED = 4096  # captions that go through CLIP together, each once
TESTED = 30_000  # pictures held out at most where no split is given: as many as an FID on COCO takes


def shuffled_rows(count: int, seed: int, epoch: int, start: int, stop: int) -> np.ndarray:
    """The rows at places `start` up to `stop` of an epoch over `count` rows, (stop - start,): a shuffled order.

    Blocks of 256 neighbours come in random order, and the rows of 64 such blocks, 16,384 of them, are shuffled among
    each other, so that reads stay close together. It is what webdataset's shuffling of shards and its buffer do; but
    any part can be computed at once, without a buffer that would have to be filled again after an interruption.
    """
    _, begins = _blocks(count, seed, epoch)
    first, last = np.searchsorted(begins, [start, stop - 1], side="right") - 1
    found = np.concatenate([_window(count, seed, epoch, window) for window in range(first, last + 1)])
    return found[start - begins[first] : stop - begins[first]]


@lru_cache(2)
def _blocks(count: int, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """The order of the blocks; the place at which every window begins."""
    order = np.random.default_rng((seed, epoch)).permutation(-(-count // BLOCK))
    sizes = np.minimum(BLOCK, count - order * BLOCK)
    return order, (np.cumsum(sizes) - sizes)[::WINDOW]


@lru_cache(2)
def _window(count: int, seed: int, epoch: int, window: int) -> np.ndarray:
    """The rows of a window, shuffled."""
    starts = _blocks(count, seed, epoch)[0][window * WINDOW : (window + 1) * WINDOW] * BLOCK
    rows = np.concatenate([np.arange(start, min(start + BLOCK, count)) for start in starts])
    return np.random.default_rng((seed, 5, epoch, window)).permutation(rows)


class Shards(Photos):
    """One split of a data set in shards, as `open_shards` makes it: rows in blocks, embeddings beside the index."""

    def rows(self, seed: int, epoch: int, start: int, stop: int) -> np.ndarray:
        return shuffled_rows(len(self), seed, epoch, start, stop)

    @property
    def digest(self) -> str:
        """A hash of all captions of the index."""
        return self.index.digest

    @property
    def texts(self) -> Sequence[str]:
        return self.index.texts

    @property
    def fingerprint(self) -> str:
        """Of the shards' names and sizes, which of their pictures these are, and all captions."""
        rows = f"{self.first} {len(self)} {self.index.digest}"
        return digest_of([rows, *(f"{name} {size}" for name, size in sorted(self.index.shards.items()))])

    def draw(self, rows: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """A random caption of each row -> places among all captions of the index (B,)."""
        first, count = self.index.spans(self.first + rows)
        return first + random.integers(count)

    def embedded(
        self, bridge: TextEncoder, name: str | None, folder: str | Path, progress: Progress
    ) -> tuple[Captions, Table]:
        return self, self.sentences(bridge, progress)

    def sentences(self, bridge: TextEncoder, progress: Progress = iter) -> Table:
        """The embeddings of all captions of the index (M, E), float32, on disk beside it: computed once a CLIP."""
        index = self.index
        path = embeddings_file(bridge, index.texts, "captions", index.path.parent, progress, index.digest, ENCODED)
        return Table(path, bridge.embed_dim, len(index.texts))


def open_shards(
    folder: str | Path, split: str = "train", image_size: int = 256, index: str | Path | None = None,
    progress: bool = True,
) -> Shards:  # fmt: skip
    """Open a split of a data set in shards. No picture is opened; the first time, an index is made.

    Args:
        folder: with `train/*.tar` and `test/*.tar`, as `galip shards` writes them; or with `*.tar`, as img2dataset
            does, or such a pattern as `cc12m/{00000..01242}.tar`: there the last tenth of the pictures, 30,000 at
            most, is for testing.
        image_size: side of the pictures that `Shards.pixels` makes, pixels.
        index: the folder for index and embeddings; by default `index` beside the shards.

    Warns if samples had to be left out, or the split had to be made. Raises DataError naming the file, for shards that
    are missing, cut, unfinished, or don't match their manifest or index, and for pictures that were stored smaller than
    asked for; OSError if the index can't be written.
    """
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r} of shards: one of {', '.join(SPLITS)}")
    shards, whole = find_shards(str(folder), split)
    place = shards[0].parent
    manifest = _manifest(place)
    finished = {path.name.removesuffix("_stats.json") for path in place.glob("*_stats.json")}  # img2dataset writes them
    if finished and (left := [shard for shard in shards if shard.stem not in finished]):
        raise DataError(f"{left[0]} has no {left[0].stem}_stats.json: let img2dataset finish it, or delete it")
    default = "index" if "{" not in str(folder) else f"index of {shards[0].stem} to {shards[-1].stem}"
    own = index and Path(index) / ("" if whole else split)
    opened = open_index(shards, own or place / default, progress)
    if opened.left_out:
        listed = _counted(opened.left_out)
        warnings.warn(f"{place}: {opened.pictures:,} pictures; left out: {listed}", stacklevel=2)
    size = manifest.get("image_size", image_size)
    if size < image_size:
        raise DataError(
            f"{place / 'manifest.json'}: the pictures were stored for {size} px: set data.image_size={size}, or make "
            f"shards with data.image_size={image_size}"
        )
    rows = range(opened.pictures)
    if whole:
        tested = min(max(1, len(rows) // 10), TESTED, len(rows) - 1)
        rows = rows[: len(rows) - tested] if split == "train" else rows[len(rows) - tested :]
        if not rows:
            raise EmptySplit(f"the split {split} of {place} is empty: its only picture is for train")
        warnings.warn(f"{place} has no train and test folders: its last {tested:,} are for testing", stacklevel=2)
    return Shards("shards", split, place, image_size, opened, rows, manifest.get("drawn", True))


def find_shards(folder: str, split: str) -> tuple[list[Path], bool]:
    """The tar files of a split, sorted, and whether they hold the others too; raises DataError if any is missing."""
    if "{" in folder:
        shards = [Path(name) for name in braceexpand(folder)]
        if gone := [shard for shard in shards if not shard.is_file()]:
            raise DataError(f"{gone[0]} is missing ({len(gone)} of the {len(shards)} shards of {folder} are)")
        return shards, True
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"there is no folder {root}: `galip shards --out {root}` makes shards, and so does img2dataset")
    found = {each: sorted((root / each).glob("*.tar")) for each in SPLITS}
    if found[split]:
        return found[split], False
    if any(found.values()):
        raise EmptySplit(f"{root / split} holds no .tar files: other splits are there, this one is missing")
    if not (shards := sorted(root.glob("*.tar"))):
        raise DataError(f"{root} holds no shards: right would be train/*.tar and test/*.tar, or *.tar of img2dataset")
    return shards, True


def read_manifest(path: Path) -> dict[str, Any]:
    """What `galip shards` wrote about a folder; raises DataError if that can't be read."""
    try:
        manifest = json.loads(path.read_text())
        return {**manifest, "made": dict(manifest["made"]), "shards": [dict(entry) for entry in manifest["shards"]],
                "complete": bool(manifest["complete"])}  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is damaged ({error!r}): delete it to read the shards as they are, or {path.parent} to make them "
            "anew"
        ) from None


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder, {} if `galip shards` didn't write there; raises DataError if it isn't so."""
    path = folder / "manifest.json"
    if not path.is_file():
        return {}
    manifest = read_manifest(path)
    if not manifest["complete"]:
        raise DataError(f"{path}: the shards are not finished; the same `galip shards` command goes on")
    known = {entry["name"]: entry["bytes"] for entry in manifest["shards"]}
    _compare(list(folder.glob("*.tar")), known, path, f"delete {folder} to make all anew")
    return manifest


def _named(shards: Sequence[Path]) -> dict[str, Path]:
    """Shards by what an index calls them: the name, or the way to it from the first one's folder."""
    return {Path(os.path.relpath(shard, shards[0].parent)).as_posix(): shard for shard in shards}


def missing_shard(shard: Path, path: Path, remedy: str) -> DataError:
    return DataError(f"{shard} is missing, {path} lists it: bring it back, or {remedy}")


def _compare(shards: Sequence[Path], known: dict[str, int], path: Path, remedy: str) -> None:
    """Raises DataError unless these are the shards that `path` lists, name -> bytes."""
    there = _named(shards)
    for name, size in known.items():
        if name not in there:
            raise missing_shard(shards[0].parent / name, path, remedy)
        if (found := there[name].stat().st_size) != size:
            raise DataError(
                f"{there[name]} has {found:,} bytes, {path} says {size:,}: it is cut or another file; bring the right "
                f"one back, or {remedy}"
            )
    if new := [shard for name, shard in there.items() if name not in known]:
        raise DataError(f"{new[0]} is not in {path} ({len(new)} shards are new): take it away, or {remedy}")


# ---------------------------------------------------------------- their index


def open_index(shards: Sequence[Path], folder: Path, progress: bool = True) -> Index:
    """Open the index of some shards; the first time, every shard is gone through once, which may be interrupted.

    Raises DataError for a shard that is missing, cut, no tar file, or not the one that was indexed, or if no sample at
    all has a picture and a caption; OSError if the folder can't be written.
    """
    path = folder / "index.sqlite"
    if not path.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / ".lock").acquire()  # a second process waits for the first one's index
        except OSError as error:
            raise OSError(f"can't write {folder} ({error.strerror}): data.index can name another folder") from None
        with lock:
            if not path.is_file():
                _build(shards, path, progress)
    index = Index(path, shards[0].parent)
    _compare(
        shards, index.shards, path, f"delete {folder} to have all read in; a run that goes on then sees other batches"
    )
    return index


def _build(shards: Sequence[Path], path: Path, progress: bool) -> None:
    part, named = path.with_suffix(".part"), list(_named(shards).items())
    try:
        writer, done = _begun(part, named)
        with closing(writer.database) as database:
            for name, shard in tqdm(named[done:], desc="index of the shards", unit="shard", disable=not progress):
                size, left_out = _check_end(shard), list[BadRow]()
                for item in scan(shard, left_out):
                    writer.add(replace(item, image=Path(name)))
                database.execute("INSERT INTO shards VALUES (?,?)", (name, size))
                said = defaultdict[str, list[str]](list)
                for error in left_out:
                    said[error.reason].append(str(error.path))
                found = [(reason, len(names), "\n".join(names[:NAMED])) for reason, names in said.items()]
                database.executemany("INSERT INTO left_out VALUES (?,?,?)", found)
                database.commit()
            if not writer.pictures:
                listed = _counted(database.execute("SELECT * FROM left_out ORDER BY rowid"))
                raise DataError(
                    f"no sample in {shards[0].parent} can be used: {listed or 'they are empty'}. Right would be "
                    "key.jpg (or png, webp) with key.txt (a caption a line) or key.json (caption or captions) beside "
                    "it in the tar"
                )
            writer.finish()
    except sqlite3.Error as error:  # of a full disk, say
        raise OSError(f"can't write {part} ({error})") from None
    os.replace(part, path)


def _counted(rows: Iterable[tuple]) -> str:
    """What an index has left out: each reason, how often, and the first names, which older indexes lack."""
    counts, names = Counter[str](), defaultdict[str, list[str]](list)
    for reason, count, *named in rows:
        counts[reason] += count
        names[reason] += named[0].split("\n") if named else []
    listed = {reason: f" ({some(found)})" if found else "" for reason, found in names.items()}
    return ", ".join(f"{count:,} with {reason}{listed[reason]}" for reason, count in counts.items())


def _begun(part: Path, named: Sequence[tuple[str, Path]]) -> tuple[Writer, int]:
    """What an interruption left of the index, and how many shards are in it; begun anew if it is of other shards."""
    try:
        writer = Writer(part)
        writer.database.execute("SELECT named FROM left_out LIMIT 0")  # or an older version began it
        done = writer.database.execute("SELECT name, bytes FROM shards ORDER BY rowid").fetchall()
        if done == [(name, shard.stat().st_size) for name, shard in named[: len(done)]]:
            return writer, len(done)
        writer.database.close()
    except (sqlite3.Error, OSError):
        pass
    part.unlink(missing_ok=True)
    return Writer(part), 0


def scan(path: Path, left_out: list[BadRow]) -> Iterator[Item]:
    """The pictures in a tar file and their captions; pictures are passed over, captions read.

    `left_out` is told of those that can't be used. Raises DataError if the file is cut or no tar file.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            for key, group in groupby(_members(archive, left_out, path), itemgetter(0)):  # neighbours, as webdataset
                try:
                    yield _item(archive, {suffix: member for _, suffix, member in group}, key, path, left_out)
                except BadRow as error:
                    left_out.append(error)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{path} is cut or no tar file ({error}): get or make it once more") from None


def _members(
    archive: tarfile.TarFile, left_out: list[BadRow], path: Path
) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """The files: key, suffix in small letters, member; links and names without a suffix are left out."""
    for member in archive:
        vars(archive)["members"] = []  # it keeps all that it has seen
        base, suffix = base_plus_ext(member.name)
        hidden = posixpath.basename(member.name).startswith(".")
        if base is not None and member.isfile():
            yield base, suffix.lower(), member
        elif not member.isdir() and not hidden:
            left_out.append(BadRow("no file with a suffix", f"{path.name}, {member.name}"))


def _item(
    archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo], key: str, path: Path, left_out: list[BadRow]
) -> Item:
    """A sample; its captions are in its .json, else in its .txt, one a line. Raises BadRow if it can't be used."""
    picture = next((members[ending] for ending in members if f".{ending}" in SUFFIXES), None)
    where = f"{path.name}, {key}"
    if picture is None:
        raise BadRow("no picture", where)
    span = picture.offset_data, picture.size
    texts = {suffix: file for suffix in ("json", "txt")
             if suffix in members and (file := archive.extractfile(members[suffix]))}  # fmt: skip
    if "json" in texts and (found := captions_of_json(texts["json"].read(), where)):
        return Item(key, path, kept(found, where, left_out), span=span)
    if "txt" in texts:
        return Item(key, path, captions_of(texts["txt"].read(), where, left_out), span=span)
    raise BadRow("missing captions", where)


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
