"""Loading and saving CLIPs: the shipped small one, own files, OpenAI's by name or file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .clip_bridge import CLIP, clip
from .files import WEIGHTS, WeightsError, load_weights, save_weights

SHIPPED = WEIGHTS / "clip_mini.safetensors"
KIND = "galiplib clip"


def save_clip(path: str | Path, model: CLIP, geometry: dict[str, int], record: dict[str, Any]) -> None:
    """Write a small CLIP as fp16 safetensors with its geometry, vocabulary and provenance record."""
    tensors = {name: tensor.half() for name, tensor in model.state_dict().items()}
    save_weights(path, KIND, tensors, {"geometry": geometry, "vocabulary": model.vocabulary, **record})


def clip_record(path: str | Path = SHIPPED) -> dict[str, Any]:
    """How a small CLIP was made: geometry, vocabulary, command, seed, data, metrics."""
    return load_weights(path, KIND)[1]


def load_clip(
    name: str | Path = "mini", device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> CLIP:
    """A frozen `clip.model.CLIP` in eval mode.

    Args:
        name: "mini" (shipped), a `.safetensors` file of `save_clip`, an OpenAI name ("ViT-B/32", downloaded once by
            `clip.load`) or a file of OpenAI's (TorchScript archive).
        dtype: of its parameters.

    Raises:
        WeightsError: for an unknown name, a damaged file, or a download that fails.
    """
    if name == "mini":
        model = _load_small(SHIPPED)
    elif str(name).endswith(".safetensors"):
        model = _load_small(Path(name))
    elif str(name) in clip.available_models() or Path(name).is_file():
        model = _load_openai(str(name))
    else:
        known = ", ".join(["mini", *clip.available_models()])
        raise WeightsError(f"no CLIP named {str(name)!r} and no such file; known names: {known}")
    return model.to(device=device, dtype=dtype).eval().requires_grad_(False)


def _load_small(path: Path) -> CLIP:
    tensors, record = load_weights(path, KIND)
    try:
        model = CLIP(vocab_size=len(record["vocabulary"]), **record["geometry"]).float()
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except (KeyError, TypeError, RuntimeError) as error:
        raise WeightsError(f"{path} doesn't hold a whole CLIP: {str(error)[:300]}") from None
    model.vocabulary = record["vocabulary"]
    return model


def _load_openai(name: str) -> CLIP:
    try:
        model, _ = clip.load(name, device="cpu", jit=False)
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"CLIP {name} can't be loaded: {error}. Without a network, get the file from OpenAI's CLIP repository "
            "elsewhere and give its path as clip.name"
        ) from None
    return model.float()
