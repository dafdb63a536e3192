"""Networks from files, whoever wrote them: our run folders, checkpoints and exports, GALIP's and RATLIP's authors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ..build import dataset_of, make_bridge, make_generator, make_system, with_own_clip
from ..clip.bridge import CLIP, ClipBridge
from ..clip.damsm_files import DamsmBridge
from ..config import Config
from ..files import WEIGHTS, WeightsError, contents, fit, is_foreign, is_safetensors, load_torch, load_weights
from ..system import TextToImage
from .attngan import of_attngan
from .dfgan import of_dfgan, write_dfgan
from .onnx import Exported, export, load_onnx
from .published import Published, as_reference, check_format, import_reference, is_reference, their_optimizers
from .published import export_reference as write_reference
from .snapshots import is_snapshot, load_snapshot, of_lafite
from .store import FOLDER, KIND, Checkpoints, recorded_config

SHIPPED = {name: WEIGHTS / f"generator_{name}.safetensors" for name in ("mini", "birds64", "flowers64")}
Network = TypeVar("Network", bound=nn.Module)


def load_generator(
    path: str | Path = "mini",
    clip_model: CLIP | DamsmBridge | None = None,
    device: str | torch.device = "cpu",
    ema: bool = True,
) -> TextToImage:
    """An eval-mode generator, called as G(noise (B, Z), sentence (B, E)) -> (B, 3, H, W) in about [-1, 1].

    Args:
        path: "mini", "birds64", "flowers64" (shipped), a run folder or one of its checkpoints (the EMA weights), a
            `.safetensors` file of `Run.export`, a `state_epoch_*.pth` of GALIP's or RATLIP's authors, wrapped or their
            generator's tensors alone (`published.as_reference`), of DF-GAN's, a `netG_*.pth` of RAT-GAN's or of
            DF-GAN's until 2022, a generator of AttnGAN's (`netG_epoch_*.pth`, `bird_AttnGAN2.pth`), or a network
            snapshot or state dict of LAFITE's. The content says what a file is; RAT-GAN's model for flowers must have
            "flower" in its path.
        clip_model: the CLIP it was trained with; by default the one its configuration names. The authors' files hold
            the part of CLIP that the generator needs: without `clip_model` it runs, but can't encode captions; those
            of DF-GAN's, RAT-GAN's and AttnGAN's take a DAMSM, by `clip.damsm_files.load_damsm(folder)`.
        ema: the averaged weights of a run or checkpoint; False for those in training. Other files hold one set only.

    Raises:
        WeightsError: for a file that is missing, damaged, unsafe, or doesn't fit the CLIP.
    """
    return load_with_config(path, clip_model, device, ema)[0]


def load_with_config(
    path: str | Path, clip_model: CLIP | DamsmBridge | None = None, device: str | torch.device = "cpu", ema: bool = True
) -> tuple[TextToImage, Config]:
    """`load_generator`, and the configuration that it was made by."""
    if str(path).endswith(".onnx"):
        if not ema:
            raise WeightsError(f"{path} holds one set of weights: only run folders and their checkpoints hold both")
        return load_onnx(find(path), clip_model, device)
    path, content = _read(path)
    theirs = is_reference(content)
    if not ema and (theirs or not _holds(content, "generator")):
        raise WeightsError(f"{path} holds one set of weights: only run folders and their checkpoints hold both")
    if theirs:
        found = import_reference(path, clip_model, device, content)
        return found.generator, found.config
    if not _holds(content, "ema"):
        raise WeightsError(f"{path} holds a discriminator only: the generator is in another file, netG_*.pth")
    bridge, config = _around(path, content, clip_model, device)
    if isinstance(bridge, DamsmBridge):
        bridge.asked_by = f"{path}: "
    with torch.random.fork_rng(devices=[]):  # its first weights, which the file's replace, are drawn
        generator = make_generator(bridge, config)
    return _filled(generator, "ema" if ema else "generator", path, content, device), config


def load_discriminator(
    path: str | Path, clip_model: CLIP | DamsmBridge | None = None, device: str | torch.device = "cpu"
) -> tuple[nn.Module, nn.Module]:
    """Discriminator and head in eval mode: head(discriminator(tapped (B, taps, W, g, g)), sentence (B, E)) -> (B,).

    Args:
        path: a run folder, one of its checkpoints, or a `state_epoch_*.pth` or `netD_*.pth` of the authors.
        clip_model: as in `load_generator`.

    Raises:
        WeightsError: as `load_generator`, and for a file that holds a generator only.
    """
    path, content = _read(path)
    if is_reference(content):
        if not {"netD", "netC"} <= content["model"].keys():
            raise WeightsError(f"{path} holds a generator only, no netD and netC")
        return import_reference(path, clip_model, device, content).judges()
    if not _holds(content, "discriminator"):
        raise WeightsError(f"{path} holds a generator only: a run folder holds a discriminator")
    bridge, config = _around(path, content, clip_model, device)
    if not _holds(content, "head"):
        raise WeightsError(f"{path} holds no head: a discriminator of {config.system} has none apart from itself")
    with torch.random.fork_rng(devices=[]):
        system = make_system(bridge, config)
    discriminator, head = system.get_submodule("discriminator"), system.get_submodule("head")
    _filled(discriminator, "discriminator", path, content, device)
    return discriminator, _filled(head, "head", path, content, device)


def generator_config(path: str | Path) -> Config:
    """What a generator of ours was trained by; a run's own CLIP is named by its file.

    Raises WeightsError as `load_generator`, and for a file of GALIP's or RATLIP's authors, which doesn't say.
    """
    path, content = _read(path)
    if is_reference(content):
        raise WeightsError(f"{path} is its authors' and doesn't say what it was trained by: right would be one of ours")
    return _made_by(path, content)


def generator_record(path: str | Path = "mini") -> dict[str, Any]:
    """How a generator, shipped or exported, was made: configuration, steps, and what `Run.export` was told."""
    return load_weights(SHIPPED.get(str(path), path), KIND)[1]


def export_reference(
    source: str | Path | Published, path: str | Path, clip_model: CLIP | DamsmBridge | None = None, ema: bool = True
) -> None:
    """Write a training as a checkpoint in the authors' format, for their code to load.

    Args:
        source: a run folder, one of its checkpoints, an authors' file, or what `import_reference` gave.
        path: the file to write; their code looks for `state_epoch_<three digits>.pth`, RAT-GAN's for
            `netG_<three digits>.pth`, beside which netD is written.
        clip_model: as in `load_generator`.
        ema: write the averaged generator (what is evaluated and published), not the one in training.

    Raises:
        WeightsError: as `load_generator`, and for networks whose function their code can't compute.
    """
    if not isinstance(source, Published):
        file, content = _read(source)
        if is_reference(content):
            source = import_reference(file, clip_model, content=content)
        elif content["config"].get("system") in ("dfgan", "ratgan"):
            if not ema and not _holds(content, "generator"):
                raise WeightsError(f"{file} holds one set of weights: only run folders and their checkpoints hold both")
            return write_dfgan(content, path, ema)
        else:
            config = recorded_config(content["config"])
            check_format(config)
            generator = load_generator(file, clip_model, ema=ema)
            discriminator, head = load_discriminator(file, generator.bridge.model)
            source = Published(config, generator.bridge, generator, discriminator, head)
            source.optimizers = their_optimizers(source, content["optimizer_g"], content["optimizer_d"])
    write_reference(source, path)


def export_onnx(
    source: str | Path, path: str | Path, clip_model: CLIP | DamsmBridge | None = None, ema: bool = True,
    half: bool = False,
) -> tuple[list[Path], Exported]:  # fmt: skip
    """Write a generator as ONNX, NAME.onnx, and its text encoder, NAME.text.onnx -> the files, what was compared.

    Args:
        source, clip_model, ema: as for `load_generator`.
        path: NAME.onnx.
        half: weights in fp16, which halves the files; all is computed in fp32.

    Raises as `load_generator` and `onnx.export`; nothing is written then.
    """
    generator, config = load_with_config(source, clip_model, ema=ema)
    exported = export(generator, noted(source, config, ema), half)
    return exported.write(path), exported


def noted(source: str | Path, config: Config, ema: bool = True) -> dict[str, Any]:
    """What an ONNX file says of where its weights come from."""
    terms = "not noted in the file of its authors" if config.profile == "reference" else dataset_of(config).terms
    if str(find(source)).endswith(".safetensors") and not is_foreign(find(source)):
        terms = generator_record(source).get("terms", terms)
    return {
        "system": config.system, "clip": config.clip.name, "data": config.data.name, "licence": terms,
        "checkpoint": str(source) if str(source) in SHIPPED else Path(source).name, "averaged": ema,
        "config": config.model_dump(),
    }  # fmt: skip


def find(path: str | Path) -> Path:
    """Where weights lie, the shipped ones by their names. Raises WeightsError if there is no such file or folder."""
    if not (found := SHIPPED.get(str(path), Path(path))).exists():
        raise WeightsError(f"there is no weights file or run folder {path}; shipped are {', '.join(SHIPPED)}")
    return found


def _read(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """A file, or a run folder's newest whole checkpoint -> where it lies, its content; an export's looks alike."""
    path = find(path)
    if path.is_dir():
        content = Checkpoints(path).load()
        if content is None:
            raise WeightsError(f"{path} holds no checkpoint: notebook 05 or `galip train --out {path}` makes one")
        return path / FOLDER / f"step_{content['step']:06d}.pt", content
    if path.is_file() and is_safetensors(path) and not is_foreign(path):
        tensors, record = load_weights(path, KIND)
        return path, {"config": record["config"], "networks": {f"ema.{name}": t for name, t in tensors.items()}}
    content = load_snapshot(path) if is_snapshot(path) else load_torch(path)
    content = of_attngan(content, path) or of_lafite(content, path) or of_dfgan(content, path) or as_reference(content)
    if not is_reference(content) and not (isinstance(content, dict) and {"config", "networks"} <= content.keys()):
        raise WeightsError(
            f"{path} is neither a checkpoint of galiplib (config, networks) nor of GALIP's authors (model: netG, ...), "
            "nor a generator of DF-GAN's or RAT-GAN's (conv_img.1.weight, ...), of AttnGAN's (h_net1.fc.0.weight, ...) "
            "or LAFITE's (G_ema: mapping.w_avg, ...), but "
            f"{contents(content)}"
        )
    return path, content


def _holds(content: dict[str, Any], network: str) -> bool:
    return any(name.startswith(f"{network}.") for name in content["networks"])


def _around(
    path: Path, content: dict[str, Any], clip_model: CLIP | DamsmBridge | None, device: str | torch.device
) -> tuple[ClipBridge, Config]:
    """The CLIP that the networks of a checkpoint or export of ours are made around, and their configuration."""
    return make_bridge(_made_by(path, content), device, clip_model), recorded_config(content["config"])


def _made_by(path: Path, content: dict[str, Any]) -> Config:
    """The configuration in a checkpoint or export of ours; if the CLIP is the run's own, with the file that it is."""
    run = path.parent.parent if path.parent.name == FOLDER else path.parent
    return with_own_clip(recorded_config(content["config"]), run)


def _filled(module: Network, name: str, path: Path, content: dict[str, Any], device: str | torch.device) -> Network:
    """A network with its weights, in eval mode."""
    tensors = {n.removeprefix(f"{name}."): t for n, t in content["networks"].items() if n.startswith(f"{name}.")}
    fit(module, tensors, f"the {'generator' if name == 'ema' else name} in {path}")
    return module.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
