"""The checkpoint format of GALIP's and RATLIP's authors: reading it into our networks, and writing it back.

`torch.save({"model": {"netG": ..., "netD": ..., "netC": ...}, "optimizers": {"optimizer_G": ..., "optimizer_D": ...},
"epoch": n})`; saved under DDP, every name starts with `module.`. netG holds the blocks of the frozen CLIP vision tower;
netD holds shortcuts (`DBlocks.*.conv_s`) that no computation uses, kept here so that what was read can be written back.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..build import make_generator
from ..clip.bridge import CLIP, ClipBridge, default_prompt_layers, default_taps
from ..config import Config, GalipConfig, RatlipConfig, build_config
from ..files import WRAPPINGS, WeightsError, contents, fit, load_torch, state_dict, write_atomically
from ..system import TextToImage
from ..systems.galip import REFERENCE_SIZES, ConditionalHead, FeatureDiscriminator, block_sizes

# ---------------------------------------------------------------- what they call things

TOWER = "mapping.CLIP_ViT."
UNUSED = re.compile(r"DBlocks\.\d+\.conv_s\.")
# Their names of what never learns: CLIP is frozen, and no computation uses those shortcuts. All else gets a gradient.
NEVER_LEARN = (re.compile(re.escape(TOWER)), UNUSED)

FUSION = (
    (".fc_gamma.0.", ".affine.gamma.0."), (".fc_gamma.2.", ".affine.gamma.2."),  # RATLIP's, behind an LSTM (rnn)
    (".fc_beta.0.", ".affine.beta.0."), (".fc_beta.2.", ".affine.beta.2."),
    (".fc_gamma.linear1.", ".gamma.0."), (".fc_gamma.linear2.", ".gamma.2."),
    (".fc_beta.linear1.", ".beta.0."), (".fc_beta.linear2.", ".beta.2."),
    (".se.gn.", ".attention.norm."), (".se.cweight", ".attention.channel_weight"),
    (".se.cbias", ".attention.channel_bias"), (".se.sweight", ".attention.place_weight"),
    (".se.sbias", ".attention.place_bias"), (".bn.", ".norm."),
)  # fmt: skip
COLLECT = ((".conv_r.", ".residual."), (".conv_s.", ".shortcut."))
# network -> (their prefix, our prefix, what differs behind it), in the order of their modules
NAMES: dict[str, tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...]] = {
    "netG": (
        ("fc_code.", "code.", ()), ("mapping.FBlocks.", "fusion.", FUSION), ("mapping.conv_fuse.", "to_clip.", ()),
        (TOWER, TOWER, ()), ("mapping.conv.", "from_clip.", ()), ("mapping.fc_prompt.", "prompts.", ()),
        ("GBlocks.", "blocks.", (*FUSION, (".c1.", ".conv1."), (".c2.", ".conv2."), (".c_sc.", ".shortcut."))),
        ("to_rgb.1.", "to_rgb.", ()),
    ),
    "netD": (("DBlocks.", "collect.", COLLECT), ("main.", "reduce.", COLLECT)),
    "netC": (("joint_conv.0.", "joint.", ()), ("joint_conv.2.", "logit.", ())),
}  # fmt: skip
BLOCK_ORDER = ("gamma", "beta", "c1", "c2", "fuse1", "fuse2", "c_sc", "conv_r", "conv_s")


def to_ours(network: str, name: str) -> str:
    """Their name of a parameter -> ours; a name that is none of theirs stays as it is."""
    for theirs, ours, inner in NAMES[network]:
        if name.startswith(theirs):
            name = ours + name[len(theirs) :]
            for before, after in inner:
                name = name.replace(before, after)
            break
    return name


def to_theirs(network: str, name: str) -> str:
    """Our name of a parameter -> theirs.

    Raises:
        KeyError: for a parameter that their network does not have.
    """
    for theirs, ours, inner in NAMES[network]:
        if name.startswith(ours):
            name = theirs + name[len(ours) :]
            for after, before in inner:
                name = name.replace(before, after)
            return name
    raise KeyError(name)


def their_order(network: str, name: str) -> tuple[int, int, int]:
    """Where a name stands in their state dict: by module, number of the block, part of the block."""
    place = next(i for i, (theirs, _, _) in enumerate(NAMES[network]) if name.startswith(theirs))
    block = re.match(r"(?:(?:GBlocks|DBlocks)\.(\d+)|main)\.(\w+)", name)
    if block is None:  # our order within the module is theirs
        number = re.match(r"mapping\.FBlocks\.(\d+)", name)
        return place, int(number.group(1)) if number else 0, 0
    return place, int(block.group(1) or 0), BLOCK_ORDER.index(block.group(2))


# ---------------------------------------------------------------- reading


@dataclass
class Published:
    """Networks from the authors' file, or to be written as one.

    Attributes:
        bridge: the CLIP around them, in the reference convention.
        generator, discriminator, head: in eval mode, fp32; discriminator and head are None if the file has no netD.
        unused: their names -> tensors that no computation uses.
        epoch: epochs trained.
        optimizers: their optimizers' state dicts, as found.
    """

    config: Config
    bridge: ClipBridge
    generator: TextToImage
    discriminator: nn.Module | None = None
    head: nn.Module | None = None
    unused: dict[str, Tensor] = field(default_factory=dict)
    epoch: int = 0
    optimizers: dict[str, Any] = field(default_factory=dict)

    def judges(self) -> tuple[nn.Module, nn.Module]:
        """Discriminator and head. Raises WeightsError if there are none."""
        if self.discriminator is None or self.head is None:
            raise WeightsError("the authors' format holds a discriminator too: train or import one with it")
        return self.discriminator, self.head


def is_reference(content: Any) -> bool:
    """Whether this is a checkpoint in the authors' format."""
    return isinstance(content, dict) and isinstance(content.get("model"), dict) and "netG" in content["model"]


