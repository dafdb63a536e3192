"""Sentence embeddings of all captions of a data set: through CLIP once, then read from a file.

CUB's 117,880 captions are 241 MB of float32 with ViT-B/32. The file is named by what it depends on, the captions and
the CLIP's text encoder, so another of either is another file; an interrupted computation goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn

from . import DataError

BATCH = 256
DEFAULT_FOLDER = Path("data") / "captions"
Progress = Callable[..., Iterable]  # wraps a range, as tqdm does, or `iter`


class TextEncoder(Protocol):
    """What is asked of a CLIP; `ClipBridge` is one."""

    embed_dim: int
    context_length: int
    pixel_mean: Tensor  # lies on its device
    model: nn.Module

    def tokenize(self, captions: Sequence[str]) -> Tensor: ...
    def encode_text(self, tokens: Tensor) -> Tensor: ...
    def encode_words(self, tokens: Tensor) -> tuple[Tensor, Tensor]: ...
    def encode_image(self, images: Tensor) -> tuple[Tensor, Tensor]: ...


def unique_captions(captions: Iterable[Sequence[str]]) -> list[str]:
    """Every caption once, in the order of length: captions of a batch are then alike, and short ones cost less."""
    return sorted({text for texts in captions for text in texts}, key=lambda text: (len(text), text))


def unreadable(bridge: TextEncoder, captions: Sequence[str]) -> set[str]:
    """The captions of which a CLIP knows no word: they can't be embedded. Halved until those are found."""
    if not getattr(bridge.model, "vocabulary", None):  # OpenAI's knows all
        return set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the words that it doesn't know
        try:
            bridge.tokenize(captions)
            return set()
        except ValueError:
            if len(captions) == 1:
                return set(captions)
    half = len(captions) // 2
    return unreadable(bridge, captions[:half]) | unreadable(bridge, captions[half:])


class Cut(NamedTuple):
    """What a CLIP's context does to captions."""

    longer: int  # captions that it cuts
    different: int  # captions that were different from others
    alike: int  # of as many kinds they are, read up to the cut

    def __str__(self) -> str:
        alike = f"; by the cut {self.different:,} different ones become {self.alike:,}" if self.different else ""
        return f"{self.longer:,} captions{alike}"


def cut_captions(captions: Iterable[str], context_length: int, known: Container[int] | None = None) -> Cut:
    """How many captions have more than `context_length` tokens, begin and end among them, and what that makes alike.

    `known` are the numbers of the pieces that a small CLIP reads; by default all.
    """
    room, longer = context_length - 2, 0
    heads: dict[tuple[int, ...], set[tuple[int, ...]]] = defaultdict(set)  # what is read -> what was written
    for text in captions:
        if len(text.encode()) - text.count(" ") < room:  # no token is shorter than a byte
            continue
        pieces = tuple(piece for word in text.split() for piece in _pieces(word) if known is None or piece in known)
        if len(pieces) >= room:
            heads[pieces[:room]].add(pieces)
            longer += len(pieces) > room
    alike = [len(wholes) for wholes in heads.values() if len(wholes) > 1]
    return Cut(longer, sum(alike), len(alike))


def say_cut(captions: Iterable[Sequence[str]], context_length: int, known: Container[int] | None = None) -> None:
    """Warn if captions, of the first million pictures, are cut; arguments as those of `cut_captions`."""
    cut = cut_captions((text for texts in islice(captions, 10**6) for text in texts), context_length, known)
    if cut.longer:
        warnings.warn(f"longer than the {context_length} tokens that this run's CLIP reads: {cut}", stacklevel=3)


@lru_cache(2**17)
def _pieces(word: str) -> tuple[int, ...]:
    """CLIP's tokens in a word: no token spans two, and words repeat far more often than captions do."""
    return tuple(_tokenizer().encode(word))


@lru_cache(1)
def _tokenizer() -> Any:
    from clip.simple_tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def digest_of(captions: Iterable[str]) -> str:
    """A short hash of captions and their order."""
    digest = hashlib.sha256()
    for text in captions:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:12]


