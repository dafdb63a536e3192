"""DAMSM in CLIP's place, its files, which are its authors', and its pretraining.

A folder holds `text_encoder<N>.pth` and `image_encoder<N>.pth`, bare state dicts after N epochs, and captions*.pickle:
`[train captions, test captions, number -> word, word -> number]`. Without the very pickle that a text encoder was
trained with, its words are others.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..data.batches import Source
from ..files import WeightsError, existing, fit, load_torch, state_dict, write_atomically, write_json
from ..images import to_images
from .bridge import ClipBridge
from .damsm import (
    WIDTH,
    WORDS,
    ClipEyes,
    ImageEncoder,
    Inception,
    TextEncoder,
    cut,
    damsm_losses,
    vocabulary_of,
    words_of,
)
from .training import retrieval

ALL = 1_000_000  # words of a caption: more than any has
MEASURED = 1000  # held-out pictures that a measurement looks at


class DamsmBridge(nn.Module):
    """DAMSM where systems, data, sampling and evaluation expect a `ClipBridge`: its sentences, words, regions, codes.

    Args:
        text: with its vocabulary, word -> number; without, captions can't be read, as out of a generator's file alone.
        image: without, pictures can't be compared with captions.
        most: words that are read of a caption, a choice as in `damsm.cut`, the same at every reading.
    """

    convention = "damsm"
    embed_dim = word_dim = WIDTH
    pixel_mean: Tensor

    def __init__(
        self, text: TextEncoder | None = None, vocabulary: dict[str, int] | None = None,
        image: ImageEncoder | None = None, most: int = ALL,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model = nn.ModuleDict({name: part for name, part in (("text", text), ("visual", image)) if part})
        self.model.eval().requires_grad_(False)
        self.model.vocabulary = self.vocabulary = vocabulary or {}
        self.context_length = most
        self.register_buffer("pixel_mean", torch.zeros(1), persistent=False)  # on its device

    def _part(self, name: str, needed: str) -> nn.Module:
        if name not in self.model:
            files = "text_encoder*.pth and captions.pickle" if name == "text" else "image_encoder*.pth"
            raise WeightsError(f"{needed}: give the folder with {files} that it was trained with, --damsm FOLDER")
        return self.model[name]

    def _chosen(self, caption: str) -> tuple[list[str], list[str]]:
        """The words that are read of a caption, those that are unknown."""
        words = words_of(caption)
        known = [word for word in words if word in self.vocabulary]
        return cut(known, self.context_length, np.random.RandomState(0)), [w for w in words if w not in self.vocabulary]

    def tokenize(self, captions: str | Sequence[str]) -> Tensor:
        """Captions -> word numbers (B, L), 0 behind their ends; unknown words are left out, with one warning.

        Raises ValueError for a caption without any known word, WeightsError if there is no text encoder.
        """
        self._part("text", "captions can't be read without DAMSM's text encoder")
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
        return self._part("text", "captions can't be read without DAMSM's text encoder")(tokens)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Word numbers (B, L) -> sentences (B, 256)."""
        return self.encode_words(tokens)[0]

    def project_words(self, words: Tensor) -> Tensor:
        """Words as they are: they lie in the pictures' space."""
        return words

    def encode_regions(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, H, W) in [-1, 1] -> regions (B, 256, h, w), codes (B, 256)."""
        return self._part("visual", "pictures can't be compared with captions without DAMSM's image encoder")(images)


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
    words = found[3] if isinstance(found, list | tuple) and len(found) == 4 else None
    numbered = isinstance(words, dict) and all(type(w) is str and type(n) is int for w, n in words.items())
    if not numbered or sorted(words.values()) != list(range(len(words))):
        raise WeightsError(
            f"{path} holds no vocabulary: [train captions, test captions, words, their numbers] expected"
        )
    return words


def write_vocabulary(path: Path, vocabulary: dict[str, int], train: Source, test: Source | None) -> None:
    """All captions as numbers, and the words, as the authors' programs read them."""
    captions = [
        [[vocabulary[word] for word in words_of(text)] for texts in data.captions for text in texts] if data else []
        for data in (train, test)
    ]
    content = [*captions, {number: word for word, number in vocabulary.items()}, vocabulary]
    write_atomically(path, partial(pickle.dump, content, protocol=2))


def newest(folder: str | Path, pattern: str) -> Path | None:
    """The file of this name with the highest number in it, if there is any."""
    found = Path(folder).glob(pattern)
    return max(found, key=lambda path: int(re.sub(r"\D", "", path.name) or 0), default=None)