def as_reference(content: Any) -> Any:
    """What `load_torch` gave, in the authors' format if it holds their networks, or their generator alone, in another.

    The networks may lie under `WRAPPINGS` or beside each other, the generator's tensors (an average's) bare.
    """
    if is_reference(content) or not isinstance(content, dict):
        return content
    places = [content, *(content[name] for name in WRAPPINGS if isinstance(content.get(name), dict))]
    for networks in places:
        if isinstance(networks.get("netG"), dict):
            return {**content, "model": networks}
    with suppress(WeightsError):
        tensors = state_dict(content, "")
        if {"fc_code.weight", f"{TOWER}conv1.weight"} <= tensors.keys():
            return {"model": {"netG": tensors}}
    return content


def import_reference(
    path: str | Path, clip_model: CLIP | None = None, device: str | torch.device = "cpu", content: Any = None
) -> Published:
    """The networks of a checkpoint in the authors' format (`state_epoch_*.pth`), from one GPU or under DDP.

    Args:
        clip_model: the CLIP it was trained with (the authors': ViT-B/32). Without one, the generator runs with the
            tower in the file, but there is no text encoder: sentence embeddings are the caller's.
        content: the file's content, if it has been read already.

    Raises:
        WeightsError: for a file that is missing, damaged, unsafe or of another format, names or shapes that do not
            fit, or a CLIP of another geometry.
    """
    content = as_reference(load_torch(path)) if content is None else content
    if not is_reference(content):
        wanted = '{"model": {"netG": ...}} expected'
        raise WeightsError(
            f"{path} is no checkpoint of GALIP's or RATLIP's authors: {wanted}, {contents(content)} found"
        )
    theirs = {name: state for name, state in content["model"].items() if name in NAMES}
    states = {name: state_dict(state, f"{name} of {path} is no state dict") for name, state in theirs.items()}
    tower = {name[len(TOWER) :]: tensor for name, tensor in states["netG"].items() if name.startswith(TOWER)}
    config = _configuration(path, states)
    model = _clip_with(path, tower, states["netG"], clip_model, config.model.noise_dim)
    bridge = ClipBridge(model, "reference").to(device)
    epoch = content.get("epoch")  # others' trainings note other things there, or nothing
    found = Published(config, bridge, make_generator(bridge, config), epoch=epoch if isinstance(epoch, int) else 0)
    found.optimizers = content.get("optimizers", {})
    ours = {to_ours("netG", n): t for n, t in states["netG"].items() if not n.startswith(TOWER)}
    fit(found.generator, ours, f"netG of {path}")
    if "netD" in states and "netC" in states and isinstance(config.model, GalipConfig):
        found.discriminator = FeatureDiscriminator(bridge, config.model)
        found.head = ConditionalHead(bridge, config.model)
        found.unused = {n: t for n, t in states["netD"].items() if UNUSED.match(n)}
        used = {to_ours("netD", n): t for n, t in states["netD"].items() if n not in found.unused}
        fit(found.discriminator, used, f"netD of {path}")
        fit(found.head, {to_ours("netC", n): t for n, t in states["netC"].items()}, f"netC of {path}")
    for module in filter(None, (found.generator, found.discriminator, found.head)):
        module.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    return found


