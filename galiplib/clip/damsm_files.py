"""DAMSM in CLIP's place, and its files, which are its authors'.

A folder holds `text_encoder<N>.pth` and `image_encoder<N>.pth`, bare state dicts after N epochs, and captions*.pickle:
`[train captions, test captions, number -> word, word -> number]`. Without the very pickle that a text encoder was
trained with, its words are others.
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..files import WeightsError, existing, fit, load_torch, state_dict
from .bridge import ClipBridge
from .damsm import WIDTH, ClipEyes, ImageEncoder, Inception, TextEncoder, cut, words_of

ELSEWHERE = "elsewhere"  # `clip.damsm` of the authors' generators: the folder is not known
ALL = 1_000_000  # words of a caption: more than any has


class DamsmBridge(nn.Module):
    """DAMSM where systems, data, sampling and evaluation expect a `ClipBridge`: its sentences, words, regions, codes.

    Args:
        text: with its vocabulary, word -> number; without, captions can't be read, as out of a generator's file alone.
        image: without, pictures can't be compared with captions.
        most: words that are read of a caption, a choice as in `damsm.cut`, the same at every reading.
    """

    convention = "damsm"
    embed_dim = word_dim = WIDTH
    asked_by = ""  # whose text encoder is asked for: the beginning of the message
    pixel_mean: Tensor

    def __init__(
        self, text: TextEncoder | None = None, vocabulary: dict[str, int] | None = None,
        image: ImageEncoder | None = None, most: int = ALL,
    ) -> None:  # fmt: skip
        super().__init__()
        self.text, self.visual = text, image
        self.vocabulary, self.context_length = vocabulary or {}, most
        self.register_buffer("pixel_mean", torch.zeros(1), persistent=False)  # on its device
        self.eval().requires_grad_(False)

    @property
    def model(self) -> DamsmBridge:
        """What is behind the bridge: itself."""
        return self

    def _reader(self) -> TextEncoder:
        if self.text is None:
            raise WeightsError(
                f"{self.asked_by}captions can't be read without DAMSM's text encoder: give the folder with "
                "text_encoder*.pth and captions.pickle that the generator was trained with, --damsm FOLDER"
            )
        return self.text

    def _chosen(self, caption: str) -> tuple[list[str], list[str]]:
        """The words that are read of a caption, those that are unknown."""
        words = words_of(caption)
        known = [word for word in words if word in self.vocabulary]
        return cut(known, self.context_length, np.random.RandomState(0)), [w for w in words if w not in self.vocabulary]

    def tokenize(self, captions: str | Sequence[str]) -> Tensor:
        """Captions -> word numbers (B, L), 0 behind their ends; unknown words are left out, with one warning.

        Raises ValueError for a caption without any known word, WeightsError if there is no text encoder.
        """
        self._reader()
        rows, unknown = [], set()
        for caption in [captions] if isinstance(captions, str) else captions:
            words, others = self._chosen(caption)
            unknown |= set(others)
            if not words:
                raise ValueError(f"DAMSM knows none of the words of {caption!r}")
            rows.append(torch.tensor([self.vocabulary[word] for word in words]))
        if unknown:
            shown = ", ".join(sorted(unknown)[:8]) + (f" and {len(unknown) - 8} more" if len(unknown) > 8 else "")
            warnings.warn(f"words that DAMSM never saw are left out: {shown}", stacklevel=2)
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def unread(self, caption: str) -> str:
        """The known words that are not read, of a caption of more than `most`."""
        left = [word for word in words_of(caption) if word in self.vocabulary]
        for word in self._chosen(caption)[0]:
            left.remove(word)
        return " ".join(left)

    def encode_words(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Word numbers (B, L) -> sentences (B, 256), words (B, longest, 256), zeros behind a caption's end."""
        return self._reader()(tokens)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Word numbers (B, L) -> sentences (B, 256)."""
        return self.encode_words(tokens)[0]

    def project_words(self, words: Tensor) -> Tensor:
        """Words as they are: they lie in the pictures' space."""
        return words

    def encode_regions(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, H, W) in [-1, 1] -> regions (B, 256, h, w), codes (B, 256)."""
        if self.visual is None:
            raise WeightsError(
                "pictures can't be compared with captions without DAMSM's image encoder: its folder must hold "
                "image_encoder*.pth, of the same epoch as text_encoder*.pth"
            )
        return self.visual(images)

    encode_image = encode_regions


# ---------------------------------------------------------------- files


class PlainUnpickler(pickle.Unpickler):
    """Lists, tuples, dicts, numbers and strings, of Python 2 too: nothing that has a name to look up, so no code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} in it could run code")


