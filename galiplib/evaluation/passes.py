"""The pass over real and over generated pictures: every network looks at each once, then it is forgotten."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..clip.bridge import ClipBridge
from ..config import EvalConfig
from ..data.batches import Source
from ..distributed import same_failure
from ..images import to_images
from .crowds import GROUPS
from .features import Extractor, clip_extractor, judge_extractor
from .frechet import Moments
from .given import as_asked
from .judge import Judge
from .measures import clip_score, cosines
from .pixels import pixel_measure
from .protocol import Plan, draw, embed_captions
from .rows import Rows

KEPT = 5000  # pictures whose wide features are remembered, for the measures that compare samples one by one


class Eyes:
    """All networks that look at pictures: images (B, 3, H, W) in [-1, 1] -> name -> features (B, D) on the CPU.

    Besides the extractors' features: the embeddings of the run's CLIP in its input convention ("clip") and in CLIP's
    own ("clip/clip", the same where that is the run's), and for mini birds the judge's features ("judge").
    """

    def __init__(self, bridge: ClipBridge, extractors: Sequence[Extractor], judge: Judge | None) -> None:
        self.networks = {one.name: one for one in extractors}
        self.networks.setdefault("clip", clip_extractor(bridge))
        if judge:
            self.networks.setdefault("judge", judge_extractor(judge))
        if bridge.convention != "clip":
            own = ClipBridge(bridge.model, "clip", bridge.taps, bridge.prompt_layers).to(bridge.pixel_mean.device)
            self.networks["clip/clip"] = clip_extractor(own)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        found = {name: look(images) for name, look in self.networks.items()}
        return {"clip/clip": found["clip"]} | found


def batches(count: int, size: int, title: str, progress: bool) -> tqdm:
    """Numbers 0 to `count` - 1 in batches; of several processes, each gets its share."""
    numbers = torch.arange(count)
    if dist.is_available() and dist.is_initialized():
        numbers = numbers[dist.get_rank() :: dist.get_world_size()]
    return tqdm(numbers.split(size), desc=title, unit="batch", leave=False, disable=not progress)


class RealSide:
    """Every real picture of the plan, looked at once.

    Attributes:
        moments: extractor -> of its features, in `GROUPS` groups of pictures.
        features: network -> of every picture (R, D), in the plan's order; of Inception's the first `KEPT`.
    """

    def __init__(
        self, data: Source, plan: Plan, eyes: Eyes, extractors: Sequence[Extractor], size: int, progress: bool
    ) -> None:
        self.data, self.plan = data, plan
        self.moments = {one.name: Moments(one.dim, GROUPS) for one in extractors}
        kept: dict[str, Rows] = {name: Rows(KEPT if name == "inception" else None) for name in eyes.networks}
        with same_failure():  # a picture that can't be measured ends all
            for numbers in batches(len(plan.real), size, "real pictures", progress):
                found = eyes(self.images(plan.real[numbers.numpy()]))
                for name, rows in kept.items():
                    rows.update(numbers, found[name])
                for name, moments in self.moments.items():
                    moments.update(found[name], numbers % GROUPS)
        self.features = {name: rows.ordered() for name, rows in kept.items()}
        self.features.setdefault("clip/clip", self.features["clip"])

    def images(self, rows: np.ndarray) -> Tensor:
        """Row numbers (B,) -> pictures (B, 3, H, W) in [-1, 1]."""
        return to_images(self.data.pixels(rows)[0])


class FakeSide:
    """A generated picture for every entry of the plan, looked at once.

    Attributes:
        moments: extractor -> of its features, in groups: `GROUPS` of the first picture of each row (the group of that
            row's real picture), and as many of the others.
        features: extractor -> features of the first picture of each row, in the real pictures' order, `KEPT` at most.
        scores: name -> of every picture (N,): clip_similarity, clip_score, the pixel measures and, for mini birds,
            whether each attribute is as asked; the same of the real picture beside it ends in _real.
        image, text: embeddings of the first `KEPT` pictures and of their captions.
    """

    def __init__(
        self, generator: nn.Module, bridge: ClipBridge, eyes: Eyes, extractors: Sequence[Extractor],
        judge: Judge | None, config: EvalConfig, real: RealSide, progress: bool,
    ) -> None:  # fmt: skip
        self.plan = plan = real.plan
        self.moments = {one.name: Moments(one.dim, 2 * GROUPS) for one in extractors}
        features = {one.name: Rows(KEPT) for one in extractors}
        kept = {"image": Rows(KEPT), "text": Rows(KEPT)}
        scores: dict[str, Rows] = defaultdict(Rows)
        measures = [pixel_measure(name, bridge.pixel_mean.device) for name in config.metrics]
        first, place = torch.from_numpy(plan.first), torch.from_numpy(plan.place)
        with same_failure():  # a picture that can't be measured ends all
            for numbers in batches(len(plan), config.batch_size, "generated pictures", progress):
                captions = [plan.captions[number] for number in numbers.tolist()]
                text = embed_captions(bridge, captions)
                images = draw(generator, text, numbers.tolist(), config.seed, text.device)
                found, text = eyes(images), text.cpu()
                opening, own = first[numbers], place[numbers]
                for name, moments in self.moments.items():
                    moments.update(found[name], own % GROUPS + GROUPS * ~opening)
                    features[name].update(own[opening], found[name][opening])
                kept["image"].update(numbers, found["clip"])
                kept["text"].update(numbers, text)
                beside = {name: found_real[own] for name, found_real in real.features.items() if name != "inception"}
                for end, seen in (("", found), ("_real", beside)):
                    scores["clip_similarity" + end].update(numbers, cosines(seen["clip"], text))
                    scores["clip_score" + end].update(numbers, clip_score(seen["clip/clip"], text))
                    if judge:
                        for name, hits in as_asked(judge, seen["judge"], captions).items():
                            scores[name + end].update(numbers, hits)
                if measures:
                    photos = real.images(plan.rows[numbers.numpy()]).to(images.device)
                    for one in measures:
                        scores[one.name].update(numbers, one(images, photos))
                        if not one.paired:
                            scores[f"{one.name}_real"].update(numbers, one(photos))
        self.features = {name: rows.ordered() for name, rows in features.items()}
        self.scores = {name: rows.ordered() for name, rows in scores.items()}
        self.image, self.text = (rows.ordered() for rows in kept.values())
