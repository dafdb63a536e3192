"""What the authors of GALIP and RATLIP call their parameters, what we call them, and the order of theirs."""

from __future__ import annotations

import re

TOWER = "mapping.CLIP_ViT."
UNUSED = re.compile(r"DBlocks\.\d+\.conv_s\.")
# Their names of what never learns: CLIP is frozen, and no computation uses those shortcuts. All else gets a gradient.
NEVER_LEARN = (re.compile(re.escape(TOWER)), UNUSED)

AFFINE = (
    (".fc_gamma.0.", ".affine.gamma.0."), (".fc_gamma.2.", ".affine.gamma.2."),  # RATLIP's, behind an LSTM (rnn)
    (".fc_beta.0.", ".affine.beta.0."), (".fc_beta.2.", ".affine.beta.2."),
    (".fc_gamma.linear1.", ".gamma.0."), (".fc_gamma.linear2.", ".gamma.2."),
    (".fc_beta.linear1.", ".beta.0."), (".fc_beta.linear2.", ".beta.2."),
)  # fmt: skip
ATTENTION = (
    (".se.gn.", ".attention.norm."), (".se.cweight", ".attention.channel_weight"),
    (".se.cbias", ".attention.channel_bias"), (".se.sweight", ".attention.place_weight"),
    (".se.sbias", ".attention.place_bias"), (".bn.", ".norm."),
)  # fmt: skip
COLLECT = ((".conv_r.", ".residual."), (".conv_s.", ".shortcut."))
# network -> (their prefix, our prefix, what differs behind it), in the order of their modules
NAMES: dict[str, tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...]] = {
    "netG": (
        ("fc_code.", "code.", ()),
        ("mapping.FBlocks.", "fusion.", (*AFFINE, *ATTENTION)),
        ("mapping.conv_fuse.", "to_clip.", ()),
        (TOWER, TOWER, ()),
        ("mapping.conv.", "from_clip.", ()),
        ("mapping.fc_prompt.", "prompts.", ()),
        (
            "GBlocks.",
            "blocks.",
            (
                *AFFINE,
                *ATTENTION,
                (".c1.", ".conv1."),
                (".c2.", ".conv2."),
                (".c_sc.", ".shortcut."),
            ),
        ),
        ("to_rgb.1.", "to_rgb.", ()),
    ),
    "netD": (("DBlocks.", "collect.", COLLECT), ("main.", "reduce.", COLLECT)),
    "netC": (("joint_conv.0.", "joint.", ()), ("joint_conv.2.", "logit.", ())),
}
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