def read_vocabulary(path: str | Path) -> dict[str, int]:
    """The words of a captions.pickle -> their numbers, 0 to V - 1.

    Raises WeightsError for a file that is missing, damaged, holds anything but plain values, or is something else.
    """
    with open(existing(path), "rb") as stream:
        content = stream.read()
    try:
        found = PlainUnpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # of any kind: what the bytes of a broken file lead to can't be listed
        raise WeightsError(f"{path} is refused: {str(error)[:200]}. Right would be lists and dicts of plain values"
                           ) from None  # fmt: skip
    words: Any = found[3] if isinstance(found, list | tuple) and len(found) == 4 else None
    numbered = isinstance(words, dict) and all(type(w) is str and type(n) is int for w, n in words.items())
    if not numbered or sorted(words.values()) != list(range(len(words))):
        raise WeightsError(
            f"{path} holds no vocabulary: [train captions, test captions, words, their numbers] expected"
        )
    return words


def newest(folder: str | Path, pattern: str) -> Path | None:
    """The file of this name with the highest number in it, if there is any."""
    found = Path(folder).glob(pattern)
    return max(found, key=lambda path: int(re.sub(r"\D", "", path.name) or 0), default=None)


def load_damsm(
    folder: str | Path, clip: Callable[[], ClipBridge] | None = None, most: int = ALL, image: bool = True
) -> DamsmBridge:
    """The DAMSM in a folder, the authors' or ours; of several epochs the last.

    Args:
        clip: gives the CLIP whose eyes it looks through, if it was trained so.
        most: as for `DamsmBridge`.
        image: whether its image encoder is wanted, too, if there is one.

    Raises:
        WeightsError: for a folder without text encoder or pickle, files that are unsafe, damaged or don't fit.
    """
    text, captions = newest(folder, "text_encoder*.pth"), newest(folder, "captions*.pickle")
    if text is None or captions is None:
        lacking = (
            "no text_encoder*.pth" if text is None else "no captions*.pickle, without which its words have no names"
        )
        raise WeightsError(f"{folder} holds {lacking}: a DAMSM is both, and image_encoder*.pth for training with it")
    vocabulary = read_vocabulary(captions)
    encoder = TextEncoder(len(vocabulary))
    fit(encoder, state_dict(load_torch(text), f"{text} holds no text encoder"), f"{text} with {captions.name}")
    path = text.with_name(text.name.replace("text", "image", 1))
    visual = load_image_encoder(path, clip) if image and path.is_file() else None
    return DamsmBridge(encoder, vocabulary, visual, most)


def load_image_encoder(path: Path, clip: Callable[[], ClipBridge] | None = None) -> ImageEncoder:
    """An image encoder out of its file, with Inception's eyes, which lie in it, too, or the eyes of a CLIP.

    Raises WeightsError as `load_damsm`, and if it needs a CLIP that isn't given.
    """
    tensors = state_dict(load_torch(path), f"{path} holds no image encoder")
    if any(not name.startswith("emb_") for name in tensors):
        encoder = ImageEncoder(Inception())
        tensors = {n if n.startswith("emb_") else f"eyes.{n}": t for n, t in tensors.items()}
    elif clip is None:
        raise WeightsError(f"{path} looks through a CLIP's eyes: give the one it was trained with")
    else:
        encoder = ImageEncoder(ClipEyes(clip()))
    fit(encoder, tensors, f"the image encoder in {path}")
    return encoder
