"""What the training loop draws its batches from: pictures of any data set, captions as embeddings."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..images import to_images
from . import DataError
from .embeddings import (
    DEFAULT_FOLDER,
    Progress,
    Table,
    TextEncoder,
    digest_of,
    encode_words,
    sentence_embeddings,
    unique_captions,
)  # fmt: skip

Pixels = tuple[np.ndarray, np.ndarray]  # pictures (B, S, S, 3) uint8, and the rows (B,) that they show
DRAWS = 3  # random numbers that a picture takes: where it is cropped, across and down, and whether it is flipped


class Captions(Protocol):
    """The captions of a split as embeddings know them, each at a place of its own."""

    @property
    def digest(self) -> str: ...  # a hash of all captions
    @property
    def texts(self) -> Sequence[str]: ...  # by place

    def draw(self, rows: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """A random caption of each row -> their places (B,)."""


class Source:
    """A split of a data set: `minibirds.MiniBirds`, or photographs (`pictures.Photos`), also in shards."""

    captions: Sequence[list[str]]  # those of every row
    labels: np.ndarray | None = None  # what the pictures show, of mini birds; None where the truth is not known

    def __len__(self) -> int:
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        """A short hash that tells these pictures and captions from others, without opening each; here the captions'."""
        return digest_of("\n".join(texts) for texts in self.captions)

    def smaller(self, side: int) -> int:
        """How many pictures have fewer pixels than `side` across or down, where that is known."""
        return 0

    def pixels(self, rows: Sequence[int] | np.ndarray, random: np.random.Generator | None = None) -> Pixels:
        """Row numbers (B,) -> pictures; `random` draws crops and flips, `DRAWS` numbers a picture in their order."""
        raise NotImplementedError

    def rows(self, seed: int, epoch: int, start: int, stop: int) -> np.ndarray:
        """The rows at places `start` up to `stop` of an epoch, each of which is a new permutation."""
        return _permutation(len(self), seed, epoch)[start:stop]

    def classes(self, rows: np.ndarray) -> np.ndarray:
        """Row numbers (B,) -> numbers (B,), equal where pictures are of one class; here each is of its own."""
        return rows

    def embedded(
        self, bridge: TextEncoder, name: str | None, folder: str | Path, progress: Progress
    ) -> tuple[Captions, np.ndarray | Table]:
        """The captions, and their embeddings (U, E) by place; arguments as `TrainingData`."""
        index = CaptionIndex(self.captions)
        return index, sentence_embeddings(bridge, index.texts, name, folder, progress)


@lru_cache(2)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


