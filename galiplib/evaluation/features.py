"""What distances are measured over: extractors by name, what distances are called after them, statistics in files.

Only InceptionV3's pool features, in torch-fidelity's port of the original weights, give an FID or a KID. Over the
judge's features, CLIP's embeddings or EfficientNet-Lite2's it is a Fréchet distance on those, which compares with
nothing else.

Statistics of real pictures, means and covariances, are kept as `.npz`, as the authors' (`mu`, `sigma`). They say little
without how they were made (extractor, data set, split, crop, size): ours say it in `note`; those around don't.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..clip.bridge import ClipBridge
from ..data.batches import Source
from ..efficientnet import CHECKSUMS, EXAMINER, load_efficientnet, missing
from ..files import load_torch, write_atomically
from ..images import EvaluationError, to_images, to_range
from .judge import FEATURES, Judge
from .measures import Moments, Statistics
from .protocol import BATCH

FOLDER = Path("data") / "statistics"
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION_BATCH = 25  # pictures at once: enlarged to 299 x 299 they take some 50 MB each
IMAGENET_SIDE = 112  # pictures are enlarged to it: 15 ms each on one core; at 224 it knows more birds, for 60 ms
IMAGENET_BATCH = 50
PUBLISHED = {  # what measures over InceptionV3's features are called
    "frechet_all": "fid", "frechet_all_real": "fid_real_images", "frechet_distance": "fid_halves",
    "frechet_floor": "fid_floor", "frechet_images": "fid_images", "kernel_distance": "kid",
}  # fmt: skip


class Extractor:
    """Pictures (B, 3, H, W), float in [-1, 1], to features (B, `dim`) on the CPU; each is entered in `EXTRACTORS`.

    It is made from what it needs of bridge=, judge=, weights= (a file) and device=.
    """

    name: str
    dim: int
    weights = ""  # tells them from others, for statistics in files

    def extract(self, images: Tensor) -> Tensor:
        """The features, on whatever device."""
        raise NotImplementedError

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        return self.extract(images).float().cpu()


class JudgeFeatures(Extractor):
    """The features of the mini birds' judge, 128 numbers."""

    name, dim = "judge", FEATURES

    def __init__(self, judge: Judge | None = None, **_: Any) -> None:
        if judge is None:
            raise EvaluationError("eval.features: the judge knows mini birds only; use clip or inception")
        self.judge, self.device = judge, next(judge.parameters()).device

    def extract(self, images: Tensor) -> Tensor:
        return self.judge.features(to_range(images).to(self.device))


class ClipFeatures(Extractor):
    """A CLIP's image embeddings, in the input convention of the bridge."""

    name = "clip"

    def __init__(self, bridge: ClipBridge, **_: Any) -> None:
        self.bridge, self.dim = bridge, bridge.embed_dim
        projection = bridge.model.visual.proj.detach().float().cpu().numpy()
        self.weights = hashlib.sha256(projection.tobytes()).hexdigest()[:8]

    def extract(self, images: Tensor) -> Tensor:
        return self.bridge.encode_image(to_range(images).to(self.bridge.pixel_mean.device))[1]


class InceptionFeatures(Extractor):
    """InceptionV3's 2,048 pool features as FID wants them: 8-bit pictures resized to 299 x 299 by the network itself.

    Its weights are torch-fidelity's file, which is downloaded once where none is given.
    """

    name, dim = "inception", 2048

    def __init__(self, weights: str | Path | None = None, device: str | torch.device = "cpu", **_: Any) -> None:
        if importlib.util.find_spec("torch_fidelity") is None:
            raise EvaluationError("FID needs torch-fidelity: pip install 'galiplib[metrics]'")
        from torchmetrics.image.fid import NoTrainInceptionV3

        path = None if weights is None else str(weights)
        try:
            if path is not None:
                load_torch(path)  # torch-fidelity would run code from it; now it is known to hold tensors only
            self.network = NoTrainInceptionV3("inception-v3-compat", ["2048"], path).to(device)
        except Exception as error:  # of the network, the disk, or a file that is something else
            raise EvaluationError(
                f"InceptionV3's weights can't be had ({' '.join(str(error).split())[:200]}). Without a network, fetch "
                f"{INCEPTION_URL} elsewhere and give its path as weights"
            ) from None
        self.device = device

    def extract(self, images: Tensor) -> Tensor:
        parts = to_range(images, "byte").to(self.device).split(INCEPTION_BATCH)
        return torch.cat([self.network(part).flatten(1) for part in parts])


class ImagenetFeatures(Extractor):
    """EfficientNet-Lite2's 1,280 pool features: it sees blur, halos and grain, and no training looks through it."""

    name, dim, weights = "imagenet", 1280, CHECKSUMS[EXAMINER][:8]

    def __init__(self, device: str | torch.device = "cpu", **_: Any) -> None:
        if said := missing(EXAMINER):
            raise EvaluationError(said)
        self.network, self.device = load_efficientnet(EXAMINER, device), device

    def extract(self, images: Tensor) -> Tensor:
        parts = to_range(images).to(self.device).split(IMAGENET_BATCH)
        return torch.cat([self.network.features(self.network.preprocess(part, IMAGENET_SIDE)) for part in parts])


