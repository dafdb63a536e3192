"""Public data sets, fetched into data/<name>: resumable, checked against known sums, unpacked into the usual layout.

Addresses, sums and the archives' inner structure are those that published code and its users name. The tests reach no
network: they serve archives of that structure themselves, so that a server still answers as it did is not tested.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import re
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm.auto import tqdm

RETRIES = 4  # attempts after the first that bring no byte before a download gives up
PAUSE = 1.0  # seconds before the second attempt, then twice, three times as many
TIMEOUT = 30.0  # seconds of silence after which a connection counts as lost
BLOCK = 1 << 18  # bytes
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError)
NESTED = r"(?:(?:text|(?:train|val)2014(?:-text)?)/)?(.+\.txt)"  # caption archives inside the metadata archives


class DownloadError(OSError):
    """A file that can't be fetched or used; the message names it, says why, and what to do."""


class _ConnectionLost(Exception):
    """The transfer stopped for a reason that may pass."""


@dataclass(frozen=True)
class Source:
    """One archive of a data set."""

    url: str
    file: str  # its name in `downloads/`; ends in .zip, or is a tar of any compression
    makes: tuple[str, ...]  # paths in the data set's folder that are there once it is unpacked
    md5: str | None = None  # its published sum
    members: str = r"(.+)"  # pattern of the names inside that are wanted
    target: str = r"\1"  # the path in the data set's folder under which a match is unpacked


DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="
COCO = "http://images.cocodataset.org/zips/"  # its https certificate names another host
METADATA = ("text", "train/filenames.pickle", "test/filenames.pickle")
SOURCES: dict[str, tuple[Source, ...]] = {
    "birds": (
        Source(f"{DRIVE}1I6ybkR7L64K8hZOraEZDuHh0cCJw5OUj", "birds_metadata.zip", METADATA,
               members=r"(?!__MACOSX/)(?:birds/)?(.+)"),
        Source("https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz", "CUB_200_2011.tgz",
               ("CUB_200_2011",), "97eceeb196236b17998738112f37df78", r"(CUB_200_2011/.+)"),
    ),
    "flowers": (  # shared before September 2021: needs a resource key
        Source(f"{DRIVE}0B0ywwgffWnLLcms2WWJQRFNSWXM&resourcekey=0-Av8zFbeDDvNcF1sSjDR32w", "cvpr2016_flowers.tar.gz",
               ("text",), members=r".*text_c10/class_\d+/(image_\d+\.txt)", target=r"text/\1"),
        Source("https://www.robots.ox.ac.uk/~vgg/data/flowers/102/102flowers.tgz", "102flowers.tgz",
               ("images",), "52808999861908f626f3c1f4e79d11fa", r"jpg/(.+)", r"images/\1"),
    ),
    "faces": (
        Source(f"{DRIVE}0B7EVK8r0v71pZjFTYXZWM3FlRnM&resourcekey=0-dYn9z10tMJOBAkviAcfdyQ", "img_align_celeba.zip",
               ("images",), "00d2c5bc6d35e252742224ab0c1e8fcb", r"img_align_celeba/(.+)", r"images/\1"),
    ),
    "coco": (
        Source(f"{DRIVE}15Fw-gErCEArOFykW3YTnLKpRcPgI_3AB", "coco_metadata.zip", METADATA,
               members=r"(?!__MACOSX/)(?:coco/)?(.+)"),
        Source(f"{COCO}val2014.zip", "val2014.zip",
               ("images/val2014",), "a3d79f5ed8d289b7a7554ce06a5782b3", r"(val2014/.+)", r"images/\1"),
        Source(f"{COCO}train2014.zip", "train2014.zip",
               ("images/train2014",), "0da8c0bd3d6becc4dcb32757491aca88", r"(train2014/.+)", r"images/\1"),
    ),
    "cc3m": (),
    "cc12m": (),
}  # fmt: skip

