"""Training a small CLIP contrastively, and measuring what it has understood.

The loss is CLIP's (Radford et al., 2021, fig. 3): symmetric cross-entropy over the similarities of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .clip_bridge import CLIP, ClipBridge, bpe_tokenizer


def vocabulary_of(captions: list[str]) -> list[int]:
    """The sorted BPE ids that occur in the captions, with the start and end marks (the highest ids) last."""
    tokenizer = bpe_tokenizer()
    used = {piece for text in set(captions) for piece in tokenizer.encode(text)}
    return sorted(used | {tokenizer.encoder["<|startoftext|>"], tokenizer.encoder["<|endoftext|>"]})


def new_clip(geometry: dict[str, int], vocabulary: list[int]) -> CLIP:
    """An untrained `clip.model.CLIP` in fp32 whose token ids are the positions in `vocabulary`.

    `geometry` has clip.model.CLIP's arguments except `vocab_size` (embed_dim, image_resolution, vision_layers, ...).
    """
    model = CLIP(vocab_size=len(vocabulary), **geometry).float()
    model.vocabulary = list(vocabulary)
    return model


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """Embeddings (B, E) of B matching pairs, temperature's inverse -> scalar; two captions alike do not count as wrong."""
    logits = scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T  # (B, B)
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
