"""The files of DF-GAN's and RAT-GAN's authors, as checkpoints of ours and back.

DF-GAN: `state_epoch_*.pth`, `{"model": {"netG", "netD", "netC"}, "optimizers", "epoch"}`. DF-GAN until June 2022 and
RAT-GAN: `netG_*.pth` and `netD_*.pth`, bare state dicts, netD with the head inside. What no computation uses is kept
under their names, so that what was read is written back. Their text encoder lies in other files (`clip.damsm_files`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..clip.damsm_files import ELSEWHERE
from ..files import WeightsError, state_dict, write_atomically
from ..systems.ratgan import MOST

Names = tuple[tuple[str, str], ...]  # theirs, ours; behind ^ at the beginning only

AFFINE: Names = (
    (".fc_gamma.linear1.", ".gamma.0."), (".fc_gamma.linear2.", ".gamma.2."),
    (".fc_beta.linear1.", ".beta.0."), (".fc_beta.linear2.", ".beta.2."),
    (".c1.", ".conv1."), (".c2.", ".conv2."), (".c_sc.", ".shortcut."), ("^fc.", "^ema.code."),
)  # fmt: skip
HALVING: Names = ((".conv_r.", ".residual."), (".conv_s.", ".shortcut."))
DFGAN: dict[str, Names] = {
    "netG": (*AFFINE, ("^GBlocks.", "^ema.blocks."), ("^to_rgb.1.", "^ema.to_rgb.")),
    "netD": (*HALVING, ("^conv_img.", "^discriminator.from_rgb."), ("^DBlocks.", "^discriminator.blocks.")),
    "netC": (("^joint_conv.0.", "^head.joint."), ("^joint_conv.2.", "^head.logit.")),
}
RATGAN: dict[str, Names] = {
    "netG": (
        *AFFINE, ("^block", "^ema.blocks."), ("^conv_img.1.", "^ema.to_rgb."),
        (".affine0.", ".fuse1.affines.0."), (".affine1.", ".fuse1.affines.1."), (".affine4.", ".fuse1.affines.2."),
        (".affine2.", ".fuse2.affines.0."), (".affine3.", ".fuse2.affines.1."), (".affine5.", ".fuse2.affines.2."),
        ("^lstm.noise2h.", "^ema.cell.hidden."), ("^lstm.noise2c.", "^ema.cell.memory."),
        ("^lstm.W", "^ema.cell.lstm.weight_ih_l0"), ("^lstm.U", "^ema.cell.lstm.weight_hh_l0"),
        ("^lstm.bias", "^ema.cell.lstm.bias_ih_l0"),
    ),
    "netD": (
        *HALVING, ("^conv_img.", "^discriminator.from_rgb."), ("^block", "^discriminator.blocks."),
        ("^COND_DNET.block.", "^head.block."), ("^COND_DNET.joint_conv_att.", "^head.attention."),
        ("^COND_DNET.joint_conv.0.", "^head.joint."), ("^COND_DNET.joint_conv.2.", "^head.logit."),
    ),
}  # fmt: skip
UNUSED = r"block\d+\.(lstm|fea_ll?)\."  # copies of the one cell, and layers that no computation uses
SPARE = r"block\d+\.affine[45]\."  # only the model for flowers computes with them
TRANSPOSED = ("lstm.W", "lstm.U")


def renamed(name: str, names: Names, back: bool = False) -> str:
    """Their name -> ours, or `back`; a name that is none of them stays as it is."""
    for pair in names:
        old, new = reversed(pair) if back else pair
        if old[0] != "^":
            name = name.replace(old, new)
        elif name.startswith(old[1:]):
            name = new[1:] + name[len(old) - 1 :]
    return name


# ---------------------------------------------------------------- reading


def of_dfgan(content: Any, path: str | Path) -> dict[str, Any] | None:
    """The content of a file of theirs as that of a checkpoint of ours, its geometry read from the shapes; else None.

    No shape tells RAT-GAN's model for flowers from the others: it is taken for it if "flower" is in its path, as in the
    published folder's name, and the affines that only it uses have learned.

    Raises WeightsError for a file of theirs that lacks something.
    """
    system, states = _states(content, path)
    if not states:
        return None
    table, ours, unused = DFGAN if system == "dfgan" else RATGAN, dict[str, Tensor](), dict[str, dict[str, Tensor]]()
    try:
        model, width = (_dfgan if system == "dfgan" else _ratgan)(states, str(path))
        for network, tensors in states.items():
            unused[network] = {name: tensor for name, tensor in tensors.items() if _is_unused(name, tensors, model)}
            for name in tensors.keys() - unused[network].keys():
                tensor = tensors[name].T if name in TRANSPOSED else tensors[name]
                ours[renamed(name, table[network])] = tensor
        if model.get("recurrent"):
            ours["ema.cell.lstm.bias_hh_l0"] = torch.zeros_like(states["netG"]["lstm.bias"])
    except KeyError as error:
        raise WeightsError(f"{path} lacks {error.args[0]}, which every {system} of the authors has") from None
    except IndexError:
        raise WeightsError(f"{path} has tensors of other shapes than any {system} of the authors") from None
    clip = {"damsm": ELSEWHERE} if width == 256 else {"name": "ViT-B/32", "convention": "reference"}
    config = {
        "profile": "reference", "system": system, "clip": clip, "model": model, "train": {"recipe": "paper"},
        "data": {"image_size": model["image_size"]},
    }  # fmt: skip
    beside = {"epoch": content.get("epoch", 0), "optimizers": content.get("optimizers", {})}
    return {"config": config, "networks": ours, "theirs": {"unused": unused, **beside}}


def _states(content: Any, path: str | Path) -> tuple[str, dict[str, dict[str, Tensor]]]:
    """The system, and the state dicts of their networks; none if it is no file of theirs."""
    if not isinstance(content, dict) or "config" in content:
        return "", {}
    nets = content.get("model")
    if isinstance(nets, dict) and isinstance(nets.get("netG"), dict):
        states = {n: state_dict(s, f"{n} of {path} is no state dict") for n, s in nets.items() if n in DFGAN}
        parts = {name.partition(".")[0] for name in states["netG"]}
        return "dfgan", states if "GBlocks" in parts and "mapping" not in parts else {}  # else GALIP's
    try:
        tensors = state_dict(content, "")
    except WeightsError:
        return "", {}
    known = {"netG": "conv_img.1.weight", "netD": "COND_DNET.joint_conv.0.weight"}
    return "ratgan", {network: tensors for network, name in known.items() if name in tensors}


def _count(tensors: Iterable[str], blocks: str) -> int:
    """How many blocks there are, by their numbers behind the prefix."""
    numbers = {match[1] for name in tensors if (match := re.match(rf"{blocks}(\d+)\.", name))}
    if not numbers:
        raise KeyError(f"{blocks}0")
    return len(numbers)


def _dfgan(states: dict[str, dict[str, Tensor]], path: str) -> tuple[dict[str, Any], int]:
    """The section `model`, the sentence's width."""
    tensors = states["netG"]
    width, noise_dim = (
        tensors["GBlocks.0.fuse1.affine0.fc_gamma.linear1.weight"].shape[1],
        tensors["fc.weight"].shape[1],
    )
    side = round((len(tensors["fc.weight"]) / tensors["GBlocks.0.c1.weight"].shape[1]) ** 0.5)
    image_size = side * 2 ** _count(tensors, "GBlocks.")
    model = {"channels": tensors["to_rgb.1.weight"].shape[1], "noise_dim": noise_dim, "image_size": image_size}
    return model, width - noise_dim