CONCEPTUAL = """there is no archive of {name}: Google publishes captions and the addresses of the pictures only.
1. Fetch the table {table}, and put the line {header!r} (a tab between) above it.
2. pip install img2dataset, then: img2dataset --url_list {name}.tsv --input_format tsv --url_col url \
--caption_col caption --output_format files --output_folder {name} --image_size 256 \
--resize_mode keep_ratio
3. Place pictures as {images} and captions as {text}; or open img2dataset's folder as it is, as data set 'folder'."""
BY_HAND = {
    "faces": "the captions of faces (RATLIP's CelebA-tiny) and their split have no public link that we know; only the "
    "pictures of CelebA are fetched. Place captions, one a line, as {folder}/text/<key>.txt for {folder}/images/"
    "<key>.jpg, and the lists of keys, if you have them, as {folder}/train/filenames.pickle and test/filenames.pickle",
    "cc3m": CONCEPTUAL.format(
        name="cc3m", table="https://ai.google.com/research/ConceptualCaptions/download as cc3m.tsv",
        header="caption\turl", images="{folder}/images/train/<key>.jpg", text="{folder}/text/train/<key>.txt",
    ),
    "cc12m": CONCEPTUAL.format(
        name="cc12m", table="https://storage.googleapis.com/conceptual_12m/cc12m.tsv",
        header="url\tcaption", images="{folder}/images/<key>.jpg", text="{folder}/text/<key>.txt",
    ),
}  # fmt: skip


def download(name: str, folder: str | Path | None = None, progress: bool = True) -> Path:
    """Fetch the public files of a data set and unpack them into the layout that `open_dataset` expects.

    May be interrupted and called again at any point: what is there is not fetched again, what is half there goes on.
    Archives are kept in `downloads/` inside the folder, and may be deleted once unpacked. One that was fetched
    elsewhere and put there under the name that a message gives is checked and used.

    Args:
        name: one of birds, flowers, faces, coco, cc3m, cc12m. Of faces only the pictures are public, of cc3m and cc12m
            nothing: a warning, for the latter two the error, says what to place where.
        folder: where to, and what is returned; default `data/<name>`.

    Raises ValueError for an unknown name; DownloadError for a file that can't be reached, that is not what was
    published, or that can't be written.
    """
    if name not in SOURCES:
        raise ValueError(f"no data set {name!r} to download: one of {', '.join(SOURCES)}")
    folder = Path("data") / name if folder is None else Path(folder)
    if name in BY_HAND and not (folder / "text").is_dir():
        message = BY_HAND[name].format(folder=folder)
        if not SOURCES[name]:
            raise DownloadError(message)
        warnings.warn(message, stacklevel=2)
    for source in SOURCES[name]:
        try:
            _provide(source, folder, progress)
        except DownloadError:
            raise
        except OSError as error:
            reason = f"can't write {error.filename or folder}: {error.strerror or error}"
            raise DownloadError(f"{reason}; once that is mended, the same call goes on") from error
    return folder


def _provide(source: Source, folder: Path, progress: bool) -> None:
    archive = folder / "downloads" / source.file
    marker = archive.with_name(f"{source.file}.unpacked")
    made = [folder / path for path in source.makes]
    if marker.exists() and all(path.exists() for path in made):
        return
    if not archive.exists():
        _fetch(source.url, archive, progress)
    if source.md5:
        _check_sum(archive, source.md5, progress)
    _unpack(archive, folder, source.members, source.target, progress)
    if "text" in source.makes:
        for nested in sorted(folder.glob("*text.zip")):
            _unpack(nested, folder, NESTED, r"text/\1", progress)
            nested.unlink()
    for path in made:
        if not path.exists():
            _reject(archive, f"it is not the archive expected from {source.url}: no {path} came out of it")
    marker.touch()


# ---------------------------------------------------------------- over the network