EXTRACTORS: dict[str, Callable[..., Extractor]] = {
    one.name: one for one in (JudgeFeatures, ClipFeatures, ImagenetFeatures, InceptionFeatures)
}


def default_features(judged: bool) -> tuple[tuple[str, ...], dict[str, str]]:
    """What distances are over by default, and why not over more: the judge or the run's CLIP, and ImageNet's network.

    Args:
        judged: whether there is a judge.
    """
    own = "judge" if judged else "clip"
    if said := missing(EXAMINER):
        return (own,), {"imagenet_frechet_distance": said}
    return (own, "imagenet"), {}


def extractor(name: str, **parts: Any) -> Extractor:
    """An extractor by name, from parts of which it takes what it needs.

    Raises:
        EvaluationError: for an unknown name, or if a network can't be had; says what to fetch.
        WeightsError: for a damaged file of an installed package.
    """
    if name not in EXTRACTORS:
        raise EvaluationError(f"unknown feature extractor {name!r}: one of {', '.join(EXTRACTORS)}")
    return EXTRACTORS[name](**parts)


def measure_name(name: str, features: str, first: bool) -> str:
    """What a measure is called over features, the `first` of several without a prefix; an FID over Inception's only."""
    if features == "inception":
        return PUBLISHED.get(name) or f"inception_{name}"
    return name if first else f"{features}_{name}"


# ---------------------------------------------------------------- statistics in files


def real_statistics(
    data: Source, look: Extractor, note: dict[str, Any], path: str | Path | None = None, progress: bool = True
) -> Statistics:
    """Statistics of every picture of a split, once, from a file, which is made where it is missing.

    `note` says what the pictures are (data, split, crop, size, ...); by default the file is named after it and `look`.
    Raises EvaluationError for a file that doesn't fit, or says that it was made of other pictures.
    """
    note = note | {"features": look.name, "weights": look.weights, "pictures": data.fingerprint}
    if path is None:
        digest = hashlib.sha256(json.dumps(note, sort_keys=True).encode()).hexdigest()[:8]
        path = FOLDER / f"{note['data']}-{note['split']}-{note['size']}-{look.name}-{digest}.npz"
    if Path(path).is_file():
        found, said = load_statistics(path, look.dim)
        if not said:
            warnings.warn(f"{path} doesn't say how it was made: it may not fit these pictures", stacklevel=2)
        elif other := sorted(
            key
            for key in note.keys() | said.keys()
            if note.get(key) != ({"pictures": data.fingerprint} | said).get(key)
        ):
            raise EvaluationError(f"{path} was made of other pictures: {', '.join(other)} differ; delete it, or rename")
        return found
    moments = Moments(look.dim)
    rows = torch.arange(len(data)).split(BATCH)
    for own in tqdm(rows, desc="statistics", unit="batch", disable=not progress):
        moments.update(look(to_images(data.pixels(own.numpy())[0])))
    save_statistics(path, moments.statistics(), note)
    return moments.statistics()


def save_statistics(path: str | Path, statistics: Statistics, note: dict[str, Any]) -> None:
    """Write statistics as `.npz` with `mu`, `sigma` (float64), `count`, and `note` in JSON; raises OSError."""
    held: dict[str, Any] = statistics._asdict() | {"note": json.dumps(note)}
    write_atomically(path, lambda stream: np.savez_compressed(stream, **held))


def load_statistics(path: str | Path, dim: int | None = None) -> tuple[Statistics, dict[str, Any]]:
    """Statistics, and the note on how they were made ({} in the authors' files, which lack it).

    Raises EvaluationError for a file that is missing, damaged, holds something else, or is not over `dim` features.
    """
    if not Path(path).is_file():
        raise EvaluationError(f"there is no statistics file {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            held = dict(file)
        if missing := [name for name in ("mu", "sigma") if name not in held]:
            raise EvaluationError(f"{path} lacks {' and '.join(missing)}; it holds {', '.join(held) or 'nothing'}")
        mu, sigma = (torch.from_numpy(held[name].astype(np.float64)) for name in ("mu", "sigma"))
        count, note = int(held.get("count", 0)), json.loads(str(held.get("note", "{}")))
    except EvaluationError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise EvaluationError(f"{path} is no readable statistics file: {str(error)[:200]}") from None
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        shapes = f"mu is {tuple(mu.shape)} and sigma {tuple(sigma.shape)}"
        raise EvaluationError(f"{path}: {shapes}; (D,) and (D, D) expected")
    if dim not in (None, len(mu)):
        raise EvaluationError(f"{path} is over {len(mu)} features, and {dim} are to be compared: another extractor's")
    if not (mu.isfinite().all() and sigma.isfinite().all()):
        raise EvaluationError(f"{path} holds numbers that are not finite")
    return Statistics(mu, sigma, count or len(mu)), note  # unknown counts warn of nothing
