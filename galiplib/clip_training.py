"""Training a small CLIP on two cores, and measuring what it has understood.

The loss is CLIP's contrastive one (Radford et al., 2021, fig. 3) plus a start-up aid from before CLIP: both towers also
predict the word pairs of the captions ("red wings", "blue belly") through one shared linear layer (Joulin et al., 2016,
"Learning Visual Features from Large Weakly Supervised Data"; Li et al., 2017, "Learning Visual N-Grams from Web Data").
A contrastive loss alone first learns bags of colours: swapping "red wings, blue belly" for "blue wings, red belly" goes
unnoticed for a thousand steps, since neither tower gains by binding colours to parts before the other does.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import minibirds
from .clip_bridge import CLIP, ClipBridge, bpe_tokenizer
from .config import ClipConfig, DataConfig

WARM_UP_STEPS = 50
PAIRS = 256  # word pairs that the start-up aid predicts, the most frequent ones
POSITION_SCALE = 0.5  # CLIP's own 0.09 hides a patch's place behind its content, and binding takes twice as long
TOKEN_SCALE = 0.1


def vocabulary_of(captions: list[str]) -> list[int]:
    """The sorted BPE ids that occur in the captions, with the start and end marks (the highest ids) last."""
    tokenizer = bpe_tokenizer()
    used = {piece for text in set(captions) for piece in tokenizer.encode(text)}
    return sorted(used | {tokenizer.encoder["<|startoftext|>"], tokenizer.encoder["<|endoftext|>"]})


def clip_geometry(config: ClipConfig, data: DataConfig) -> dict[str, int]:
    """The small CLIP's arguments for `clip.model.CLIP`, except its vocabulary."""
    return {
        "embed_dim": config.embed_dim,
        "image_resolution": data.image_size,
        "vision_layers": config.layers,
        "vision_width": config.width,
        "vision_patch_size": config.patch_size,
        "context_length": config.context_length,
        "transformer_width": config.text_width,
        "transformer_heads": config.text_width // 32,
        "transformer_layers": config.text_layers,
    }


def new_clip(geometry: dict[str, int], vocabulary: list[int]) -> CLIP:
    """An untrained `clip.model.CLIP` in fp32 whose token ids are the positions in `vocabulary`."""
    model = CLIP(vocab_size=len(vocabulary), **geometry).float()
    model.vocabulary = list(vocabulary)
    nn.init.normal_(model.visual.positional_embedding, std=POSITION_SCALE)
    nn.init.normal_(model.positional_embedding, std=TOKEN_SCALE)
    nn.init.normal_(model.token_embedding.weight, std=TOKEN_SCALE)
    return model


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor | float) -> Tensor:
    """Embeddings (B, E) of B matching pairs, inverse temperature -> scalar: cross-entropy both ways, averaged."""
    logits = scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T  # (B, B)
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def word_pair_targets(captions: list[list[str]]) -> tuple[list[str], dict[str, Tensor], Tensor]:
    """What the start-up aid predicts.

    Returns:
        the word pairs; for every unique caption and, in the last value, for every image (N, pairs): a distribution
        over its word pairs, rare ones weighted more (by -log of the share of images that have them).
    """
    unique = sorted({text for texts in captions for text in texts})
    words = {text: re.findall(r"[^\W\d_]+", text.lower()) for text in unique}
    pairs_of = {text: set(zip(w, w[1:], strict=False)) for text, w in words.items()}
    counts = Counter(pair for text in unique for pair in pairs_of[text])
    pairs = [pair for pair, _ in counts.most_common(PAIRS)]
    index = {pair: i for i, pair in enumerate(pairs)}
    of_text = {text: torch.zeros(len(pairs)) for text in unique}
    for text in unique:
        of_text[text][[index[pair] for pair in pairs_of[text] if pair in index]] = 1
    of_image = torch.stack([torch.stack([of_text[text] for text in texts]).amax(0) for texts in captions])
    weight = -of_image.mean(0).clamp(1e-4, 1).log()

    def distribution(marks: Tensor) -> Tensor:
        return marks * weight / (marks * weight).sum(-1, keepdim=True).clamp_min(1e-6)

    return [" ".join(pair) for pair in pairs], {t: distribution(m) for t, m in of_text.items()}, distribution(of_image)


@dataclass(frozen=True)
class ClipReport:
    """One training step: its number, the contrastive and the word-pair loss, and the inverse temperature."""

    step: int
    contrastive: float
    word_pairs: float
    scale: float