def _ratgan(states: dict[str, dict[str, Tensor]], path: str) -> tuple[dict[str, Any], int]:
    """The same of RAT-GAN, or of DF-GAN of 2020."""
    ((network, tensors),) = states.items()
    blocks = _count(tensors, "block")
    if network == "netD":
        channels, logit = len(tensors["conv_img.weight"]), tensors["COND_DNET.joint_conv.2.weight"]
        width = tensors["COND_DNET.joint_conv.0.weight"].shape[1] - channels * min(2**blocks, MOST)
        attention = "COND_DNET.block.gamma" in tensors
        return {"channels": channels, "image_size": logit.shape[-1] * 2**blocks, "attention": attention}, width
    affine, spare = (tensors.get(f"block0.affine{i}.fc_gamma.linear{k}.weight") for i, k in ((0, 1), (4, 2)))
    if affine is None:
        raise KeyError("block0.affine0.fc_gamma.linear1.weight")
    side = round((len(tensors["fc.weight"]) / tensors["block0.c1.weight"].shape[1]) ** 0.5)
    flowers = spare is not None and bool(spare.any()) and "flower" in path.lower()
    model = {
        "channels": tensors["conv_img.1.weight"].shape[1], "noise_dim": tensors["fc.weight"].shape[1],
        "image_size": side * 2 ** (blocks - 1), "state_dim": len(affine), "affines": 6 if flowers else 4,
        "recurrent": "lstm.W" in tensors,
    }  # fmt: skip
    return model, len(tensors.get("lstm.W", affine.T))


def _is_unused(name: str, tensors: dict[str, Tensor], model: dict[str, Any]) -> bool:
    if ".conv_s." in name:  # a shortcut that changes no width
        kernel = tensors[f"{name.rpartition('.')[0]}.weight"]
        return kernel.shape[0] == kernel.shape[1]
    passed = model.get("attention") and name.startswith(f"block{_count(tensors, 'block') - 1}.")
    return bool(passed or re.match(UNUSED, name) or (model.get("affines") == 4 and re.match(SPARE, name)))


# ---------------------------------------------------------------- writing


