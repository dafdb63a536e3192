"""The generators of AttnGAN's authors: `netG_epoch_<N>.pth`, `bird_AttnGAN2.pth`, `bird_AttnDCGAN2.pth`, ...

Bare state dicts, of the averaged weights. Text and image encoder lie in other files (`clip.damsm_files`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from ..clip.damsm_files import ELSEWHERE
from ..files import WeightsError, state_dict
from ..systems.attngan import CONDITION

KNOWN_BY = "h_net1.fc.0.weight"  # what AttnGAN's generators have, and no other system's
NAMES = (  # patterns of their names -> ours
    (r"^ca_net\.fc\.", "condition.0."),
    (r"^h_net1\.fc\.", "start."),
    (r"^h_net1\.upsample(\d)", lambda found: f"grow.{int(found[1]) - 1}"),
    (r"^h_net(\d)", lambda found: f"refine.{int(found[1]) - 2}"),
    (r"\.att\.conv_context\.", ".attention.source."),
    (r"\.upsample\.", ".up."),
    (r"^img_net(\d?)\.img\.0\.", lambda found: f"to_rgb.{int(found[1] or 1) - 1}."),
)


def to_ours(name: str) -> str:
    """Their name of a tensor -> ours."""
    for theirs, ours in NAMES:
        name = re.sub(theirs, ours, name)
    return name


def of_attngan(content: Any, path: str | Path) -> dict[str, Any] | None:
    """The content of a file of theirs as that of a checkpoint of ours, its geometry read from the shapes; else None.

    Raises WeightsError for a generator of theirs that lacks something.
    """
    try:
        tensors = state_dict(content, "")
    except WeightsError:
        return None
    if KNOWN_BY not in tensors:
        return None
    try:
        model = _geometry(tensors)
    except KeyError as error:
        raise WeightsError(f"{path} lacks {error.args[0]}, which every generator of AttnGAN has") from None
    config = {"profile": "reference", "system": "attngan", "clip": {"damsm": ELSEWHERE}, "model": model,
              "train": {"recipe": "paper"}}  # fmt: skip
    return {"config": config, "networks": {f"ema.{to_ours(name)}": tensor for name, tensor in tensors.items()}}


def _geometry(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "channels": len(tensors["h_net2.upsample.1.weight"]) // 2,
        "noise_dim": tensors[KNOWN_BY].shape[1] - CONDITION,
        "residual_blocks": sum(bool(re.match(r"h_net2\.residual\.\d+\.block\.0\.weight", name)) for name in tensors),
        "image_size": 16 * 2 ** sum(bool(re.match(r"h_net1\.upsample\d\.1\.weight", name)) for name in tensors),
        "one_picture": "img_net.img.0.weight" in tensors,
        "reference": True,
    }
