"""Loading and saving CLIPs: the shipped small one, own files, OpenAI's by name or file."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import clip
import torch
from torch import Tensor

from ..files import (
    WEIGHTS,
    WeightsError,
    contents,
    fit,
    is_foreign,
    is_safetensors,
    load_torch,
    load_weights,
    save_weights,
    state_dict,
)
from .bridge import CLIP
from .stem import give_stem

SHIPPED = {name: WEIGHTS / f"clip_{name}.safetensors" for name in ("mini", "photos64")}
KIND = "galiplib clip"
ARCHIVE_FACTS = ("input_resolution", "context_length", "vocab_size")  # numbers that OpenAI's archives hold as tensors


def save_clip(path: str | Path, model: CLIP, geometry: dict[str, Any], record: dict[str, Any]) -> None:
    """Write a small CLIP as fp16 safetensors with its geometry, vocabulary and provenance record."""
    tensors = {name: tensor.half() for name, tensor in model.state_dict().items()}
    save_weights(path, KIND, tensors, {"geometry": geometry, "vocabulary": model.vocabulary, **record})


def clip_record(path: str | Path = "mini") -> dict[str, Any]:
    """How a small CLIP, shipped or in a file, was made: geometry, vocabulary, command, seed, data, metrics."""
    return load_weights(SHIPPED.get(str(path), path), KIND)[1]


def load_clip(
    name: str | Path = "mini", device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> CLIP:
    """A frozen `clip.model.CLIP` in eval mode.

    Args:
        name: "mini" or "photos64" (shipped), a `.safetensors` file of `save_clip`, an OpenAI name ("ViT-B/32";
            `clip.load` downloads it once, with a progress bar, into ~/.cache/clip and checks its SHA-256), or a file
            with the same content: OpenAI's TorchScript archive, or a state dict of `clip.model.CLIP` (`torch.save` or
            safetensors), wrapped as trainings do it (`files.WRAPPINGS`).
        dtype: of its parameters.

    Raises:
        WeightsError: for an unknown name, a damaged or unsafe file, names or shapes that don't fit, or a download
            that fails; without a network it says which file to put where.
    """
    if str(name) in SHIPPED:
        model = _load_small(SHIPPED[str(name)])
    elif str(name) in clip.available_models():
        model = _by_name(str(name))
    elif str(name).endswith(".safetensors") or Path(name).is_file():
        small = (str(name).endswith(".safetensors") or is_safetensors(name)) and not is_foreign(name)
        model = _load_small(Path(name)) if small else _from_file(Path(name))
    else:
        known = ", ".join([*SHIPPED, *clip.available_models()])
        raise WeightsError(f"no CLIP named {str(name)!r} and no such file; known names: {known}")
    return model.to(device=device, dtype=dtype).eval().requires_grad_(False)


def _load_small(path: Path) -> CLIP:
    tensors, record = load_weights(path, KIND)
    try:
        geometry = dict(record["geometry"])
        stem = geometry.pop("stem", "")
        model = give_stem(CLIP(vocab_size=len(record["vocabulary"]), **geometry).float(), stem)
    except (KeyError, TypeError, RuntimeError) as error:
        raise WeightsError(f"{path} doesn't hold a whole CLIP: {str(error)[:300]}") from None
    fit(model, tensors, f"the CLIP in {path}")
    model.vocabulary = record["vocabulary"]
    return model


def _by_name(name: str) -> CLIP:
    try:
        return clip.load(name, device="cpu")[0].float()
    except (OSError, RuntimeError, EOFError) as error:
        url = clip.clip._MODELS[name]
        target = Path("~/.cache/clip").expanduser() / url.rsplit("/", 1)[1]
        raise WeightsError(
            f"CLIP {name} can't be downloaded ({error}). Without a network, fetch {url} elsewhere and put the file at "
            f"{target}, or give its path as clip.name"
        ) from None


def _from_file(path: Path) -> CLIP:
    """OpenAI's archive or a state dict, in fp32: `clip.load` on a file would round to fp16 and unpickle anything."""
    content = _archive_state(path) if _is_archive(path) else load_torch(path)
    state = state_dict(content, f"{path} holds no state dict of a CLIP")
    state = {name: tensor for name, tensor in state.items() if name not in ARCHIVE_FACTS}
    try:
        model = clip.model.build_model(dict(state)).float()
    except KeyError as error:
        raise WeightsError(f"{path} is no CLIP of OpenAI's: it lacks {error}; found: {contents(state)}") from None
    except (RuntimeError, AssertionError, ValueError, IndexError, ZeroDivisionError) as error:
        raise WeightsError(f"{path} doesn't fit clip.model.CLIP: {str(error)[:300]}") from None
    fit(model, state, f"the CLIP in {path}")  # again, since build_model rounds to fp16
    return model


def _is_archive(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip with code in it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _archive_state(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated, OpenAI's files stay
            return torch.jit.load(path, map_location="cpu").state_dict()
    except (RuntimeError, OSError) as error:
        raise WeightsError(f"{path} is a damaged TorchScript archive: {str(error)[:200]}") from None
