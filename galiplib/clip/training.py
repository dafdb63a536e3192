"""Training a small CLIP on two cores, and measuring what it has understood.

The loss is CLIP's contrastive one (Radford et al., 2021, fig. 3) plus a start-up aid from before CLIP: both towers also
predict the word pairs of the captions ("red wings", "blue belly") through one shared linear layer (Joulin et al., 2016,
"Learning Visual Features from Large Weakly Supervised Data"; Li et al., 2017, "Learning Visual N-Grams from Web Data").
A contrastive loss alone first learns bags of colours: swapping "red wings, blue belly" for "blue wings, red belly" goes
unnoticed for a thousand steps, since neither tower gains by binding colours to parts before the other does.
"""

from __future__ import annotations

import json
import math
import re
import time
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..config import ClipConfig, Config, DataConfig
from ..data import DataError, minibirds
from ..data.batches import CaptionIndex, Source
from ..data.colours import NAMES, PARTS, colour_of
from ..data.embeddings import say_cut, unreadable
from ..files import load_torch, write_atomically
from ..images import to_images
from ..precision import autocast
from .bridge import CLIP, TEARING, ClipBridge, bpe_tokenizer
from .files import save_clip
from .stem import give_stem

WARM_UP_STEPS = 50
SAVED_EVERY = 50  # steps that an interruption costs at most
PAIRS = 256  # word pairs that the start-up aid predicts, the most frequent ones
POSITION_SCALE = 0.5  # CLIP's own 0.09 hides a patch's place behind its content, and binding takes twice as long
TOKEN_SCALE = 0.1


def vocabulary_of(captions: list[str]) -> list[int]:
    """The sorted BPE ids that occur in the captions, with the start and end marks (the highest ids) last."""
    tokenizer = bpe_tokenizer()
    used = {piece for text in set(captions) for piece in tokenizer.encode(TEARING.sub("", text))}
    return sorted(used | {tokenizer.encoder["<|startoftext|>"], tokenizer.encoder["<|endoftext|>"]})


def clip_geometry(config: ClipConfig, data: DataConfig) -> dict[str, Any]:
    """The small CLIP's arguments for `clip.model.CLIP`, except its vocabulary."""
    return {
        "embed_dim": config.embed_dim, "image_resolution": data.image_size, "vision_layers": config.layers,
        "vision_width": config.width, "vision_patch_size": config.patch_size, "context_length": config.context_length,
        "transformer_width": config.text_width, "transformer_heads": config.text_width // 32,
        "transformer_layers": config.text_layers,
    } | ({"stem": config.stem} if config.stem else {})  # fmt: skip


def new_clip(geometry: dict[str, Any], vocabulary: list[int]) -> CLIP:
    """An untrained `clip.model.CLIP` in fp32 whose token ids are the positions in `vocabulary`."""
    plain = {name: value for name, value in geometry.items() if name != "stem"}
    model = give_stem(CLIP(vocab_size=len(vocabulary), **plain).float(), geometry.get("stem", ""))
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


def word_pair_targets(index: CaptionIndex) -> tuple[list[str], Tensor, Tensor]:
    """What the start-up aid predicts.

    Returns:
        the word pairs; for every caption of `index.texts` (U, pairs) and for every image (N, pairs): a distribution
        over its word pairs, rare ones weighted more (by -log of the share of images that have them).
    """
    words = [re.findall(r"[^\W\d_]+", text.lower()) for text in index.texts]
    pairs_of = [set(zip(w, w[1:], strict=False)) for w in words]
    counts = Counter(pair for pairs in pairs_of for pair in sorted(pairs))
    pairs = [pair for pair, _ in counts.most_common(PAIRS)]
    place = {pair: i for i, pair in enumerate(pairs)}
    of_text = torch.zeros(len(words), len(pairs))
    for row, found in zip(of_text, pairs_of, strict=True):
        row[[place[pair] for pair in found if pair in place]] = 1
    of_image = torch.stack([of_text[torch.from_numpy(places)].amax(0) for places in index.choices])
    weight = -of_image.mean(0).clamp(1e-4, 1).log()

    def distribution(marks: Tensor) -> Tensor:
        return marks * weight / (marks * weight).sum(-1, keepdim=True).clamp_min(1e-6)

    return [" ".join(pair) for pair in pairs], distribution(of_text), distribution(of_image)


