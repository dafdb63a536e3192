"""What distances are measured over: feature extractors by name, after which the distance is called (`crowds.Names`).

Only InceptionV3's pool features, in torch-fidelity's port of the original weights, give an FID or a KID. Over the
judge's features or CLIP's embeddings it is a Fréchet distance on those, which compares with nothing else.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..clip.bridge import ClipBridge
from ..files import load_torch
from ..images import EvaluationError, to_range
from .judge import Judge

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION_BATCH = 25  # pictures at once: enlarged to 299 x 299 they take some 50 MB each


@dataclass(frozen=True)
class Extractor:
    """Pictures (B, 3, H, W), float in [-1, 1], to features (B, `dim`) on the CPU.

    Attributes:
        name: judge, clip or inception.
        dim: width of the features.
        extract: does it.
        weights: tells the network's weights from others, for statistics that are kept in files.
    """

    name: str
    dim: int
    extract: Callable[[Tensor], Tensor]
    weights: str = ""

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        return self.extract(images).float().cpu()


def judge_extractor(judge: Judge) -> Extractor:
    """The features of the mini birds' judge, 128 numbers."""
    device = next(judge.parameters()).device
    return Extractor(
        "judge", 128,
        lambda images: judge.features(to_range(images).to(device)),
    )  # fmt: skip


def clip_extractor(bridge: ClipBridge) -> Extractor:
    """A CLIP's image embeddings, in the input convention of the bridge."""
    return Extractor(
        "clip", bridge.embed_dim,
        lambda images: bridge.encode_image(to_range(images).to(bridge.pixel_mean.device))[1],
        hashlib.sha256(bridge.model.visual.proj.detach().float().cpu().numpy().tobytes()).hexdigest()[:8],
    )  # fmt: skip


def inception_extractor(weights: str | Path | None = None, device: str | torch.device = "cpu") -> Extractor:
    """InceptionV3's 2,048 pool features as FID wants them: 8-bit pictures resized to 299 x 299 by the network itself.

    Args:
        weights: torch-fidelity's file; by default it is downloaded once, with a progress bar.

    Raises:
        EvaluationError: without torch-fidelity, or if the weights can't be had; says what to fetch.
    """
    if importlib.util.find_spec("torch_fidelity") is None:
        raise EvaluationError("FID needs torch-fidelity: pip install 'galiplib[metrics]'")
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        path = None if weights is None else str(weights)
        if path is not None:
            load_torch(path)  # torch-fidelity would run code from it; now it is known to hold tensors only
        network: nn.Module = NoTrainInceptionV3("inception-v3-compat", ["2048"], path).to(device)
    except Exception as error:  # of the network, the disk, or a file that is something else
        raise EvaluationError(
            f"InceptionV3's weights can't be had ({' '.join(str(error).split())[:200]}). Without a network, fetch "
            f"{INCEPTION_URL} elsewhere and give its path as weights"
        ) from None

    def extract(images: Tensor) -> Tensor:
        parts = to_range(images, "byte").to(device).split(INCEPTION_BATCH)
        return torch.cat([network(part).flatten(1) for part in parts])

    return Extractor("inception", 2048, extract)


def extractor(name: str, **parts: Any) -> Extractor:
    """An extractor by name, from what it needs: judge=, bridge=, or weights= and device=.

    Raises:
        EvaluationError: for an unknown name, and as the extractors' own functions do.
    """
    makers = {"judge": judge_extractor, "clip": clip_extractor, "inception": inception_extractor}
    if name not in makers:
        raise EvaluationError(f"unknown feature extractor {name!r}: one of {', '.join(makers)}")
    return makers[name](**parts)