def sentence_embeddings(
    bridge: TextEncoder, captions: Sequence[str], name: str | None = None, folder: str | Path = DEFAULT_FOLDER,
    progress: Progress = iter,
) -> np.ndarray:  # fmt: skip
    """U captions -> their sentence embeddings (U, E), float32; read-only and memory-mapped if they have a name.

    Args:
        name: of the data set, the first part of the file's name; None: nothing is stored.
        folder: of the file. Files of the same name and CLIP but other captions are deleted.
        progress: wraps the batches (a tqdm, say).

    Raises ValueError for an empty caption, OSError if the folder can't be written.
    """
    if name is None:
        starts = range(0, len(captions), BATCH)
        return np.concatenate([_encode(bridge, captions[start : start + BATCH]) for start in progress(starts)])
    path = embeddings_file(bridge, captions, name, folder, progress, digest_of(captions))
    return np.memmap(path, dtype=np.float32, mode="r", shape=(len(captions), bridge.embed_dim))


def embeddings_file(
    bridge: TextEncoder, captions: Sequence[str], name: str, folder: str | Path, progress: Progress, digest: str,
    window: int | None = None,
) -> Path:  # fmt: skip
    """The file of the embeddings (U, E) of captions that may lie on disk themselves; arguments as above.

    `digest` of the captions is a part of the file's name; of `window` captions at a time, each goes through CLIP once.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{name}-{_text_encoder(bridge)}-"
    path = folder / f"{stem}{digest}.f32"
    with FileLock(folder / f".{name}.lock"):  # a second process waits for the first one's file
        if not path.is_file():
            for stale in folder.glob(f"{stem}*"):
                if stale.stem != path.stem:
                    stale.unlink()
            _write(bridge, captions, path, progress, window or BATCH)
    return path


def _write(bridge: TextEncoder, captions: Sequence[str], path: Path, progress: Progress, window: int) -> None:
    part = path.with_suffix(".part")
    window_bytes = window * bridge.embed_dim * 4
    with open(part, "ab") as stream:
        done = stream.tell() // window_bytes  # whole windows of an interrupted computation
        stream.truncate(done * window_bytes)
        for start in progress(range(done * window, len(captions), window)):
            texts = captions[start : start + window]
            different = unique_captions([texts])
            place = {text: index for index, text in enumerate(different)}
            found = [_encode(bridge, different[i : i + BATCH]) for i in range(0, len(different), BATCH)]
            stream.write(np.concatenate(found)[[place[text] for text in texts]].tobytes())
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(part, path)


@torch.no_grad()
def _encode(bridge: TextEncoder, captions: Sequence[str]) -> np.ndarray:
    tokens = bridge.tokenize(captions).to(bridge.pixel_mean.device)
    return bridge.encode_text(tokens).float().cpu().numpy()


def encode_words(bridge: TextEncoder, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """B captions -> their words (B, L, W) in fp32, zeros behind a caption's end, and (B, L), True there."""
    words = bridge.encode_words(bridge.tokenize(captions).to(bridge.pixel_mean.device))[1].float()
    return words, ~words.any(2)


def _text_encoder(bridge: TextEncoder) -> str:
    """A short hash of all that makes a sentence embedding of a caption."""
    model, digest = bridge.model, hashlib.sha256()
    digest.update(repr((bridge.context_length, getattr(model, "vocabulary", None))).encode())
    for name, tensor in model.state_dict().items():
        if not name.startswith("visual.") and name != "logit_scale":
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


class Table:
    """Float32 rows in a file. Not memory-mapped: the pages of a map count as the process's memory once touched."""

    def __init__(self, path: Path, columns: int, rows: int) -> None:
        self.path, self.columns, self.row_bytes = path, columns, 4 * columns
        if (found := path.stat().st_size) != (size := rows * self.row_bytes):
            raise DataError(f"{path} has {found:,} bytes, not {size:,}: delete it to have it made again")

    def __getitem__(self, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """Row numbers (B,) -> (B, columns)."""
        content = bytearray()
        with open(self.path, "rb", buffering=0) as stream:
            for row in rows:
                stream.seek(int(row) * self.row_bytes)
                content += stream.read(self.row_bytes)
        return np.frombuffer(content, np.float32).reshape(len(rows), self.columns)