def load_damsm(folder: str | Path, bridge: ClipBridge | None = None, most: int = ALL) -> DamsmBridge:
    """The DAMSM in a folder, the authors' or ours; of several epochs the last.

    Args:
        bridge: the CLIP whose eyes it looks through, if it was trained so.
        most: as for `DamsmBridge`.

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
    image = text.with_name(text.name.replace("text", "image", 1))
    return DamsmBridge(encoder, vocabulary, load_image_encoder(image, bridge) if image.is_file() else None, most)


def load_image_encoder(path: Path, bridge: ClipBridge | None = None) -> ImageEncoder:
    """An image encoder out of its file, with Inception's eyes, which lie in it too, or those of the CLIP `bridge`.

    Raises WeightsError as `load_damsm`, and if it needs a CLIP that isn't given.
    """
    tensors = state_dict(load_torch(path), f"{path} holds no image encoder")
    if any(not name.startswith("emb_") for name in tensors):
        encoder = ImageEncoder(Inception())
        tensors = {n if n.startswith("emb_") else f"eyes.{n}": t for n, t in tensors.items()}
    elif bridge is None:
        raise WeightsError(f"{path} looks through a CLIP's eyes: give the one it was trained with")
    else:
        encoder = ImageEncoder(ClipEyes(bridge))
    fit(encoder, tensors, f"the image encoder in {path}")
    return encoder


def imagenet_inception() -> Inception:
    """InceptionV3 as torchvision has it, trained on ImageNet; WeightsError if it can't be had."""
    from torchvision.models import Inception_V3_Weights

    url, eyes = Inception_V3_Weights.IMAGENET1K_V1.url, Inception()
    try:
        found = torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except Exception as error:  # of the network, the disk, or a file that is something else
        raise WeightsError(
            f"InceptionV3's weights can't be had ({str(error)[:200]}). Without a network, fetch {url} elsewhere and "
            f"put the file into {torch.hub.get_dir()}/checkpoints; or let DAMSM look through CLIP: --eyes clip"
        ) from None
    fit(eyes, {name: tensor for name, tensor in found.items() if not name.startswith(("AuxLogits", "fc"))}, url)
    return eyes


# ---------------------------------------------------------------- pretraining