def write_dfgan(content: dict[str, Any], path: str | Path, ema: bool = True) -> None:
    """Write a checkpoint of ours, or what `of_dfgan` made, for the authors' code to load.

    DF-GAN's is one file, of our trainings without optimizers. Of RAT-GAN `path` is netG, if there is one, and netD goes
    beside it, netG in its name replaced by netD.

    Raises WeightsError for networks whose function their code can't compute.
    """
    config, path = content["config"], Path(path)
    system, model = config["system"], config["model"]
    table, theirs = DFGAN if system == "dfgan" else RATGAN, content.get("theirs", {})
    networks: dict[str, dict[str, Tensor]] = {}
    for name, tensor in content["networks"].items():
        kind = name.partition(".")[0]
        if kind == ("generator" if ema else "ema") or name.endswith("bias_hh_l0"):
            continue
        network = {"discriminator": "netD", "head": "netC" if system == "dfgan" else "netD"}.get(kind, "netG")
        known = renamed(name.replace("generator.", "ema.", 1), table[network], back=True)
        tensor = tensor.T if known in TRANSPOSED else tensor
        networks.setdefault(network, {})[known] = tensor.detach().cpu().contiguous()
    _check(system, model, networks)
    for network, tensors in networks.items():
        kept = theirs.get("unused", {}).get(network)
        tensors |= _made_up(network, tensors, model) if kept is None else kept
    if system == "dfgan":
        written: dict[Path, Any] = {path: {
            "model": networks, "optimizers": theirs.get("optimizers", {}),
            "epoch": theirs.get("epoch", 0),
        }}  # fmt: skip
    else:
        beside = path.with_name(path.name.replace("netG", "netD"))
        if len(networks) > 1 and beside == path:
            raise WeightsError(f"{path} must have netG in its name: netD is written beside it, under the like name")
        written = {path if len(networks) == 1 or n == "netG" else beside: tensors for n, tensors in networks.items()}
    for file, whole in written.items():
        write_atomically(file, partial(torch.save, whole))


def _check(system: str, model: dict[str, Any], networks: dict[str, dict[str, Tensor]]) -> None:
    """Raises WeightsError for networks whose function their code can't compute."""
    generator = networks.get("netG", {})
    if not generator:
        return
    first = generator["GBlocks.0.c1.weight" if system == "dfgan" else "block0.c1.weight"]
    side = round((len(generator["fc.weight"]) / first.shape[1]) ** 0.5)
    blocks = _count(generator, "GBlocks." if system == "dfgan" else "block")
    if side != 4 or (system == "ratgan" and blocks != 7):
        size, right = (
            side * 2 ** (blocks - (system == "ratgan")),
            "256" if system == "ratgan" else "4 times a power of two",
        )
        raise WeightsError(f"the authors' format of the system {system} has model.image_size = {right}, not {size}")
    if system == "ratgan" and model.get("state_dim", 256) != 256:
        raise WeightsError(f"the authors' format of RAT-GAN has model.state_dim = 256, not {model['state_dim']}")


def _made_up(network: str, tensors: dict[str, Tensor], model: dict[str, Any]) -> dict[str, Tensor]:
    """What their networks hold and don't use, as it would be untrained, or 0."""
    made: dict[str, Tensor] = {}
    if network == "netD":
        blocks = re.compile(r"(DBlocks\.\d+|block\d+)\.conv_r\.2\.weight")
        widths = {match[1]: tensors[name].shape[0] for name in tensors if (match := blocks.match(name))}
        if model.get("attention"):
            last, width = f"block{len(widths)}", max(widths.values())
            made |= {f"{last}.gamma": torch.zeros(1), f"{last}.conv_r.0.weight": torch.zeros(width, width, 4, 4),
                     f"{last}.conv_r.2.weight": torch.zeros(width, width, 3, 3)}  # fmt: skip
            widths[last] = width
        for block, width in widths.items():
            if f"{block}.conv_s.bias" not in tensors:
                made |= {f"{block}.conv_s.weight": torch.zeros(width, width, 1, 1),
                         f"{block}.conv_s.bias": torch.zeros(width)}  # fmt: skip
    elif "lstm.W" in tensors:
        cell = {name: tensor for name, tensor in tensors.items() if name.startswith("lstm.")}
        for block in (f"block{i}" for i in range(_count(tensors, "block"))):
            made |= {f"{block}.{name}": tensor for name, tensor in cell.items()}
            for affine, conv, like, layer in ((4, "c1", 0, "fea_l"), (5, "c2", 2, "fea_ll")):
                width = tensors[f"{block}.{conv}.weight"].shape[1]
                made |= {f"{block}.{layer}.weight": torch.zeros(256, width), f"{block}.{layer}.bias": torch.zeros(256)}
                if model.get("affines", 4) == 4:  # as the identity
                    of = f"{block}.affine{like}."
                    for name in [name for name in tensors if name.startswith(of)]:
                        value = torch.zeros_like(tensors[name])
                        made[name.replace(of, f"{block}.affine{affine}.")] = (
                            value + 1 if name.endswith("fc_gamma.linear2.bias") else value
                        )
    return made