def _configuration(path: str | Path, states: dict[str, dict[str, Tensor]]) -> Config:
    """The networks' geometry, read from the shapes."""
    netG = states["netG"]
    try:
        blocks = _count(netG, "GBlocks.")
        model: dict[str, Any] = {
            "channels": netG["to_rgb.1.weight"].shape[1],
            "noise_dim": netG["fc_code.weight"].shape[1],
            "code_channels": netG["mapping.conv_fuse.weight"].shape[1],
            "fusion_blocks": _count(netG, "mapping.FBlocks."),
        }
        if "netD" in states and "netC" in states:
            model["disc_channels"] = states["netD"]["main.conv_r.2.weight"].shape[0]
            model["head_channels"] = states["netC"]["joint_conv.0.weight"].shape[0]
    except (KeyError, ValueError, IndexError) as error:
        raise WeightsError(f"{path} lacks {error}, which every GALIP and RATLIP of the authors has") from None
    recurrent, attention = any(".affine0.rnn." in name for name in netG), any(".c1.conv." in name for name in netG)
    system = "ratlip" if recurrent or attention else "galip"
    if system == "ratlip":
        model |= {"conditioning": "recurrent-reference" if recurrent else "affine", "attention": attention}
    if blocks != len(REFERENCE_SIZES):
        raise WeightsError(f"netG of {path} has {blocks} GBlocks; the published generator has {len(REFERENCE_SIZES)}")
    return build_config(
        {"profile": "reference", "system": system, "clip": {"name": "ViT-B/32", "convention": "reference"},
         "model": model, "train": {"recipe": "paper"}}
    )  # fmt: skip


def _count(names: Iterable[str], prefix: str) -> int:
    """How many blocks there are, by their numbers behind a prefix; raises KeyError if none is."""
    numbers = [int(name[len(prefix) :].split(".")[0]) for name in names if name.startswith(prefix)]
    if not numbers:
        raise KeyError(prefix)
    return 1 + max(numbers)


def _clip_with(
    path: str | Path, tower: dict[str, Tensor], netG: dict[str, Tensor], clip_model: CLIP | None, noise_dim: int
) -> CLIP:
    """The CLIP around a file's frozen tower: the given one, with the file's tower where they differ."""
    try:
        width, patch = tower["conv1.weight"].shape[0], tower["conv1.weight"].shape[-1]
        grid = round((len(tower["positional_embedding"]) - 1) ** 0.5)
        layers = _count(tower, "transformer.resblocks.")
    except KeyError as error:
        raise WeightsError(f"netG of {path} lacks {TOWER}{error.args[0]}, a part of its frozen CLIP") from None
    embed_dim = netG["mapping.fc_prompt.weight"].shape[1] - noise_dim
    found = (width, layers, patch, grid, embed_dim)
    if clip_model is None:
        model = CLIP(embed_dim, patch * grid, layers, width, patch, 1, 1, 64, 1, 1).float()
        model.mapper_only = True
    else:
        given = ClipBridge(clip_model)
        theirs = (given.width, given.layers, given.patch_size, given.grid, given.embed_dim)
        if theirs != found:
            raise WeightsError(
                f"{path} was trained with another CLIP than the given one: (width, layers, patch, grid, embedding) "
                f"{found} in the file, {theirs} given; GALIP's own is ViT-B/32, (768, 12, 32, 7, 512)"
            )
        own = clip_model.visual.state_dict()
        unlike = [n for n, t in tower.items() if n not in own or not torch.equal(own[n].cpu().float(), t.float())]
        if not unlike:
            return clip_model
        if not all(n in own and torch.allclose(own[n].cpu().float(), tower[n].float(), 1e-2, 1e-3) for n in unlike):
            warnings.warn(f"the frozen CLIP in {path} is not the given one ({unlike[0]}, ...): the file's is used "
                          "inside the generator", stacklevel=4)  # fmt: skip
        model = copy.deepcopy(clip_model).float()
    rest = {n: t for n, t in model.visual.state_dict().items() if n.startswith("ln_post") or n == "proj"}
    fit(model.visual, {**rest, **tower}, f"the CLIP in {path}")
    return model


# ---------------------------------------------------------------- writing


def their_optimizers(networks: Published, optimizer_g: dict[str, Any], optimizer_d: dict[str, Any]) -> dict[str, Any]:
    """State dicts of our two Adams -> theirs, which number all parameters of netG, and of netD and netC, in order.

    Theirs also hold the frozen tower and the unused shortcuts, without a state, as Adam leaves what has no gradient.
    """
    tower = [TOWER + name for name in _tower(networks.bridge)]
    discriminator, head = networks.judges()
    unused = networks.unused or _made_up(discriminator)
    ours_g = [to_theirs("netG", name) for name, _ in networks.generator.named_parameters()]
    ours_d = [to_theirs("netD", name) for name, _ in discriminator.named_parameters()]
    ours_c = [to_theirs("netC", name) for name, _ in head.named_parameters()]
    return {
        "optimizer_G": _renumbered(optimizer_g, ours_g, _sorted("netG", [*ours_g, *tower])),
        "optimizer_D": _renumbered(
            optimizer_d, ours_d + ours_c, _sorted("netD", [*ours_d, *unused]) + _sorted("netC", ours_c)
        ),
    }


