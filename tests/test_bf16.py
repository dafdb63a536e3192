import copy

import pytest
import torch
from torch import nn

from galiplib.build import make_generator
from galiplib.checkpoints.loading import load_generator
from galiplib.clip.bridge import ClipBridge
from galiplib.sampling.bf16 import to_bf16
from galiplib.sampling.sample import sample

CAPTION = "a small red bird with black wings"


def pictures(generator, count=1):
    return sample(generator, generator.bridge, CAPTION, count).images


def test_bf16_pictures_are_40_db_from_those_in_fp32():
    generator = load_generator()
    exact = pictures(generator, 8)
    fast = to_bf16(generator)
    assert any(isinstance(block.conv1, nn.ConvTranspose2d) for block in fast.blocks)
    assert fast.blocks[0].conv2.weight.dtype == fast.bridge.model.visual.proj.dtype == torch.bfloat16
    assert fast.bridge.model.ln_final.weight.dtype == torch.float32
    error = pictures(fast, 8) - exact
    assert 10 * torch.log10(4 / error.square().mean()) > 40
    assert error.any()


def test_phase_kernels_change_nothing_but_rounding(monkeypatch):
    """With weights left in fp32, what is left of the conversion is exact."""
    generator = load_generator()
    exact = pictures(generator, 2)
    monkeypatch.setattr(torch, "bfloat16", torch.float32)
    fast = to_bf16(generator)
    assert any(isinstance(block.conv1, nn.ConvTranspose2d) for block in fast.blocks)
    torch.testing.assert_close(pictures(fast, 2), exact, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("conditioning", ["recurrent", "recurrent-reference"])
def test_ratlips_generators_too(conditioning, small_clip, tiny_config):
    bridge = ClipBridge(copy.deepcopy(small_clip))
    torch.manual_seed(0)
    config = tiny_config(system="ratlip", model__conditioning=conditioning)
    generator = make_generator(bridge, config).eval()
    exact = pictures(generator)
    error = pictures(to_bf16(generator)) - exact
    assert error.any() and error.square().mean() < 1e-4 * exact.square().mean()
