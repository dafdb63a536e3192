"""A small CLIP for photographs, taught by a network from ImageNet: distillation (Hinz's too: Hinton et al., 2015).

A few thousand captioned photographs are too few to learn to see from. So EfficientNet-Lite0, which has seen a million,
looks at each once, and what it sees is kept. Then, first, a text tower and a linear head on these features learn each
other by CLIP's contrastive loss: minutes, since no picture is looked at. Second, an image tower of the kind that GALIP
looks through learns to see what the teacher sees, from smaller pictures: its embedding that of the head, its patches'
features the teacher's map, its mean the teacher's pooled features, and the captions by the contrastive loss.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..config import ClipConfig, Config
from ..data.batches import CaptionIndex, Source
from ..data.embeddings import digest_of
from ..data.pictures import Photos
from ..efficientnet import TEACHER, EfficientNetLite, load_efficientnet
from ..images import to_images
from ..precision import autocast
from .bridge import ClipBridge
from .files import save_clip
from .stem import LiteStem
from .training import (
    Resumable,
    adamw,
    clip_geometry,
    contrastive_loss,
    measured,
    new_clip,
    train_and_keep,
    vocabulary_of,
    word_pair_targets,
)

SIDE = 160  # at which the teacher looks at a picture, pixels: at 128 it knows fewer birds
LOOKED = 32  # pictures that it looks at at once
PLACES = 3  # the head is told its map averaged over so many places across and down, beside the pooled features
TEXT_BATCH = 256
TEXT_SHARE = 0.4  # of the steps, for text tower and head
LOSS_WEIGHTS = (  # of the two parts
    {"contrastive": 1.0, "word_pairs": 1.0},
    {"contrastive": 0.3, "embedding": 5.0, "patches": 1.0, "pooled": 1.0},
)


@dataclass(frozen=True)
class Taught:
    """Photographs, and what the teacher sees of each: N centre squares, larger than the student's pictures."""

    pixels: np.ndarray  # (N, L, L, 3) uint8
    pooled: np.ndarray  # (N, 1280) float16
    maps: np.ndarray  # (N, C, g, g) float16, of stride 16


def look(teacher: EfficientNetLite, sources: Sequence[Photos], path: Path, progress: bool = True) -> Taught:
    """What the teacher sees of all pictures, from a file, which is made and goes on where it stopped.

    Raises DataError for a picture that can't be decoded.
    """
    side = min(source.short_side for source in sources)
    pixels = np.concatenate([np.stack([_square(source.resized(row), side) for row in range(len(source))])
                             for source in sources])  # fmt: skip
    grid = SIDE // 16
    channels = _maps(teacher, torch.zeros(1, 3, SIDE, SIDE))[0].shape[1]
    pooled = teacher.classes.in_features
    row = np.dtype([("pooled", np.float16, pooled), ("map", np.float16, (channels, grid, grid))])
    with open(path, "ab") as stream:
        done = stream.tell() // row.itemsize // LOOKED * LOOKED
        stream.truncate(done * row.itemsize)
        starts = range(done, len(pixels), LOOKED)
        for start in tqdm(starts, desc="the teacher looks", unit="batch", disable=not progress, mininterval=1):
            images = to_images(pixels[start : start + LOOKED])
            with torch.inference_mode(), autocast("auto", images.device):
                maps, features = _maps(teacher, teacher.preprocess(images, SIDE))
            found = np.empty(len(images), row)
            found["pooled"], found["map"] = features.float().numpy(), maps.float().numpy()
            stream.write(found.tobytes())
    kept = np.memmap(path, row, "r", shape=(len(pixels),))
    return Taught(pixels, kept["pooled"], kept["map"])


