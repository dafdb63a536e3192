"""A generator as it samples fastest: the same function, weights stored as the hardware multiplies them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from .blocks import AttentiveConv, kernel_of_doubled
from .generator import Generator
from .precision import resolve_precision

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)


def for_sampling(generator: Generator, precision: str = "auto") -> Generator:
    """A frozen copy for drawing pictures, with a CLIP of its own: `sample(fast, fast.bridge, ...)` uses both.

    Weights are stored in the precision they are computed in (norms compute in fp32, theirs stay so), convolutions of
    doubled maps with their phase kernels. The CLIP's copy encodes captions, too.

    Args:
        precision: "auto", "bf16" or "fp32", as `train.precision`.
    """
    weight = next(generator.parameters())
    bf16 = resolve_precision(precision, weight.device) == "bf16"
    modules = [*generator.modules(), *generator.bridge.modules()]
    kept = {id(parameter) for module in modules if isinstance(module, NORMS) for parameter in module.parameters()}

    def stored(parameter: Tensor) -> nn.Parameter:
        dtype = torch.bfloat16 if bf16 and id(parameter) not in kept else parameter.dtype
        return nn.Parameter(parameter.detach().to(dtype, copy=True), requires_grad=False)

    # deepcopy takes what it finds in the memo for copied already: no second copy in fp32 exists at any time.
    parameters = [*generator.parameters(), *generator.bridge.parameters()]
    fast = copy.deepcopy(generator, {id(parameter): stored(parameter) for parameter in parameters}).eval()
    side = fast.bridge.grid
    for block in fast.blocks:
        if 2 * side == block.size:
            if isinstance(block.conv1, AttentiveConv):
                block.conv1.conv = _phases(block.conv1.conv)
            else:
                block.conv1 = _phases(block.conv1)
        side = block.size
    return fast


def _phases(conv: nn.Conv2d) -> nn.ConvTranspose2d:
    """The convolution of a doubled map, its kernel spread once and for all."""
    with torch.device("meta"):
        phases = nn.ConvTranspose2d(conv.in_channels, conv.out_channels, 4, stride=2, padding=1)
    kernel = kernel_of_doubled(conv.weight.float()).to(conv.weight.dtype)
    phases.weight = nn.Parameter(kernel.contiguous(memory_format=torch.channels_last), requires_grad=False)
    phases.bias = conv.bias
    return phases