def to_images(pixels: np.ndarray) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_clip(
    bridge: ClipBridge, data: minibirds.MiniBirds, config: ClipConfig, seed: int = 0
) -> Iterator[ClipReport]:
    """Train `bridge.model` (made with `trainable=True`) on a data set, a step a report.

    Every step: a random caption of each of `config.batch_size` random images; AdamW, warm-up, cosine to zero.
    """
    model, device = bridge.model, bridge.pixel_mean.device
    random = np.random.default_rng(seed)
    pairs, of_text, of_image = word_pair_targets(data.captions)
    texts = list(of_text)
    position = {text: index for index, text in enumerate(texts)}
    choices = np.array([[position[text] for text in row] for row in data.captions])  # (N, captions an image)
    tokens = bridge.tokenize(texts).to(device)
    of_text, of_image = torch.stack(list(of_text.values())).to(device), of_image.to(device)

    pair_head = nn.Linear(bridge.embed_dim, len(pairs)).to(device)
    parameters = [*model.parameters(), *pair_head.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98))
    warm_up = min(WARM_UP_STEPS, max(1, config.max_steps // 4))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * step / config.max_steps)),
    )
    for step in range(1, config.max_steps + 1):
        rows = random.integers(len(data), size=config.batch_size)
        chosen = torch.from_numpy(choices[rows, random.integers(choices.shape[1], size=len(rows))]).to(device)
        _, image = bridge.encode_image(to_images(data.images[rows]).to(device))  # (B, E)
        text = bridge.encode_text(tokens[chosen])  # (B, E)
        scale = model.logit_scale.exp().clamp(max=100)
        contrastive = contrastive_loss(image, text, scale)
        word_pairs = F.cross_entropy(pair_head(image), of_image[torch.from_numpy(rows).to(device)])
        word_pairs = word_pairs + F.cross_entropy(pair_head(text), of_text[chosen])
        optimizer.zero_grad(set_to_none=True)
        (contrastive + word_pairs).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        yield ClipReport(step, contrastive.item(), word_pairs.item(), scale.item())


# ---------------------------------------------------------------- what it has understood

PROMPTS = {
    "body": [f"a {colour} bird" for colour in minibirds.COLOURS],
    "wing": [f"this bird has {colour} wings" for colour in minibirds.COLOURS],
    "belly": [f"this bird has a {colour} belly" for colour in minibirds.COLOURS],
    "background": [f"a bird {phrase}" for phrase in minibirds.PLACES.values()],
}


@torch.no_grad()
def image_embeddings(bridge: ClipBridge, pixels: np.ndarray, batch_size: int = 250) -> Tensor:
    """(N, H, W, 3) uint8 -> normalised embeddings (N, E)."""
    device = bridge.pixel_mean.device
    parts = [
        bridge.encode_image(to_images(pixels[i : i + batch_size]).to(device))[1]
        for i in range(0, len(pixels), batch_size)
    ]
    return F.normalize(torch.cat(parts), dim=-1)


@torch.no_grad()
def text_embeddings(bridge: ClipBridge, captions: list[str], batch_size: int = 500) -> Tensor:
    """N captions -> normalised embeddings (N, E)."""
    tokens = bridge.tokenize(captions).to(bridge.pixel_mean.device)
    return F.normalize(torch.cat([bridge.encode_text(part) for part in tokens.split(batch_size)]), dim=-1)


def measure(bridge: ClipBridge, data: minibirds.MiniBirds, candidates: int = 100) -> dict[str, dict[str, float]]:
    """What a CLIP knows of mini birds it has not seen.

    Returns:
        `prompt`: share of pictures whose attribute a plain prompt finds ("this bird has red wings", ten colours);
        `counterfactual`: share for which, of ten captions alike but for one colour, the true one fits best;
        `retrieval`: share whose own caption (the one that names all) fits best among those of `candidates` pictures.
    """
    image = image_embeddings(bridge, data.images)
    column = list(minibirds.ATTRIBUTES).index
    prompt, counterfactual = {}, {}
    for attribute, prompts in PROMPTS.items():
        truth = torch.from_numpy(data.labels[:, column(attribute)]).to(image.device)
        best = (image @ text_embeddings(bridge, [minibirds.with_articles(p) for p in prompts]).T).argmax(1)
        prompt[attribute] = (best == truth).float().mean().item()
        if attribute != "background":
            swaps = [c for texts in data.captions for c in minibirds.counterfactuals(texts[0], attribute)]
            text = text_embeddings(bridge, swaps).view(len(data), len(minibirds.COLOURS), -1)  # (N, 10, E)
            best = (text * image[:, None]).sum(-1).argmax(1)
            counterfactual[attribute] = (best == truth).float().mean().item()
    full = text_embeddings(bridge, [texts[2] for texts in data.captions])
    hits = [
        (i @ t.T).argmax(1) == torch.arange(len(i), device=i.device)
        for i, t in zip(image.split(candidates), full.split(candidates), strict=True)
    ]
    retrieval = {"image_to_text": torch.cat(hits).float().mean().item()}
    return {"prompt": prompt, "counterfactual": counterfactual, "retrieval": retrieval}
