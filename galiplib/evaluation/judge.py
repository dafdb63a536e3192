"""A small CNN that reads a mini bird's attributes back from its picture; made by `python -m galiplib.evaluation.judge`.

It makes "does the picture follow the caption?" a number, in the manner of "Semantic Object Accuracy for
Generative Text-to-Image Synthesis" (Hinz et al., 2020), and its penultimate features stand in for Inception's
where pictures are drawn birds. It is trained on drawings only and never used to train a GAN.
"""

from __future__ import annotations

import argparse
import math
import random
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..data import minibirds
from ..data.minibirds import ATTRIBUTES
from ..files import WEIGHTS, WeightsError, load_weights, save_weights
from ..images import to_images

SHIPPED = WEIGHTS / "judge.safetensors"
KIND = "galiplib judge"
JUDGED = ("body", "wing", "belly", "background")
COLUMNS = [list(ATTRIBUTES).index(name) for name in JUDGED]  # of `MiniBirds.labels`
SIZE = 56  # side of the pictures it looks at
FEATURES = 128
CHECK_SEED = 20_240_611  # of the drawings that accuracy is measured on; a data set would rarely have it
COMMAND = ("python", "-m", "galiplib.evaluation.judge")
BLUR = 2.0  # standard deviation in pixels at which accuracy on soft pictures is measured


class Judge(nn.Module):
    """Pictures -> which of its values every judged attribute has."""

    def __init__(self) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            layer = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
            return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))

        self.trunk = nn.Sequential(  # (B, 3, 56, 56)
            conv(3, 24, stride=1),  # (B, 24, 56, 56)
            conv(24, 48, stride=2),  # (B, 48, 28, 28)
            conv(48, 96, stride=2),  # (B, 96, 14, 14)
            conv(96, 24, stride=2),  # (B, 24, 7, 7)
            nn.Flatten(),  # places are kept: wing and belly differ in where they are
            nn.Linear(24 * 7 * 7, FEATURES, bias=False),
            nn.BatchNorm1d(FEATURES),
            nn.ReLU(inplace=True),
        )
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, len(ATTRIBUTES[name])) for name in JUDGED})
        self.provenance: dict[str, Any] = {}  # how it was made, as its file says

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> penultimate features (B, 128), not negative."""
        if images.shape[-2:] != (SIZE, SIZE):
            images = F.interpolate(images, (SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)
        return self.trunk(images)

    def classify(self, features: Tensor) -> dict[str, Tensor]:
        """Features (B, 128) -> attribute -> logits (B, classes), classes as in `minibirds.ATTRIBUTES`."""
        return {name: head(features) for name, head in self.heads.items()}

    def answers(self, features: Tensor) -> Tensor:
        """Features (B, 128) -> class indices (B, 4), in the order of `JUDGED`."""
        return torch.stack([logits.argmax(1) for logits in self.classify(features).values()], dim=1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B, 3, H, W) in [-1, 1] -> attribute -> logits (B, classes)."""
        return self.classify(self.features(images))


def asked_of(captions: Sequence[str]) -> Tensor:
    """What captions ask for -> class indices (N, 4) in the order of `JUDGED`, -1 where one leaves it open."""
    asked = [minibirds.asked(text) for text in captions]
    return torch.tensor([[own.get(name, -1) for name in JUDGED] for own in asked])


# ---------------------------------------------------------------- drawings, and pictures like a GAN's