def learn_damsm(
    train: Source, held_out: Source, folder: str | Path, bridge: ClipBridge | None = None, epochs: int = 200,
    batch_size: int = 48, lr: float = 0.002, seed: int = 0, device: str | torch.device = "cpu", progress: bool = True,
    **record: Any,
) -> dict[str, Any]:  # fmt: skip
    """Pretrain a DAMSM on a data set as its authors did, write it epoch by epoch, measure it -> its record.

    Adam, made anew at every epoch, and a rate that falls by 2% an epoch to a tenth. So an epoch's files are all that
    the next one needs: an interrupted training goes on from the last whole epoch.

    Args:
        held_out: pictures to measure it on, whose captions end the vocabulary.
        folder: to write to; of earlier epochs nothing is kept.
        bridge: the CLIP whose eyes it looks through; None: those of InceptionV3, as published.
        record: more for the record, `damsm.json`.

    Raises:
        WeightsError: if InceptionV3's weights can't be had, or the folder holds a DAMSM of other captions or settings.
        ValueError: for more pictures a step than there are.
    """
    folder, vocabulary = (
        Path(folder),
        vocabulary_of(t for data in (train, held_out) for ts in data.captions for t in ts),
    )
    if batch_size > len(train):
        raise ValueError(f"batch_size = {batch_size} is larger than the data set of {len(train)} pictures")
    made = {"eyes": "inception" if bridge is None else "clip", "batch_size": batch_size, "lr": lr, "seed": seed}
    captions, noted = folder / "captions.pickle", folder / "damsm.json"
    if noted.is_file():
        before = json.loads(noted.read_text())
        if other := [key for key, value in made.items() if before.get(key) != value]:
            raise WeightsError(
                f"{folder} holds a DAMSM made otherwise: {', '.join(other)} differ; choose another folder"
            )
    if captions.is_file() and read_vocabulary(captions) != vocabulary:
        raise WeightsError(f"{folder} holds a DAMSM of other captions: choose another folder")
    torch.manual_seed(seed)
    eyes = imagenet_inception() if bridge is None else ClipEyes(bridge)
    text, image, done = TextEncoder(len(vocabulary)), ImageEncoder(eyes), 0
    if path := newest(folder, "text_encoder*.pth"):
        done = int(re.sub(r"\D", "", path.name))
        fit(text, load_torch(path), str(path))
        image = load_image_encoder(folder / f"image_encoder{done}.pth", bridge)
    else:
        write_vocabulary(captions, vocabulary, train, held_out)
        write_json(noted, made)
    text, image = text.to(device), image.to(device)
    for epoch in range(done + 1, epochs + 1):
        rate = max(lr * 0.98 ** (epoch - 1), lr / 10)
        found = _epoch(text, image, train, vocabulary, (seed, epoch), batch_size, rate, progress)
        _write_epoch(folder, epoch, text, image)
        if progress:
            print(f"epoch {epoch}: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()))
    damsm = DamsmBridge(text, vocabulary, image).to(device)
    made |= {"epochs": max(done, epochs), "retrieval": _measure(damsm, held_out), "torch": torch.__version__, **record}
    write_json(noted, made)
    return made


def _epoch(
    text: TextEncoder, image: ImageEncoder, data: Source, vocabulary: dict[str, int], seed: tuple[int, int],
    batch_size: int, lr: float, progress: bool,
) -> dict[str, float]:  # fmt: skip
    """One pass over the data -> the means of the four losses."""
    torch.manual_seed(seed[0] + 1_000_003 * seed[1])  # of the dropout
    random, steps = np.random.default_rng((*seed, 5)), len(data) // batch_size
    learned = [*text.parameters(), *(weight for weight in image.parameters() if weight.requires_grad)]
    adam, device = torch.optim.Adam(learned, lr=lr, betas=(0.5, 0.999)), learned[0].device
    text.train()
    image.train()
    total = torch.zeros(4)
    for step in tqdm(range(steps), desc=f"DAMSM, epoch {seed[1]}", disable=not progress, mininterval=1, leave=False):
        pixels, rows = data.pixels(data.rows(seed[0], seed[1], step * batch_size, (step + 1) * batch_size), random)
        chosen = [words_of(texts[random.integers(len(texts))]) for texts in (data.captions[row] for row in rows)]
        numbers = [torch.tensor(cut([vocabulary[word] for word in words], WORDS, random)) for words in chosen]
        tokens = nn.utils.rnn.pad_sequence(numbers, batch_first=True).to(device)
        sentence, words = text(tokens)
        losses = damsm_losses(*image(to_images(pixels).to(device)), words, tokens == 0, sentence)
        adam.zero_grad(set_to_none=True)
        losses.sum().backward()
        nn.utils.clip_grad_norm_(text.parameters(), 0.25)
        adam.step()
        total += losses.detach().cpu() / steps
    return dict(zip(("words_0", "words_1", "sentence_0", "sentence_1"), total.tolist(), strict=True))


def _write_epoch(folder: Path, epoch: int, text: TextEncoder, image: ImageEncoder) -> None:
    """The files of an epoch, then nothing of those before; the text encoder's last, which says that both are whole."""
    tensors = {name.removeprefix("eyes."): tensor.cpu() for name, tensor in image.state_dict().items()}
    state = {"image": tensors, "text": {name: tensor.cpu() for name, tensor in text.state_dict().items()}}
    for kind, tensors in state.items():
        write_atomically(folder / f"{kind}_encoder{epoch}.pth", partial(torch.save, tensors))
    for path in folder.glob("*_encoder*.pth"):
        if path.stem.removeprefix("text_encoder").removeprefix("image_encoder") != str(epoch):
            path.unlink()


@torch.no_grad()
def _measure(damsm: DamsmBridge, data: Source) -> float:
    """How often a held-out picture's caption fits it best among those of 100 pictures."""
    damsm.eval()
    random = np.random.default_rng(0)
    rows, found = random.permutation(len(data))[:MEASURED], []
    for own in np.array_split(rows, max(1, len(rows) // 50)):
        pixels, shown = data.pixels(own)
        texts = [data.captions[row][random.integers(len(data.captions[row]))] for row in shown]
        code = damsm.encode_regions(to_images(pixels).to(damsm.pixel_mean.device))[1]
        found.append((code, damsm.encode_text(damsm.tokenize(texts).to(code.device))))
    image, text = (F.normalize(torch.cat(part), dim=-1) for part in zip(*found, strict=True))
    return retrieval(image, text)
