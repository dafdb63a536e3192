"""Networks from files, whoever wrote them: our run folders, checkpoints and exports, GALIP's and RATLIP's authors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..build import make_bridge, with_own_clip
from ..clip.bridge import CLIP
from ..config import Config, build_config
from ..files import WEIGHTS, WeightsError, fit, is_safetensors, load_torch, load_weights
from ..systems.discriminator import ConditionalHead, FeatureDiscriminator
from ..systems.galip import Generator
from . import published as reference
from .store import FOLDER as CHECKPOINTS
from .store import KIND, Checkpoints

SHIPPED = WEIGHTS / "generator_mini.safetensors"


def load_generator(
    path: str | Path = "mini",
    clip_model: CLIP | None = None,
    device: str | torch.device = "cpu",
    ema: bool = True,
) -> Generator:
    """An eval-mode generator, called as G(noise (B, Z), sentence (B, E)) -> (B, 3, H, W) in about [-1, 1].

    Args:
        path: "mini" (shipped), a run folder or one of its checkpoints (the EMA weights), a `.safetensors` file of
            `Run.export`, or a `state_epoch_*.pth` of GALIP's or RATLIP's authors. The content says what a file is.
        clip_model: the CLIP it was trained with; by default the one its configuration names. The authors' files hold
            the part of CLIP that the generator needs: without `clip_model` it runs, but can't encode captions.
        ema: the averaged weights of a run or checkpoint; False for those in training. Other files hold one set only.

    Raises:
        WeightsError: for a file that is missing, damaged, unsafe, or doesn't fit the CLIP.
    """
    path = SHIPPED if path == "mini" else Path(path)
    if path.is_file() and is_safetensors(path):
        _averaged_only(path, ema)
        tensors, record = load_weights(path, KIND)
        config = build_config(record["config"])
    else:
        path, content = _read(path)
        if reference.is_reference(content):
            _averaged_only(path, ema)
            return reference.import_reference(path, clip_model, device, content).generator
        config, tensors = _part(path, content, "ema." if ema else "generator.")
    bridge = make_bridge(with_own_clip(config, _run_folder(path)), device, clip_model)
    return _ready(Generator(bridge, config.model), tensors, f"the generator in {path}", device)


def load_discriminator(
    path: str | Path, clip_model: CLIP | None = None, device: str | torch.device = "cpu"
) -> tuple[FeatureDiscriminator, ConditionalHead]:
    """Discriminator and head in eval mode: head(discriminator(tapped (B, taps, W, g, g)), sentence (B, E)) -> (B,).

    Args:
        path: a run folder, one of its checkpoints, or a `state_epoch_*.pth` of GALIP's or RATLIP's authors.
        clip_model: as in `load_generator`.

    Raises:
        WeightsError: as `load_generator`, and for a file that holds a generator only.
    """
    path = SHIPPED if path == "mini" else Path(path)
    if path.is_file() and is_safetensors(path):
        raise WeightsError(f"{path} holds a generator only: a run folder holds a discriminator")
    path, content = _read(path)
    if reference.is_reference(content):
        found = reference.import_reference(path, clip_model, device, content)
        if found.discriminator is None or found.head is None:
            raise WeightsError(f"{path} holds a generator only, no netD and netC")
        return found.discriminator, found.head
    config, tensors = _part(path, content, "discriminator.")
    bridge = make_bridge(with_own_clip(config, _run_folder(path)), device, clip_model)
    discriminator = _ready(FeatureDiscriminator(bridge, config.model), tensors, f"the discriminator in {path}", device)
    _, tensors = _part(path, content, "head.")
    return discriminator, _ready(ConditionalHead(bridge, config.model), tensors, f"the head in {path}", device)


def generator_record(path: str | Path = SHIPPED) -> dict[str, Any]:
    """How an exported generator was made: configuration, steps, and what `Run.export` was told."""
    return load_weights(path, KIND)[1]


def export_reference(
    source: str | Path | reference.Published, path: str | Path, clip_model: CLIP | None = None, ema: bool = True
) -> None:
    """Write a training as a checkpoint in the authors' format, for their code to load.

    Args:
        source: a run folder, one of its checkpoints, an authors' file, or what `import_reference` gave.
        path: the file to write; their code looks for `state_epoch_<three digits>.pth`.
        clip_model: as in `load_generator`.
        ema: write the averaged generator (what is evaluated and published), not the one in training.

    Raises:
        WeightsError: as `load_generator`, and for networks whose function their code can't compute.
    """
    if not isinstance(source, reference.Published):
        file, content = _read(Path(source))
        if reference.is_reference(content):
            source = reference.import_reference(file, clip_model, content=content)
        else:
            source = _published(file, content, clip_model, ema)
    reference.export_reference(source, path)


def _averaged_only(path: Path, ema: bool) -> None:
    if not ema:
        raise WeightsError(f"{path} holds one set of weights: only run folders and their checkpoints hold both")


def _read(path: Path) -> tuple[Path, Any]:
    """A torch file, or a run folder's newest whole checkpoint -> where it lies, its content."""
    if not path.is_dir():
        return path, load_torch(path)
    content = Checkpoints(path).load()
    if content is None:
        raise WeightsError(f"{path} holds no checkpoint: notebook 05 or `galip train --out {path}` makes one")
    return path / CHECKPOINTS / f"step_{content['step']:06d}.pt", content


def _part(path: Path, content: Any, prefix: str) -> tuple[Config, dict[str, Tensor]]:
    """Of one of our checkpoints: its configuration, and the tensors of one network."""
    if not isinstance(content, dict) or not {"config", "networks"} <= content.keys():
        raise WeightsError(
            f"{path} is neither a checkpoint of galiplib (config, networks) nor of GALIP's authors (model: netG, ...)"
        )
    tensors = {n.removeprefix(prefix): t for n, t in content["networks"].items() if n.startswith(prefix)}
    return build_config(content["config"]), tensors


def _published(path: Path, content: Any, clip_model: CLIP | None, ema: bool) -> reference.Published:
    config, tensors = _part(path, content, "ema." if ema else "generator.")
    bridge = make_bridge(with_own_clip(config, _run_folder(path)), "cpu", clip_model)
    generator = _ready(Generator(bridge, config.model), tensors, f"the generator in {path}", "cpu")
    discriminator, head = load_discriminator(path, bridge.model)
    found = reference.Published(config, bridge, generator, discriminator, head)
    found.optimizers = reference.their_optimizers(found, content["optimizer_g"], content["optimizer_d"])
    return found


def _run_folder(path: Path) -> Path:
    """The folder of the run that a file of its belongs to."""
    return path.parent.parent if path.parent.name == CHECKPOINTS else path.parent


def _ready(module: nn.Module, tensors: dict[str, Tensor], what: str, device: str | torch.device) -> Any:
    fit(module, tensors, what)
    return module.to(device=device, memory_format=torch.channels_last).eval().requires_grad_(False)