def drawings(count: int, seed: int = 0, size: int = SIZE, progress: Callable = iter) -> minibirds.MiniBirds:
    """Birds with every attribute drawn independently, also those that no split of the data set contains.

    So the judge can't reason that a wing has not the body's colour: a GAN may well paint it so.
    """
    rng, chosen = random.Random(f"judge-{seed}"), []
    for _ in range(count):
        bird = minibirds.Bird(**{name: rng.choice(values) for name, values in ATTRIBUTES.items()})
        chosen.append((bird, rng.randrange(2**31)))
    images = np.stack([minibirds.render(bird, pose, size) for bird, pose in progress(chosen)])
    labels = np.array([bird.labels() for bird, _ in chosen], dtype=np.int64)
    return minibirds.MiniBirds(images, [minibirds.captions(bird, pose) for bird, pose in chosen], labels)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of square images (B, 3, S, S) with a standard deviation in pixels (B,) each."""
    place = torch.arange(images.shape[-1], device=images.device, dtype=images.dtype)
    distance = (place[:, None] - place).square()  # (S, S)
    weight = torch.softmax(-distance / (2 * sigma.view(-1, 1, 1, 1).square()), dim=-1)  # (B, 1, S, S)
    return weight @ images @ weight.transpose(-2, -1)


def augment(images: Tensor, rng: torch.Generator) -> Tensor:
    """Images (B, 3, 56, 56) in [-1, 1] -> the same, moved a little and spoilt as a young GAN spoils them.

    Every kind of damage spares part of the pictures, and none touches the hue: colours keep their names.
    """
    batch = len(images)

    def uniform(low: float = 0.0, high: float = 1.0) -> Tensor:
        return (low + (high - low) * torch.rand(batch, generator=rng)).view(-1, 1, 1, 1)

    def some(value: Tensor, share: float, otherwise: float) -> Tensor:
        return torch.where(uniform() < share, value, otherwise)

    angle, scale = uniform(-0.1, 0.1), uniform(0.92, 1.08)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    moves = torch.stack([cos, -sin, uniform(-0.1, 0.1), sin, cos, uniform(-0.1, 0.1)], 1).view(-1, 2, 3)
    grid = F.affine_grid(moves, list(images.shape), align_corners=False)
    wobble = F.interpolate(torch.randn(batch, 2, 6, 6, generator=rng), size=images.shape[-2:], mode="bicubic")
    grid = grid + (some(uniform(0, 0.06), 0.6, 0.0) * wobble).permute(0, 2, 3, 1)
    x = F.grid_sample(images, grid, padding_mode="border", align_corners=False)

    x = blur(x, some(uniform(0.3, 2.5), 0.6, 0.1))
    coarse = F.interpolate(F.interpolate(x, scale_factor=0.5, mode="area"), scale_factor=2.0)
    x = torch.where(some(torch.ones(batch, 1, 1, 1), 0.1, 0.0) > 0, coarse, x)

    brightness, contrast, saturation = uniform(-0.15, 0.15), uniform(0.8, 1.15), uniform(0.7, 1.25)
    blotches, grain = some(uniform(0, 0.2), 0.5, 0.0), some(uniform(0, 0.12), 0.5, 0.0)
    x = x.mean((1, 2, 3), keepdim=True).lerp(x, contrast) + brightness
    x = x.mean(1, keepdim=True).lerp(x, saturation)
    spots = F.interpolate(torch.randn(batch, 3, 8, 8, generator=rng), size=x.shape[-2:], mode="bilinear")
    x = x + blotches * spots + grain * torch.randn(x.shape, generator=rng)
    return x.clamp(-1, 1)


# ---------------------------------------------------------------- training and measuring


@dataclass(frozen=True)
class JudgeReport:
    """One training step."""

    step: int
    loss: float  # cross-entropy, mean over attributes
    accuracy: float  # the batch's share of right answers


def train_judge(
    judge: Judge, data: minibirds.MiniBirds, steps: int, batch_size: int = 64, lr: float = 2e-3, seed: int = 0
) -> Iterator[JudgeReport]:
    """Train `judge` in place on augmented pictures, a report a step: AdamW, warm-up, cosine to zero.

    Batches come from shuffled passes over `data` (`drawings`); afterwards the judge is in eval mode. Raises ValueError
    for a batch larger than the data.
    """
    if batch_size > len(data):
        raise ValueError(f"a batch of {batch_size} needs as many drawings, not {len(data)}")
    rng = torch.Generator().manual_seed(seed)
    labels = torch.from_numpy(data.labels[:, COLUMNS])  # (N, 4)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=lr, weight_decay=0.01)
    warm_up = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    judge.train().to(memory_format=torch.channels_last)
    order = torch.empty(0, dtype=torch.long)
    try:
        for step in range(1, steps + 1):
            if len(order) < batch_size:
                order = torch.randperm(len(data), generator=rng)
            rows, order = order[:batch_size], order[batch_size:]
            images, truth = augment(to_images(data.images[rows.numpy()]), rng), labels[rows]
            logits = list(judge(images.to(memory_format=torch.channels_last)).values())
            loss = torch.stack(list(map(F.cross_entropy, logits, truth.unbind(1)))).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            found = torch.stack([own.argmax(1) for own in logits], dim=1)  # (B, 4)
            yield JudgeReport(step, loss.item(), (found == truth).float().mean().item())
    finally:
        judge.eval()


@torch.inference_mode()
def measure(judge: Judge, data: minibirds.MiniBirds, sigma: float = 0.0, batch_size: int = 250) -> dict[str, float]:
    """Attribute -> share of right answers on drawings, blurred by `sigma` pixels if that is not zero."""
    parts = to_images(data.images).split(batch_size)
    blurred = (blur(part, torch.full((len(part),), sigma)) if sigma else part for part in parts)
    found = torch.cat([judge.answers(judge.features(part)) for part in blurred])
    right = (found == torch.from_numpy(data.labels[:, COLUMNS])).double().mean(0)
    return dict(zip(JUDGED, right.tolist(), strict=True))


# ---------------------------------------------------------------- files


def save_judge(path: str | Path, judge: Judge, provenance: dict[str, Any]) -> None:
    """Write the judge in fp16, with `provenance` in the header; raises OSError."""
    tensors = {name: t.half() if t.is_floating_point() else t for name, t in judge.state_dict().items()}
    save_weights(path, KIND, tensors, provenance)


def load_judge(path: str | Path = "shipped") -> Judge:
    """A frozen judge in eval mode, fp32 on the CPU; raises WeightsError, with how to make one, if it can't be read."""
    path = SHIPPED if path == "shipped" else Path(path)
    judge = Judge()
    try:
        tensors, judge.provenance = load_weights(path, KIND)
        judge.load_state_dict(tensors)  # which copies into fp32
    except (WeightsError, RuntimeError) as error:
        raise WeightsError(
            f"no judge can be read from {path}: {' '.join(str(error).split())[:300]}; make it with "
            f"`{shlex.join([*COMMAND, '--out', str(path)])}` (a few minutes)"
        ) from None
    return judge.eval().requires_grad_(False)