def _fetch(url: str, path: Path, progress: bool) -> None:
    """Fetch a file: into `<path>.part`, going on with what is there, renamed once whole."""
    part = path.with_name(f"{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    while True:
        before = _size(part)
        try:
            _fetch_rest(url, part, path, progress)
            break
        except _ConnectionLost as error:
            failures = 1 if _size(part) > before else failures + 1
            if failures > RETRIES:
                kept = f"{_size(part):,} bytes are kept: call again to go on" if _size(part) else "Call again later"
                raise DownloadError(
                    f"can't fetch {url}: {error}. {kept}; or fetch it elsewhere and put it at {path}; then call again"
                ) from None
            if progress:
                tqdm.write(f"{path.name}: {error}; trying again in {PAUSE * failures:g} s")
            time.sleep(PAUSE * failures)
        except KeyboardInterrupt:
            tqdm.write(f"stopped: {_size(part):,} bytes are kept in {part}, and the same call goes on from there")
            raise
    os.replace(part, path)


def _fetch_rest(url: str, part: Path, path: Path, progress: bool) -> None:
    have = _size(part)
    headers = {"User-Agent": "galiplib", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        answer = f"the server answers {error.code} {error.reason}"
        if error.code == 416:  # nothing lies beyond what we have: it is whole, or another file
            if error.headers.get("Content-Range", "").endswith(f"/{have}"):
                return
            part.unlink()
        elif error.code < 500 and error.code not in (408, 429):
            remedy = f"fetch it elsewhere and put it at {path}; then call again"
            raise DownloadError(f"can't fetch {url}: {answer}; {remedy}") from None
        raise _ConnectionLost(answer) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)  # urllib wraps what happened
        raise _ConnectionLost(getattr(reason, "strerror", None) or reason) from None

    with response:
        if response.headers.get_content_type() == "text/html":
            raise DownloadError(
                f"{url} answers with a web page, not with the file (a download limit, or a question to confirm): "
                f"open it in a browser, save the file as {path}, then call again"
            )
        if response.status == 206:
            if not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                part.unlink()
                raise _ConnectionLost("the server sends another part of the file than was asked for")
        else:  # the server sends all of it
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        bar = tqdm(total=total, initial=have, desc=path.name, unit="B", unit_scale=True, disable=not progress)
        with bar, open(part, "ab" if have else "wb") as file:
            while block := _read(response):
                file.write(block)
                bar.update(len(block))
    if total is not None and _size(part) != total:
        raise _ConnectionLost(f"the connection closed after {_size(part):,} of {total:,} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(BLOCK)  # what has arrived: an interruption loses nothing
    except (OSError, http.client.HTTPException) as error:
        raise _ConnectionLost(error) from None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


# ---------------------------------------------------------------- on the disk


def _check_sum(archive: Path, expected: str, progress: bool) -> None:
    digest, label = hashlib.md5(usedforsecurity=False), f"check {archive.name}"
    with open(archive, "rb") as file:
        with tqdm.wrapattr(file, "read", total=_size(archive), desc=label, disable=not progress) as watched:
            while block := watched.read(BLOCK):
                digest.update(block)
    if digest.hexdigest() != expected:
        _reject(archive, f"its md5 is {digest.hexdigest()}, that of the published file {expected}")


def _reject(archive: Path, reason: str) -> None:
    """Move a file out of the way, so that the next call fetches it anew, and say so."""
    wrong = archive.with_name(f"{archive.name}.wrong")
    os.replace(archive, wrong)
    raise DownloadError(f"{archive} can't be used: {reason}. It is now {wrong}; call again to fetch it anew")


def _unpack(archive: Path, folder: Path, members: str, target: str, progress: bool) -> None:
    try:
        for name, stream in tqdm(_files(archive), desc=f"unpack {archive.name}", unit=" files", disable=not progress):
            parts = PurePosixPath(name.replace("\\", "/")).parts
            if ".." in parts or parts[0] == "/" or ":" in parts[0]:
                _reject(archive, f"its member {name!r} would be written outside {folder}")
            if match := re.fullmatch(members, "/".join(parts)):
                path = folder / match.expand(target)
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "wb") as file:
                    shutil.copyfileobj(stream, file, BLOCK)
    except DAMAGED as error:
        _reject(archive, f"it is damaged or no archive ({error})")


def _files(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """The files in a zip or tar, name and content; refuses links and devices, which could lead out of the folder."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                if not info.is_dir():
                    with opened.open(info) as stream:
                        yield info.filename, stream
        return
    with tarfile.open(archive) as opened:
        for member in opened:
            if (content := opened.extractfile(member) if member.isfile() else None) is not None:
                yield member.name, content
            elif not member.isdir():
                _reject(archive, f"its member {member.name!r} is a link or a device")
