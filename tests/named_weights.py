"""What tests of systems share: weights rebuilt from their authors' names (DAMSM, AttnGAN), closeness, a resumed run."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch

from galiplib import Run

HERE = Path(__file__).parent / "reference"


def gain(prefix, name):
    if prefix == "damsm.text":
        return 300**0.5 if name == "encoder.weight" else 3.0
    if prefix == "damsm.image":
        return 2**0.5 if name.endswith("conv.weight") else 1.0
    if prefix == "attngan.netG":
        if name.startswith("img_net"):
            return 0.5
        if name.startswith(("h_net1", "ca_net")):
            return 2.0
        return 1.3 if ".upsample.1" in name or ".block.0" in name else 1.0
    return 1.0 if "outlogits" in name else 1.4


def named_weight(prefix, name, shape):
    """Normal numbers seeded by the name, scaled to keep the size of what they multiply; scales around 1."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    value = np.random.RandomState(zlib.crc32(f"{prefix}.{name}".encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        value = abs(value) * 0.1 + 1
    elif len(shape) < 2:
        value = name.endswith("weight") + 0.02 * value
    else:
        value = value * int(np.prod(shape[1:])) ** -0.5 * gain(prefix, name)
    return torch.from_numpy(value.astype(np.float32))


def named_state(prefix, network):
    """The state dict of a network as its authors' programs save it."""
    shapes = json.loads((HERE / f"{prefix.split('.')[0]}_state_dict.json").read_text())[network]
    return {name: named_weight(prefix, name, tuple(shape)) for name, shape in shapes.items()}


def arrays(name):
    return {key: torch.from_numpy(value) for key, value in np.load(HERE / f"{name}_outputs.npz").items()}


def numbers(name):
    return json.loads((HERE / f"{name}.json").read_text())


def enlarged(pictures, side):
    """Pictures (B, 3, 32, 32) -> (B, 3, side, side)."""
    return pictures.repeat_interleave(side // 32, 2).repeat_interleave(side // 32, 3)


def close(value, wanted, tolerance=1e-4):
    value, wanted = (torch.as_tensor(x).detach().double() for x in (value, wanted))
    assert value.shape == wanted.shape
    assert (value - wanted).abs().max() <= tolerance * wanted.abs().max()


def resumed_equals_whole(config, folder):
    """A run left half-way and opened again ends as one that never was; -> that one."""
    half = config.train.max_steps // 2
    whole = Run(folder / "whole", config, progress=False)
    list(whole.train())
    for report in Run(folder / "parts", config, progress=False).train():
        if report.step == half:
            break
    resumed = Run(folder / "parts", config, progress=False)
    assert resumed.step == half
    list(resumed.train())
    for name, tensor in whole.system.state_dict().items():
        assert torch.equal(tensor, resumed.system.state_dict()[name]), name
    assert all(math.isfinite(value) for line in whole.history() for value in line.values())
    return whole
