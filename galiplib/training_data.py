"""What the training loop draws its batches from: pictures of any data set, captions as embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .caption_cache import DEFAULT_FOLDER, sentence_embeddings, unique_captions
from .clip_bridge import ClipBridge


class Source(Protocol):
    """A split of a data set: mini birds (`minibirds.MiniBirds`) or photographs (`datasets.Photos`)."""

    captions: list[list[str]]

    def __len__(self) -> int: ...

    def pixels(
        self, rows: Sequence[int] | np.ndarray, random: np.random.Generator | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers (B,) -> pictures (B, S, S, 3) uint8, and the rows they show; `random` draws crops and flips."""


def to_images(pixels: np.ndarray) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


class CaptionIndex:
    """The different captions of a data set, and which of them each picture has.

    Attributes:
        texts: every caption once.
        choices: for each picture, its captions' places in `texts`.
    """

    def __init__(self, captions: list[list[str]]) -> None:
        self.texts = unique_captions(captions)
        position = {text: index for index, text in enumerate(self.texts)}
        self.choices = [np.array([position[text] for text in texts]) for texts in captions]
        self.counts = np.array([len(places) for places in self.choices])

    def draw(self, rows: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """A random caption of each row -> places in `texts` (B,)."""
        picks = random.integers(self.counts[rows])
        return np.array([self.choices[row][pick] for row, pick in zip(rows, picks, strict=True)])


class TrainingData:
    """Real pictures, and their captions as embeddings, through CLIP once and then kept.

    Args:
        bridge: the frozen CLIP.
        source: pictures and captions.
        name: stores the embeddings under `folder`, memory-mapped (`caption_cache`); None keeps them in memory.
        progress: wraps the passes of the captions through CLIP (a tqdm, say).
    """

    def __init__(
        self, bridge: ClipBridge, source: Source, name: str | None = None, folder: str | Path = DEFAULT_FOLDER,
        progress=iter,
    ) -> None:  # fmt: skip
        self.device = bridge.pixel_mean.device
        self.source, self.index = source, CaptionIndex(source.captions)
        self.sentences = sentence_embeddings(bridge, self.index.texts, name, folder, progress)  # (U, E)

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, step: int, size: int, seed: int, part: slice | None = None) -> tuple[Tensor, Tensor]:
        """The batch of a step: pictures (B, 3, H, W) in [-1, 1] and a random caption's embedding each (B, E).

        Every epoch is a new permutation; its last, incomplete batch is dropped, as the authors do.

        Args:
            part: of the batch; only its pictures are read, all captions are given.

        Raises:
            ValueError: if the batch is larger than the data set.
        """
        per_epoch = len(self) // size
        if per_epoch == 0:
            raise ValueError(f"train.batch_size = {size} is larger than the data set of {len(self)} pictures")
        epoch, place = divmod(step - 1, per_epoch)
        rows = np.random.default_rng((seed, epoch)).permutation(len(self))[place * size : (place + 1) * size]
        part, random = part or slice(0, size), np.random.default_rng((seed, 4, step))
        random.random((part.start, 3))  # what the pictures before this part would have drawn
        pixels, rows[part] = self.source.pixels(rows[part], random)
        drawn = self.index.draw(rows, np.random.default_rng((seed, 1, step)))
        return to_images(pixels).to(self.device), torch.from_numpy(self.sentences[drawn]).to(self.device)