def main(arguments: list[str] | None = None) -> None:
    """Train a judge, measure it, write it with its provenance."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog=" ".join(COMMAND), description="Trains the judge.")
    parser.add_argument("--out", type=Path, required=True, help="file to write, .safetensors")
    usual = {"steps": 1000, "batch-size": 64, "lr": 2e-3, "seed": 0, "drawings": 12_000, "check": 2000}
    helps = {"drawings": "pictures to train on", "check": "fresh pictures a split"}
    for name, value in usual.items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=helps.get(name))
    args = parser.parse_args(arguments)

    torch.manual_seed(args.seed)
    judge = Judge()
    data = drawings(args.drawings, args.seed, progress=partial(tqdm, desc="drawings", unit="bird"))
    reports = train_judge(judge, data, args.steps, args.batch_size, args.lr, args.seed)
    for report in (bar := tqdm(reports, total=args.steps, desc="judge", unit="step")):
        bar.set_postfix(loss=f"{report.loss:.3f}", accuracy=f"{report.accuracy:.3f}", refresh=False)
    judge.half().float()  # measure what is written
    accuracy: dict[str, dict[str, float]] = {}
    for split, name in (("seen", "seen"), ("test", "held_out")):
        fresh = minibirds.build(split, args.check, SIZE, CHECK_SEED)
        accuracy |= {name: measure(judge, fresh), f"{name}_blurred": measure(judge, fresh, BLUR)}
    provenance = {
        "command": shlex.join([*COMMAND, *arguments]),
        "data": {
            "train": args.drawings, "train_attributes": "independent and uniform", "check_each": args.check,
            "check_seed": CHECK_SEED, "image_size": SIZE, "blur_sigma": BLUR,
        },
        "seed": args.seed, "steps": args.steps, "batch_size": args.batch_size, "lr": args.lr,
        "parameters": sum(p.numel() for p in judge.parameters()), "threads": torch.get_num_threads(),
        "accuracy": accuracy, "torch": torch.__version__,
    }  # fmt: skip
    save_judge(args.out, judge, provenance)
    for name, values in accuracy.items():
        print(f"{name:17}", "  ".join(f"{attribute} {value:.4f}" for attribute, value in values.items()))


if __name__ == "__main__":
    main()