def _renumbered(state: dict[str, Any], ours: list[str], theirs: list[str]) -> dict[str, Any]:
    number = {name: index for index, name in enumerate(theirs)}
    (group,) = state["param_groups"]
    return {
        "state": {number[name]: state["state"][i] for i, name in enumerate(ours) if i in state["state"]},
        "param_groups": [{**group, "params": list(range(len(theirs)))}],
    }


def _sorted(network: str, names: list[str]) -> list[str]:
    return sorted(names, key=lambda name: their_order(network, name))


def _tower(bridge: ClipBridge) -> dict[str, Tensor]:
    """The part of the frozen CLIP that netG holds."""
    visual = bridge.model.visual.state_dict()
    return {name: t.float() for name, t in visual.items() if not name.startswith("ln_post") and name != "proj"}


def check_format(config: Config) -> None:
    """Raises WeightsError for networks whose function the authors' code can't compute."""
    system, model = config.system, config.model
    if system not in ("galip", "ratlip") or not isinstance(model, GalipConfig):
        raise WeightsError(f"the authors' format of the system {system} is not known here: only GALIP's and RATLIP's")
    if (model.smooth_shortcut, model.image_size, model.noise_gain) != (False, "reference", 1):
        raise WeightsError(
            f"model.smooth_shortcut = {model.smooth_shortcut}, model.image_size = {model.image_size!r}, "
            f"model.noise_gain = {model.noise_gain}: the authors' code knows only false, 'reference' and 1"
        )
    if isinstance(model, RatlipConfig) and (model.conditioning, model.attention) != ("recurrent-reference", True):
        raise WeightsError(
            f"model.conditioning = {model.conditioning!r} with model.attention = {model.attention} is neither GALIP "
            "('affine', false) nor published RATLIP ('recurrent-reference', true): the authors' code knows no other"
        )


def export_reference(networks: Published, path: str | Path) -> None:
    """Write networks as a checkpoint in the authors' format, so that GALIP's or RATLIP's code can load our training.

    Raises:
        WeightsError: for networks whose function their code can't compute, or that `import_reference` can't read back.
    """
    check_format(networks.config)
    bridge, model = networks.bridge, networks.config.model
    if (sizes := block_sizes(bridge.grid, "reference")) != REFERENCE_SIZES:
        raise WeightsError(
            f"the authors' code knows only maps of {REFERENCE_SIZES} pixels behind a CLIP of less than "
            f"8 x 8 patches; this one has {bridge.grid} x {bridge.grid}, and maps of {sizes}"
        )
    theirs = {"taps": tuple(default_taps(bridge.layers)), "prompt_layers": default_prompt_layers(bridge.layers)}
    for name, only in theirs.items():
        if (own := getattr(bridge, name)) != only:
            raise WeightsError(f"clip.{name} = {own} is not what the authors' code does with this CLIP, {only}")
    discriminator, head = networks.judges()
    tower = {TOWER + name: tensor for name, tensor in _tower(networks.bridge).items()}
    unused = networks.unused or _made_up(discriminator)
    state = {
        "model": {
            "netG": _theirs("netG", networks.generator, tower),
            "netD": _theirs("netD", discriminator, unused),
            "netC": _theirs("netC", head, {}),
        },
        "optimizers": networks.optimizers,
        "epoch": networks.epoch,
        "writer": "galiplib",
    }
    back = import_reference(path, None if bridge.mapper_only else bridge.model, content=state)
    for name in ("channels", "noise_dim", "code_channels", "fusion_blocks", "disc_channels", "head_channels"):
        if (found := getattr(back.config.model, name)) != (own := getattr(model, name)):
            raise WeightsError(f"{path} would say model.{name} = {found}, not {own}: the authors' format can't hold it")
    write_atomically(path, lambda stream: torch.save(state, stream))


def _theirs(network: str, module: nn.Module, others: dict[str, Tensor]) -> dict[str, Tensor]:
    tensors = {to_theirs(network, name): tensor for name, tensor in module.state_dict().items()} | others
    return {name: tensors[name].detach().cpu().contiguous() for name in _sorted(network, list(tensors))}


def _made_up(discriminator: nn.Module) -> dict[str, Tensor]:
    """Zeros for the shortcuts that their discriminator has and does not use."""
    ours = discriminator.state_dict()
    width = ours["reduce.residual.0.weight"].shape[1]
    return {
        f"DBlocks.{index}.conv_s.{name}": torch.zeros(shape)
        for index in range(_count(ours, "collect."))
        for name, shape in (("weight", (width, width, 1, 1)), ("bias", (width,)))
    }
