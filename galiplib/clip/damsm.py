"""DAMSM: the text and the image encoder of AttnGAN (Xu et al., CVPR 2018, sec. 3.2), and how it compares the two.

A bidirectional LSTM reads captions, words of a vocabulary of its own; frozen InceptionV3 or CLIP's vision tower looks
at pictures, with two learned layers behind it. DF-GAN and RAT-GAN were published with its sentences. Layers that its
authors' files hold have their names there.
Shapes: B pairs, L words of the longest caption, R regions of a picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

WIDTH = 256  # of sentences, words, regions and pictures in their common space
WORDS = 18  # read of a caption in training
INPUT_SIDE = 299  # of the pictures that InceptionV3 sees
# eq. 8, 10 and 11 of the paper, which has 5 for the first; every configuration of its authors has 4
GAMMA_REGIONS, GAMMA_WORDS, GAMMA_PAIRS = 4.0, 5.0, 10.0


# ---------------------------------------------------------------- captions


def words_of(caption: str) -> list[str]:
    """The words that DAMSM knows a caption by: lower case, letters, digits and underscores of ASCII, nothing else."""
    words = re.findall(r"\w+", caption.replace("\ufffd\ufffd", " ").lower())
    return [word for raw in words if (word := raw.encode("ascii", "ignore").decode())]


def vocabulary_of(captions: Iterable[str]) -> dict[str, int]:
    """Words in the order in which they appear -> their numbers, from 1; 0 stands behind a caption's end."""
    words = dict.fromkeys(["<end>", *(word for caption in captions for word in words_of(caption))])
    return {word: number for number, word in enumerate(words)}


def cut(words: Sequence[Any], most: int, random: Any) -> list[Any]:
    """A caption of at most `most` words: of a longer one a random choice in its order; `random`: one of numpy's."""
    places = list(range(len(words)))
    if len(words) > most:
        random.shuffle(places)
    return [words[place] for place in sorted(places[:most])]


# ---------------------------------------------------------------- encoders


class TextEncoder(nn.Module):
    """Captions as word numbers (B, L), 0 behind their end -> sentences (B, 256), words (B, L, 256), zeros there.

    Half of each channel comes from the left, half from the right: a sentence is what both have read at their end.
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.encoder = nn.Embedding(vocabulary, 300)
        self.rnn = nn.LSTM(300, WIDTH // 2, batch_first=True, bidirectional=True)
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The output's L is that of the longest caption; every one must have a word. No order of them changes any."""
        read = F.dropout(self.encoder(tokens), 0.5, self.training)  # (B, L, 300)
        lengths = (tokens != 0).sum(1).cpu()
        states, (last, _) = self.rnn(pack_padded_sequence(read, lengths, batch_first=True, enforce_sorted=False))
        return last.transpose(0, 1).flatten(1), pad_packed_sequence(states, batch_first=True)[0]


class Inception(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] -> InceptionV3's Mixed_6e (B, 768, 17, 17), and its last features (B, 2048)."""

    widths = 768, 2048

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import inception_v3  # takes as long to import as torch

        network = inception_v3(weights=None, aux_logits=False, init_weights=False)
        for name, part in network.named_children():  # in the order in which it runs them
            if name not in ("avgpool", "dropout", "fc"):
                self.add_module(name, part)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = F.interpolate(images, size=(INPUT_SIDE, INPUT_SIDE), mode="bilinear", align_corners=False)
        regions = x
        for name, part in self.named_children():
            x = part(x)
            if name == "Mixed_6e":
                regions = x  # (B, 768, 17, 17)
        return regions, x.mean((2, 3))


class ClipEyes(nn.Module):
    """The same of a CLIP: its patches (B, E, g, g) and the embedding (B, E). Its `bridge` is the caller's."""

    def __init__(self, bridge: Any) -> None:
        super().__init__()
        self._bridge, self.widths = (bridge,), (bridge.embed_dim, bridge.embed_dim)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self._bridge[0].encode_regions(images)


class ImageEncoder(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] -> regions (B, 256, h, w) and code (B, 256): frozen eyes, two learned layers.

    The eyes stay in eval mode. The authors' were in training mode while DAMSM learned, so that the running statistics
    in their files drifted with the data.
    """

    def __init__(self, eyes: Inception | ClipEyes) -> None:
        super().__init__()
        self.eyes = eyes.requires_grad_(False)
        self.emb_features = nn.Conv2d(eyes.widths[0], WIDTH, 1, bias=False)
        self.emb_cnn_code = nn.Linear(eyes.widths[1], WIDTH)
        for layer in (self.emb_features, self.emb_cnn_code):
            nn.init.uniform_(layer.weight, -0.1, 0.1)

    @property
    def proj(self) -> Tensor:
        """What makes codes, under the name of CLIP's."""
        return self.emb_cnn_code.weight

    def train(self, mode: bool = True) -> ImageEncoder:
        super().train(mode)
        self.eyes.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        regions, code = self.eyes(images)
        return self.emb_features(regions), self.emb_cnn_code(code)


# ---------------------------------------------------------------- losses


def attend(regions: Tensor, words: Tensor, mask: Tensor) -> Tensor:
    """Where each word of caption i looks in picture k (eq. 7 and 8).

    Args:
        regions: (K, C, R). words: (I, L, C). mask: (I, L), True behind a caption's end.

    Returns:
        (I, K, R, L), of sum 1 over the regions.
    """
    scores = torch.einsum("kcr,ilc->ikrl", regions, words)
    shares = scores.masked_fill(mask[:, None, None], -torch.inf).softmax(-1)  # of each region, over the words
    return (GAMMA_REGIONS * shares).softmax(-2)


def word_scores(regions: Tensor, words: Tensor, mask: Tensor) -> Tensor:
    """How well caption i fits picture k, word by word (eq. 10), (K, I); arguments as for `attend`."""
    seen = torch.einsum("ikrl,kcr->iklc", attend(regions, words, mask), regions)  # what each word looks at
    likeness = GAMMA_WORDS * F.cosine_similarity(seen, words[:, None], dim=-1)  # (I, K, L)
    return likeness.masked_fill(mask[:, None], -torch.inf).logsumexp(-1).T


def damsm_losses(
    regions: Tensor, code: Tensor, words: Tensor, mask: Tensor, sentence: Tensor, classes: Tensor | None = None
) -> Tensor:
    """The four losses of B pairs: by words, picture -> caption and caption -> picture, and so by sentences, (4,).

    Args:
        regions: of the pictures (B, C, h, w). code: (B, C). words: (B, L, C). mask: (B, L), True behind its end.
        sentence: (B, C). classes: (B,), if given: pairs of one class are no negatives of each other.
    """
    by_words = word_scores(regions.flatten(2), words, mask)  # (B, B): picture, caption
    by_sentence = F.cosine_similarity(code[:, None], sentence[None], dim=-1)
    own = torch.arange(len(code), device=code.device)
    losses = []
    for scores in (by_words, by_sentence):
        scores = GAMMA_PAIRS * scores
        if classes is not None:
            alike = (classes[:, None] == classes) & (own[:, None] != own)
            scores = scores.masked_fill(alike, -torch.inf)
        losses += [F.cross_entropy(scores, own), F.cross_entropy(scores.T, own)]
    return torch.stack(losses)