def _square(picture: np.ndarray, side: int) -> np.ndarray:
    top, left = ((length - side) // 2 for length in picture.shape[:2])
    return picture[top : top + side, left : left + side]


def _maps(teacher: EfficientNetLite, x: Tensor) -> tuple[Tensor, Tensor]:
    """Preprocessed pictures -> the last map of stride 16 (B, C, g, g), and the pooled features (B, 1280)."""
    for stage in teacher.stages:
        x = stage(x)
        if x.shape[-1] * 16 == SIDE:
            found = x
    return found, F.relu6(teacher.head(x)).mean((2, 3))


@dataclass(frozen=True)
class DistilReport:
    """One step's losses: both parts' contrastive one, the first one's word pairs, what the second compares with."""

    step: int
    contrastive: float
    word_pairs: float = 0.0
    embedding: float = 0.0  # 1 - cosine
    patches: float = 0.0  # this and the next: smooth L1, of features of variance 1
    pooled: float = 0.0


class Distillation(Resumable):
    """A small CLIP in training: `bridge.model`, made with `trainable=True`, on photographs that the teacher has seen.

    Of `config.max_steps` a share of `TEXT_SHARE` is for text tower and head, the rest for the image tower, with both
    frozen. A step: random photographs, mirrored half of the time, with a random caption each; the image tower sees
    random crops of the size that it is made for.

    Args:
        captions: of each photograph.

    Attributes:
        step: how many are done.
    """

    def __init__(
        self, bridge: ClipBridge, taught: Taught, captions: Sequence[list[str]], config: ClipConfig, seed: int = 0
    ) -> None:
        self.bridge, self.taught, self.config, self.step = bridge, taught, config, 0
        self.device = bridge.pixel_mean.device
        self.random = np.random.default_rng(seed)
        self.index = CaptionIndex(captions)
        pairs, of_text, of_image = word_pair_targets(self.index)
        self.of_text, self.of_image = of_text.to(self.device), of_image.to(self.device)
        self.tokens = bridge.tokenize(self.index.texts).to(self.device)

        pooled, channels = taught.pooled.shape[1], taught.maps.shape[1]
        places = F.adaptive_avg_pool2d(torch.from_numpy(taught.maps.astype(np.float32)), PLACES)  # (N, C, 3, 3)
        features = torch.cat([torch.from_numpy(taught.pooled.astype(np.float32)), places.flatten(1)], 1)  # (N, D)
        self.features = standardised(features, 0)
        mirrored = torch.arange(places[0].numel()).view(places.shape[1:]).flip(2).flatten() + pooled
        self.mirrored = torch.cat([torch.arange(pooled), mirrored])  # where the features are, of a mirrored picture
        some = torch.from_numpy(taught.maps[:: max(1, len(taught.maps) // 500)].astype(np.float32))
        self.map_deviation, self.map_mean = torch.std_mean(some, (0, 2, 3), keepdim=True)

        head, width, visual = nn.Linear(features.shape[1], bridge.embed_dim), bridge.width, bridge.model.visual
        word_pairs = nn.Linear(bridge.embed_dim, len(pairs))
        patches, whole = nn.Conv2d(width, channels, 1), nn.Linear(width, pooled)
        self.heads = nn.ModuleDict({"embedding": head, "word_pairs": word_pairs, "patches": patches, "pooled": whole})
        self.heads.to(self.device)
        text = [weight for name, weight in bridge.model.named_parameters() if not name.startswith("visual.")]
        learning = (
            [*text, *head.parameters(), *word_pairs.parameters()],
            [p for part in (visual, patches, whole) for p in part.parameters() if p.requires_grad],
        )
        self.text_steps = round(config.max_steps * TEXT_SHARE)
        counts = self.text_steps, config.max_steps - self.text_steps
        self.parts = [(own, *adamw(own, config, steps)) for own, steps in zip(learning, counts, strict=True)]

    def advance(self) -> DistilReport:
        """One step."""
        part = int(self.step >= self.text_steps)
        losses = (self.image_losses if part else self.text_losses)()
        weights, optimizer, schedule = self.parts[part]
        optimizer.zero_grad(set_to_none=True)
        torch.stack([LOSS_WEIGHTS[part][name] * loss for name, loss in losses.items()]).sum().backward(inputs=weights)
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        self.step += 1
        return DistilReport(self.step, **{name: loss.item() for name, loss in losses.items()})

    def text_losses(self) -> dict[str, Tensor]:
        """Of the text tower and the head on what the teacher sees."""
        rows, mirrored = self._draw(TEXT_BATCH)
        image, (text, chosen) = self._embed(rows, mirrored), self._read(rows)  # (B, E) each
        pairs = self.heads["word_pairs"]
        of_image = F.cross_entropy(pairs(image), self.of_image[torch.from_numpy(rows).to(self.device)])
        return {
            "contrastive": contrastive_loss(image, text, self._scale()),
            "word_pairs": of_image + F.cross_entropy(pairs(text), self.of_text[chosen]),
        }

    def image_losses(self) -> dict[str, Tensor]:
        """Of the image tower."""
        rows, mirrored = self._draw(self.config.batch_size)
        with torch.no_grad():
            asked, text = self._embed(rows, mirrored), self._read(rows)[0]
            images, maps = self._crop(rows, mirrored)
        with autocast(self.config.precision, self.device):
            tapped, embedding = self.bridge.encode_image(images)  # (B, taps, W, g, g), (B, E)
            patches = self.heads["patches"](tapped[:, -1])
            pooled = self.heads["pooled"](tapped[:, -1].mean((2, 3)))
        embedding, of_teacher = embedding.float(), self.features[torch.from_numpy(rows)][:, : pooled.shape[1]]
        return {
            "contrastive": contrastive_loss(embedding, text, self._scale().detach()),
            "embedding": 1 - F.cosine_similarity(embedding, asked).mean(),
            "patches": F.smooth_l1_loss(patches.float(), maps),
            "pooled": F.smooth_l1_loss(pooled.float(), of_teacher.to(self.device)),
        }

    def _draw(self, count: int) -> tuple[np.ndarray, Tensor]:
        """Rows (B,), and whether each is mirrored (B,)."""
        return self.random.integers(len(self.features), size=count), torch.from_numpy(self.random.random(count) < 0.5)

    def _scale(self) -> Tensor:
        return self.bridge.model.logit_scale.exp().clamp(max=100)

    def _embed(self, rows: np.ndarray, mirrored: Tensor) -> Tensor:
        """What the head says of photographs -> (B, E)."""
        features = self.features[torch.from_numpy(rows)]  # (B, D)
        return self.heads["embedding"](
            torch.where(mirrored[:, None], features[:, self.mirrored], features).to(self.device)
        )

    def _read(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """A random caption of each photograph: embeddings (B, E), places in the index (B,)."""
        chosen = torch.from_numpy(self.index.draw(rows, self.random)).to(self.device)
        with autocast(self.config.precision, self.device):
            return self.bridge.encode_text(self.tokens[chosen]).float(), chosen

    def _crop(self, rows: np.ndarray, mirrored: Tensor) -> tuple[Tensor, Tensor]:
        """A random crop of each photograph (B, 3, S, S), and the teacher's map (B, C, g, g) where its patches lie."""
        side, whole, grid = self.bridge.image_size, self.taught.pixels.shape[1], self.bridge.grid
        corners = self.random.integers(whole - side + 1, size=(len(rows), 2))  # down, across
        flip = mirrored.numpy()
        pixels = np.stack([
            self.taught.pixels[row, y : y + side, x : x + side][:, :: -1 if own else 1]
            for row, (y, x), own in zip(rows, corners, flip, strict=True)
        ])  # fmt: skip
        share, centre = side / whole, (2 * corners + side) / whole - 1
        place = np.zeros((len(rows), 2, 3), np.float32)  # from the crop's -1..1 to the whole picture's
        place[:, 0, 0], place[:, 0, 2] = np.where(flip, -share, share), centre[:, 1]
        place[:, 1, 1], place[:, 1, 2] = share, centre[:, 0]
        maps = (torch.from_numpy(self.taught.maps[rows].astype(np.float32)) - self.map_mean) / self.map_deviation
        points = F.affine_grid(torch.from_numpy(place), [len(rows), 1, grid, grid], align_corners=False)
        found = F.grid_sample(maps, points, padding_mode="border", align_corners=False)
        return to_images(pixels).to(self.device), found.to(self.device)

    def _stateful(self) -> dict[str, Any]:
        kept = {"model": self.bridge.model, "heads": self.heads}
        for part, (_, optimizer, schedule) in enumerate(self.parts):
            kept |= {f"optimizer{part}": optimizer, f"schedule{part}": schedule}
        return kept


def standardised(features: Tensor, over: int) -> Tensor:
    """Features of mean 0 and deviation 1 over a dimension."""
    deviation, mean = torch.std_mean(features, over, keepdim=True)
    return (features - mean) / deviation.clamp_min(1e-3)


def distil_clip(
    config: Config, train: Mapping[str, Photos], held_out: Mapping[str, Source], path: str | Path,
    device: str | torch.device = "cpu", progress: bool = True, **record: Any,
) -> dict[str, Any]:  # fmt: skip
    """Teach a small CLIP from an ImageNet network, measure it as it is stored (fp16), write it -> its record.

    What the teacher sees is kept in `<path>.<hash>.teacher` (25 kB a photograph; delete it when done) and the training
    in `<path>.part`: either goes on where it stopped.

    Args:
        train: data sets by name, learned from together.
        held_out: splits by name to measure it on.
        record: more for the record (a command, say).

    Raises:
        WeightsError: without the teacher's package, which it names.
        DataError: for photographs smaller than the CLIP's, or one that can't be decoded.
    """
    teacher = load_efficientnet(TEACHER)
    captions = [own for source in train.values() for own in source.captions]
    vocabulary = vocabulary_of(sorted({word for own in captions for text in own for word in text.split()}))
    torch.manual_seed(config.train.seed)
    geometry = clip_geometry(config.clip, config.data)
    model = new_clip(geometry, vocabulary)
    kept = Path(f"{path}.{digest_of(text for own in captions for text in own)}.teacher")
    taught = look(teacher, list(train.values()), kept, progress)
    if isinstance(stem := model.visual.conv1, LiteStem):
        some = [_square(picture, config.data.image_size) for picture in taught.pixels[:: len(taught.pixels) // 500 + 1]]
        stem.learn_from(teacher, to_images(np.stack(some)))
    bridge = ClipBridge(model, trainable=True).to(device)
    training = Distillation(bridge, taught, captions, config.clip, config.train.seed)
    key = json.dumps([config.clip.model_dump(), config.train.seed, kept.name, vocabulary])
    seconds = train_and_keep(training, config.clip.max_steps, Path(f"{path}.part"), key, progress)
    stored = ClipBridge(bridge.model.half().float())
    record |= {
        "seed": config.train.seed, "teacher": TEACHER, "photographs": {n: len(own) for n, own in train.items()},
        "clip": config.clip.model_dump(), "steps": config.clip.max_steps, "seconds": round(seconds),
        "metrics": measured(stored, held_out), "torch": torch.__version__,
    }  # fmt: skip
    save_clip(path, stored.model, geometry, record)
    Path(f"{path}.part").unlink(missing_ok=True)
    return record
