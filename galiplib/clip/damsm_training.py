"""The pretraining of DAMSM, as its authors did it: captions and pictures of a batch must find each other."""

from __future__ import annotations

import json
import pickle
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from ..data.batches import Source
from ..files import WeightsError, fit, load_torch, write_atomically, write_json
from ..images import to_images
from .bridge import ClipBridge
from .damsm import WORDS, ClipEyes, ImageEncoder, Inception, TextEncoder, cut, damsm_losses, vocabulary_of, words_of
from .damsm_files import DamsmBridge, load_image_encoder, newest, read_vocabulary
from .training import retrieval

MEASURED = 1000  # held-out pictures that a measurement looks at


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
        ValueError: for more pictures a step than there are, or a picture without a caption that has words.
    """
    folder, captioned = Path(folder), [texts for data in (train, held_out) for texts in data.captions]
    if wordless := [texts for texts in captioned if not _read(texts)]:
        raise ValueError(f"none of a picture's captions has a word of ASCII letters or digits: {wordless[0]}")
    vocabulary = vocabulary_of(text for texts in captioned for text in texts)
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
        image = load_image_encoder(folder / f"image_encoder{done}.pth", bridge and (lambda: bridge))
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


def _read(captions: list[str]) -> list[list[str]]:
    """The words of a picture's captions; those without any are skipped, as the authors do."""
    return [words for caption in captions if (words := words_of(caption))]


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
        chosen = [texts[random.integers(len(texts))] for texts in (_read(data.captions[row]) for row in rows)]
        numbers = [torch.tensor(cut([vocabulary[word] for word in words], WORDS, random)) for words in chosen]
        tokens = nn.utils.rnn.pad_sequence(numbers, batch_first=True).to(device)
        sentence, words = text(tokens)
        classes = torch.from_numpy(data.classes(rows)).to(device)
        regions, code = image(to_images(pixels).to(device))
        losses = damsm_losses(regions, code, words, tokens == 0, sentence, classes)
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
        chosen = [texts[random.integers(len(texts))] for texts in (_read(data.captions[row]) for row in shown)]
        code = damsm.encode_regions(to_images(pixels).to(damsm.pixel_mean.device))[1]
        found.append((code, damsm.encode_text(damsm.tokenize([" ".join(words) for words in chosen]).to(code.device))))
    image, text = (F.normalize(torch.cat(part), dim=-1) for part in zip(*found, strict=True))
    return retrieval(image, text)


def write_vocabulary(path: Path, vocabulary: dict[str, int], train: Source, test: Source | None) -> None:
    """All captions as numbers, and the words, as the authors' programs read them."""
    captions = [
        [[vocabulary[word] for word in words_of(text)] for texts in data.captions for text in texts] if data else []
        for data in (train, test)
    ]
    content = [*captions, {number: word for word, number in vocabulary.items()}, vocabulary]
    write_atomically(path, partial(pickle.dump, content, protocol=2))


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
