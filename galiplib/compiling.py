"""`train.compile`: generator and CLIP through torch.compile. Not the discriminator, which is differentiated twice."""

from __future__ import annotations

import copy

import torch

from .clip.bridge import ClipBridge
from .systems.galip import Generator


def compile_for_training(generator: Generator, bridge: ClipBridge, backend: str = "inductor") -> ClipBridge:
    """Compile the generator in place -> a bridge with the same CLIP whose image encoder is compiled.

    For one batch shape. The first steps take minutes on a CPU. What can't be compiled (no C++ compiler at hand, say)
    runs as it is, with a warning by torch.
    """
    torch._dynamo.config.suppress_errors = True
    generator.compile(dynamic=False, backend=backend)
    compiled = copy.copy(bridge)  # evaluations go on with the one given: their batches have other shapes
    for name in ("encode_image", "tap_image"):
        setattr(compiled, name, torch.compile(getattr(bridge, name), dynamic=False, backend=backend))
    return compiled