class CaptionIndex:
    """The different captions of a data set, and which of them each picture has."""

    def __init__(self, captions: Sequence[list[str]]) -> None:
        self.texts = unique_captions(captions)
        position = {text: index for index, text in enumerate(self.texts)}
        self.choices = [np.array([position[text] for text in texts]) for texts in captions]  # a picture's, in `texts`
        self.counts = np.array([len(places) for places in self.choices])
        self.digest = digest_of(self.texts)

    def draw(self, rows: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """A random caption of each row -> places in `texts` (B,)."""
        picks = random.integers(self.counts[rows])
        return np.array([self.choices[row][pick] for row, pick in zip(rows, picks, strict=True)])


@dataclass(eq=False)
class BatchReader(Dataset):
    """What each step's batch shows: a function of the step and of what is given here, and of nothing else."""

    source: Source
    captions: Captions
    sentences: np.ndarray | Table  # the embeddings of all captions (U, E)
    size: int  # pictures of the whole batch
    seed: int  # of the order of the rows, crops, flips and captions
    part: slice  # the pictures of it that are read

    def rows(self, step: int) -> np.ndarray:
        """The rows (B,) of the whole batch: of an epoch without its rest, or of as many whole epochs as it takes."""
        count, first = len(self.source), (step - 1) * self.size
        if self.size <= count:
            epoch, place = divmod(step - 1, count // self.size)
            return self.source.rows(self.seed, epoch, place * self.size, (place + 1) * self.size).copy()
        epochs = range(first // count, (first + self.size - 1) // count + 1)
        found = np.concatenate([self.source.rows(self.seed, epoch, 0, count) for epoch in epochs])
        return found[first % count :][: self.size]

    def read(self, step: int) -> tuple[np.ndarray, ...]:
        """Pictures of the part (b, S, S, 3) uint8; the whole batch's embeddings (B, E), captions' places, rows (B,)."""
        rows = self.rows(step)
        bits = np.random.PCG64((self.seed, 4, step)).advance(DRAWS * self.part.start)  # past the pictures before
        pixels, rows[self.part] = self.source.pixels(rows[self.part], np.random.Generator(bits))
        places = self.captions.draw(rows, np.random.default_rng((self.seed, 1, step)))
        return pixels, np.asarray(self.sentences[places]), places, rows

    def __getitem__(self, step: int) -> tuple[np.ndarray, ...] | DataError:
        """The same in a worker process, where an error is handed over, not raised: it would come as a traceback."""
        try:
            return self.read(step)
        except DataError as error:
            return DataError(str(error))


def _as_it_is(batch: Any) -> Any:
    return batch


def _calm(worker: int) -> None:
    """Leave Ctrl-C to the training process, which ends its step first, and end on SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class TrainingData:
    """Real pictures, and their captions as embeddings, through CLIP once and then kept.

    A batch is a function of step, size and seed: no position has to be saved for a run to go on exactly, and every
    process of several can have its part of any batch.

    Args:
        name: stores the embeddings under `folder`, memory-mapped (`embeddings`); None keeps them in memory. Shards
            have theirs beside their index, whatever the name.
        progress: wraps the passes of the captions through CLIP (a tqdm, say).
        workers: processes that read the pictures of the coming steps; 0: they are read when asked for.
    """

    def __init__(
        self, bridge: TextEncoder, source: Source, name: str | None = None, folder: str | Path = DEFAULT_FOLDER,
        progress: Progress = iter, workers: int = 0,
    ) -> None:  # fmt: skip
        self.bridge, self.device = bridge, bridge.pixel_mean.device
        self.source, self.workers = source, workers
        self._next: tuple[int, BatchReader, Iterator] | None = None  # what the workers are at
        self.captions, self.sentences = source.embedded(bridge, name, folder, progress)
        self.digest = self.captions.digest

    def __len__(self) -> int:
        return len(self.source)

    def batch(
        self, step: int, size: int, seed: int, part: slice | None = None, wants: Collection[str] = ()
    ) -> tuple[Any, ...]:
        """The batch of a step: pictures (B, 3, H, W) in [-1, 1] and a random caption's embedding each (B, E).

        Every epoch is a new order of the rows; its last, incomplete batch is dropped, as the authors do, and a batch of
        more than all has some several times. Of a training in several processes, `part` are the pictures that this one
        wants: `slice(first, last)`; the embeddings are the whole batch's all the same, for the mismatched captions.

        If more is wanted, of "words", "picture", "classes", all fields of a `system.Text` follow the pictures in their
        order, None where not wanted: words go through the text encoder anew each time (CUB's alone would fill 20 GB),
        pictures through CLIP as they are cropped, those outside of `part` left 0.

        Raises DataError if shards can't be read, or no picture at all can be decoded.
        """
        part = part or slice(0, size)
        reader = BatchReader(self.source, self.captions, self.sentences, size, seed, part)
        pixels, sentences, places, rows = self._from_workers(reader, step) if self.workers else reader.read(step)
        images, sentence = to_images(pixels).to(self.device), torch.from_numpy(sentences).to(self.device)
        if not wants:
            return images, sentence
        words = mask = picture = classes = None
        with torch.no_grad():
            if "words" in wants:
                words, mask = encode_words(self.bridge, [self.captions.texts[place] for place in places])
            if "picture" in wants:
                picture = torch.zeros_like(sentence)
                picture[part] = self.bridge.encode_image(images)[1].to(picture)
        if "classes" in wants:
            classes = torch.from_numpy(self.source.classes(rows)).to(self.device)
        return images, sentence, words, mask, picture, classes

    def _from_workers(self, reader: BatchReader, step: int) -> tuple[np.ndarray, ...]:
        if self._next and self._next[0] == step and vars(self._next[1]) == vars(reader):
            batches = self._next[2]
        else:
            batches = iter(DataLoader(
                reader, None, sampler=itertools.count(step), num_workers=self.workers, collate_fn=_as_it_is,
                worker_init_fn=_calm,
            ))  # fmt: skip
        self._next = None
        try:
            found = next(batches)
        except RuntimeError as error:  # of a worker that was killed
            raise DataError(f"a process that reads pictures ahead ended ({error}): set data.workers lower") from None
        if isinstance(found, DataError):
            raise found
        self._next = step + 1, reader, batches
        return found
