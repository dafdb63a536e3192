"""What is asked of pictures of birds and flowers whose truth nobody has written down.

Two questions to EfficientNet-Lite2, which no training looks through: does a network that knows ImageNet's 1,000 classes
take the picture for a bird, and has it the colour that its caption names? The second is answered by a linear probe on
the network's features of real photographs and what their captions say; how often it is right about photographs that it
was not fitted on stands beside. Both share ImageNet, and its pictures of birds, with whatever taught the generator.

A third to EfficientNet-Lite0, which did teach: does a picture lie nearer to a photograph of the training than these lie
to each other, as one learned by heart would?
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..data.batches import Source
from ..data.colours import NAMES, PARTS, colour_of
from ..efficientnet import TEACHER, load_efficientnet
from ..images import to_images
from ..system import TextToImage
from .measures import Measured, share_of
from .protocol import BATCH, generate

# of ImageNet's 1,000 classes, the 59 that are birds: cock to great grey owl, black grouse to black swan, white stork to
# albatross
BIRDS = (*range(7, 25), *range(80, 101), *range(127, 147))
FOLDS = 5  # of the photographs that the probe is judged on, as they lie in the data set: classes lie together
LEAST = 50  # photographs of known colour, below which a part is not asked for
RIDGE = 0.02  # weight of the probe's squared weights
SIDE = 128  # pixels to which the teacher has pictures enlarged
ASKED = 1000  # photographs whose own neighbours are looked for


def bird_share(logits: Tensor) -> Measured:
    """Logits (N, 1000) -> the share whose first class is a bird."""
    return share_of(torch.isin(logits.argmax(1), torch.tensor(BIRDS)))


def probe(features: Tensor, colours: Tensor, steps: int = 40) -> torch.nn.Module:
    """Features (N, D) and places in `colours.NAMES` (N,) -> a linear classifier of features, logits (N, 10)."""
    deviation, mean = torch.std_mean(features, 0)
    deviation = deviation.clamp_min(1e-3)
    inputs = (features - mean) / deviation
    weight = torch.zeros(len(NAMES), features.shape[1], requires_grad=True)
    bias = torch.zeros(len(NAMES), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = F.cross_entropy(F.linear(inputs, weight, bias), colours) + RIDGE * weight.square().sum()
        found.backward()
        return found

    optimizer.step(loss)
    linear = torch.nn.Linear(features.shape[1], len(NAMES))
    linear.weight.data = weight.detach() / deviation
    linear.bias.data = bias.detach() - linear.weight.data @ mean
    return linear.requires_grad_(False)


def colour_following(
    real: Tensor, captions: Sequence[Sequence[str]], order: Tensor, fake: Tensor, asked: Sequence[str]
) -> dict[str, dict[str, Measured]]:
    """Whether generated pictures have the colours that their captions name.

    Args:
        real: features of R photographs (R, D).
        captions: theirs.
        order: their rows in the data set (R,), where classes lie together.
        fake: features of generated pictures (N, D), and `asked` the caption of each.

    Returns:
        Part -> `colour_following`, the share of generated pictures in which the probe sees what was asked for;
        `colour_probe`, the share of photographs in which probes fitted on others see what their captions say;
        `colour_majority`, what naming the most frequent colour every time would reach on the photographs. Parts whose
        colour is known of too few are left out.
    """
    found: dict[str, dict[str, Measured]] = {}
    for part in PARTS:
        said = torch.tensor([colour_of(own, part) for own in captions])
        wanted = torch.tensor([colour_of([text], part) for text in asked])
        known, named = said >= 0, wanted >= 0
        if known.sum() < LEAST or not named.any():
            continue
        features, truth = real[known], said[known]
        fold = order[known].argsort().argsort() * FOLDS // len(truth)  # (K,), neighbours in one
        right = torch.zeros(len(truth), dtype=torch.bool)
        for own in range(FOLDS):
            others = probe(features[fold != own], truth[fold != own])
            right[fold == own] = others(features[fold == own]).argmax(1) == truth[fold == own]
        seen = probe(features, truth)(fake[named]).argmax(1)
        found[part] = {
            "colour_following": share_of(seen == wanted[named]), "colour_probe": share_of(right),
            "colour_majority": share_of(truth == truth.mode().values),
        }  # fmt: skip
    return found


@torch.no_grad()
def teacher_features(images: Tensor) -> Tensor:
    """Pictures (N, 3, H, W) in [-1, 1] -> the teacher's pooled features (N, 1280), on the CPU."""
    network = load_efficientnet(TEACHER, images.device)
    return torch.cat([network.features(network.preprocess(part, SIDE)).cpu() for part in images.split(BATCH)])


def nearest(features: Tensor, among: Tensor, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Features (N, D) -> the distance of each to the nearest of (M, D), and which that is, (N,) each.

    `own` (N,) are their own rows among these, which don't count.
    """
    distances = torch.cdist(features, among)  # (N, M)
    if own is not None:
        distances[torch.arange(len(own)), own] = torch.inf
    return distances.min(1).values, distances.argmin(1)


def nearest_training(
    generator: TextToImage, data: Source, count: int = 10, seed: int = 0, progress: bool = True
) -> dict[str, Any]:
    """How near pictures of training captions come to training photographs, and these to each other.

    Distances are of the teacher's pooled features, of centre crops; captions are of photographs at even distances in
    the data set.

    Returns {"generated": of `count` pictures, "photographs": least, 5% and 50% quantile of those of up to `ASKED`
    photographs}.
    """
    rows = np.linspace(0, len(data) - 1, count).round().astype(int)
    made = generate(generator, generator.bridge, [data.captions[row][0] for row in rows], seed)
    parts = tqdm(
        np.array_split(np.arange(len(data)), -(-len(data) // BATCH)), "training photographs", disable=not progress
    )
    known = torch.cat([teacher_features(to_images(data.pixels(part)[0])) for part in parts])  # (M, 1280)
    asked = torch.linspace(0, len(known) - 1, min(len(known), ASKED)).long()
    apart = nearest(known[asked], known, asked)[0]
    least, some, half = apart.quantile(torch.tensor([0, 0.05, 0.5])).tolist()
    photographs = {"least": least, "5%": some, "50%": half}
    return {"generated": nearest(teacher_features(made), known)[0].tolist(), "photographs": photographs}
