"""A generator as it samples fastest: nearly the same function, weights stored as the hardware multiplies them."""

from __future__ import annotations

import torch
from torch import nn

from ..blocks import FinishedConv, GeneratorBlock, kernel_of_doubled
from ..system import TextToImage

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d)


def to_bf16(generator: TextToImage) -> TextToImage:
    """Turn a generator and its CLIP into what draws pictures in bf16, in place: for sampling only -> the same one.

    All weights are stored in bf16, except those of norms, which compute in fp32; convolutions of doubled maps with
    their phase kernels. Weight by weight, so that no second copy exists at any time. The CLIP encodes captions in
    bf16, too. Its pictures are 40 dB and more from those in fp32 (`benchmarks/sampling.py`).
    """
    for module in (*generator.modules(), *generator.bridge.modules()):
        if not isinstance(module, NORMS):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
                parameter.data = parameter.data.to(torch.bfloat16)
    side = 0  # of what the first block gets: not known here, so that its kernel stays as it is
    for block in generator.modules():
        if isinstance(block, GeneratorBlock):
            if 2 * side == block.size:
                holder, name = (block.conv1, "conv") if isinstance(block.conv1, FinishedConv) else (block, "conv1")
                setattr(holder, name, _phases(getattr(holder, name)))
            side = block.size
    return generator.eval()


def _phases(conv: nn.Conv2d) -> nn.ConvTranspose2d:
    """The convolution of a doubled map, its kernel spread once and for all."""
    with torch.device("meta"):
        phases = nn.ConvTranspose2d(conv.in_channels, conv.out_channels, 4, stride=2, padding=1)
    kernel = kernel_of_doubled(conv.weight.float()).to(conv.weight.dtype)
    phases.weight = nn.Parameter(kernel.contiguous(memory_format=torch.channels_last), requires_grad=False)
    phases.bias = conv.bias
    return phases