def adamw(
    parameters: list[nn.Parameter], config: ClipConfig, steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW without decay of biases and norms, and its schedule: warm-up, then a cosine to zero over all steps."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), fused=True)
    warm_up = min(WARM_UP_STEPS, max(1, steps // 4))
    return optimizer, torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )


@dataclass(frozen=True)
class ClipReport:
    """One training step: its number, the contrastive and the word-pair loss, and the inverse temperature."""

    step: int
    contrastive: float
    word_pairs: float
    scale: float


class Resumable(ABC):
    """A training of a small CLIP that stops between two steps and goes on."""

    step: int
    random: np.random.Generator

    @abstractmethod
    def _stateful(self) -> dict[str, Any]:
        """Its networks, optimizers and schedules by name."""

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        kept = {name: part.state_dict() for name, part in self._stateful().items()}
        return {"step": self.step, **kept, "random": json.dumps(self.random.bit_generator.state)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state` of the same configuration and pictures; raises as `load_state_dict` does."""
        for name, part in self._stateful().items():
            part.load_state_dict(state[name])
        self.random.bit_generator.state = json.loads(state["random"])
        self.step = state["step"]


class ClipTraining(Resumable):
    """A small CLIP in training: `bridge.model`, made with `trainable=True`, on a data set.

    Every step: a random caption of each of `config.batch_size` random images; AdamW, warm-up, cosine to zero.

    Attributes:
        step: how many are done.
    """

    def __init__(self, bridge: ClipBridge, data: Source, config: ClipConfig, seed: int = 0) -> None:
        self.bridge, self.data, self.config, self.step = bridge, data, config, 0
        self.device = bridge.pixel_mean.device
        self.random = np.random.default_rng(seed)
        self.index = CaptionIndex(data.captions)
        pairs, of_text, of_image = word_pair_targets(self.index)
        self.of_text, self.of_image = of_text.to(self.device), of_image.to(self.device)
        self.tokens = bridge.tokenize(self.index.texts).to(self.device)
        self.pair_head = nn.Linear(bridge.embed_dim, len(pairs)).to(self.device)
        self.parameters = [p for part in (bridge.model, self.pair_head) for p in part.parameters() if p.requires_grad]
        self.optimizer, self.schedule = adamw(self.parameters, config, config.max_steps)

    def advance(self) -> ClipReport:
        """One step."""
        bridge, random = self.bridge, self.random
        pixels, rows = self.data.pixels(random.integers(len(self.data), size=self.config.batch_size), random)
        chosen = torch.from_numpy(self.index.draw(rows, random)).to(self.device)
        with autocast(self.config.precision, self.device):
            _, image = bridge.encode_image(to_images(pixels).to(self.device))
            text = bridge.encode_text(self.tokens[chosen])
        image, text = image.float(), text.float()  # (B, E), (B, E)
        scale = bridge.model.logit_scale.exp().clamp(max=100)
        contrastive = contrastive_loss(image, text, scale)
        word_pairs = F.cross_entropy(self.pair_head(image), self.of_image[torch.from_numpy(rows).to(self.device)])
        word_pairs = word_pairs + F.cross_entropy(self.pair_head(text), self.of_text[chosen])
        self.optimizer.zero_grad(set_to_none=True)
        (contrastive + word_pairs).backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        return ClipReport(self.step, contrastive.item(), word_pairs.item(), scale.item())

    def _stateful(self) -> dict[str, Any]:
        return {
            "model": self.bridge.model, "pair_head": self.pair_head, "optimizer": self.optimizer,
            "schedule": self.schedule,
        }  # fmt: skip


def train_clip(bridge: ClipBridge, data: Source, config: ClipConfig, seed: int = 0) -> Iterator[ClipReport]:
    """The whole training (`ClipTraining`), a step a report."""
    training = ClipTraining(bridge, data, config, seed)
    while training.step < config.max_steps:
        yield training.advance()


def train_and_keep(training: Any, steps: int, part: Path, key: str, progress: bool = True) -> float:
    """Bring a training (`ClipTraining`, or what steps, states and reports alike) to its last step -> seconds of it.

    It goes on from `part`, if that was written under the same key; it is written every 50 steps.
    """
    seconds = 0.0
    if part.is_file() and (kept := load_torch(part))["key"] == key:
        training.restore(kept["training"])
        seconds = kept["seconds"]
    with tqdm(total=steps, initial=training.step, desc="small CLIP", disable=not progress, mininterval=1) as bar:
        while training.step < steps:
            started = time.perf_counter()
            report = vars(training.advance())
            seconds += time.perf_counter() - started
            if training.step % SAVED_EVERY == 0:
                state = {"key": key, "training": training.state(), "seconds": seconds}
                write_atomically(part, partial(torch.save, state))
            bar.set_postfix({name: f"{value:.2f}" for name, value in report.items() if name != "step"}, refresh=False)
            bar.update()
    return seconds


def learn_clip(
    config: Config, train: Source, held_out: Mapping[str, Source], path: str | Path,
    device: str | torch.device = "cpu", progress: bool = True, **record: Any,
) -> dict[str, Any]:  # fmt: skip
    """Train a small CLIP on a data set, measure it as it is stored (fp16), write it -> its record.

    An interrupted training goes on from `<path>.part`, written every 50 steps.

    Args:
        held_out: splits to measure it on.
        record: more for the record (a command, say).
    """
    torch.manual_seed(config.train.seed)
    geometry = clip_geometry(config.clip, config.data)
    vocabulary = vocabulary_of([text for texts in train.captions for text in texts])
    bridge = ClipBridge(new_clip(geometry, vocabulary), trainable=True).to(device)
    training = ClipTraining(bridge, train, config.clip, config.train.seed)
    say_cut(train.captions, config.clip.context_length)  # setting more costs nothing yet
    steps = config.clip.max_steps
    made_of = [config.data.model_dump(), train.fingerprint, config.train.seed, vocabulary]
    key = json.dumps([config.clip.model_dump(), *made_of])
    seconds = train_and_keep(training, steps, Path(f"{path}.part"), key, progress)
    stored = ClipBridge(bridge.model.half().float())
    record |= {
        "seed": config.train.seed, "data": config.data.model_dump(), "clip": config.clip.model_dump(), "steps": steps,
        "seconds": round(seconds), "metrics": measured(stored, held_out), "torch": torch.__version__,
        "pictures": {"pictures": len(train), "digest": train.fingerprint},
    }  # fmt: skip
    save_clip(path, stored.model, geometry, record)
    Path(f"{path}.part").unlink(missing_ok=True)
    return record


# ---------------------------------------------------------------- what it has understood

MEASURED = 1000  # photographs that a measurement looks at
LEAST = 50  # photographs of known colour, below which a part's is not measured

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
    parts = (to_images(pixels[i : i + batch_size]).to(device) for i in range(0, len(pixels), batch_size))
    return F.normalize(torch.cat([bridge.encode_image(part)[1] for part in parts]), dim=-1)


@torch.no_grad()
def text_embeddings(bridge: ClipBridge, captions: list[str], batch_size: int = 500) -> Tensor:
    """N captions -> normalised embeddings (N, E)."""
    tokens = bridge.tokenize(captions).to(bridge.pixel_mean.device)
    return F.normalize(torch.cat([bridge.encode_text(part) for part in tokens.split(batch_size)]), dim=-1)


def retrieval(image: Tensor, text: Tensor, candidates: int = 100) -> float:
    """Normalised embeddings (N, E) of pictures and of their captions -> how often a picture's own fits best.

    Among those of `candidates` pictures, in the order given; chance is 1 / candidates.
    """
    parts = zip(image.split(candidates), text.split(candidates), strict=True)
    hits = [(i @ t.T).argmax(1) == torch.arange(len(i), device=i.device) for i, t in parts]
    return torch.cat(hits).float().mean().item()


def colours(bridge: ClipBridge, image: Tensor, captions: Sequence[Sequence[str]]) -> dict[str, dict[str, float]]:
    """Embeddings of photographs (N, E) and all captions of each -> `prompt` and `majority`: part -> share.

    The share whose colour, as their captions agree on it, a plain prompt finds among ten; and what naming the most
    frequent one every time would reach.
    """
    found: dict[str, dict[str, float]] = {"prompt": {}, "majority": {}}
    for part, (_, prompt) in PARTS.items():
        truth = torch.tensor([colour_of(texts, part) for texts in captions], device=image.device)
        known = truth >= 0
        if known.sum() >= LEAST:
            text = text_embeddings(bridge, [minibirds.with_articles(prompt.format(colour)) for colour in NAMES])
            best = (image[known] @ text.T).argmax(1)
            found["prompt"][part] = (best == truth[known]).float().mean().item()
            found["majority"][part] = (truth[known] == truth[known].mode().values).float().mean().item()
    return found


def measured(bridge: ClipBridge, held_out: Mapping[str, Source]) -> dict[str, dict[str, Any]]:
    """`measure` of splits by name; what can't be measured is `left_out`: no reason to lose what was trained."""
    found: dict[str, dict[str, Any]] = {}
    for split, data in held_out.items():
        try:
            found[split] = measure(bridge, data)
        except DataError as error:
            found[split] = {"left_out": str(error)}
            warnings.warn(f"the small CLIP is not measured on {split}: {error}", stacklevel=3)
    return found


def measure(bridge: ClipBridge, data: Source, candidates: int = 100) -> dict[str, dict[str, float]]:
    """What a CLIP knows of pictures it has not seen.

    Returns:
        `retrieval`: see there; of mini birds with the caption that names all, of photographs with the first one.
        Of photographs also what `colours` gives; DataError where fewer than two can be asked about.
        Of mini birds also `prompt`: share of pictures whose attribute a plain prompt finds ("this bird has red wings",
        ten colours), and `counterfactual`: share for which, of ten captions alike but for one colour, the true one
        fits best.
    """
    if data.labels is None:
        count = min(MEASURED, len(data))
        chosen = np.random.default_rng(0).permutation(len(data))[:count]  # neighbours in a data set are alike
        pixels, rows = data.pixels(chosen)
        captions = [data.captions[row] for row in rows.tolist()]
        unknown = unreadable(bridge, [texts[0] for texts in captions])
        known = [place for place, texts in enumerate(captions) if texts[0] not in unknown]
        if len(known) < 2:
            raise DataError(f"retrieval takes two held-out pictures with captions that CLIP can read, not {len(known)}")
        captions = [captions[place] for place in known]
        image, text = image_embeddings(bridge, pixels[known]), text_embeddings(bridge, [texts[0] for texts in captions])
        return {"retrieval": {"image_to_text": retrieval(image, text, candidates)}, **colours(bridge, image, captions)}
    image = image_embeddings(bridge, data.pixels(np.arange(len(data)))[0])
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
    found = {"image_to_text": retrieval(image, full, candidates)}
    return {"prompt": prompt, "counterfactual": counterfactual, "retrieval": found}
