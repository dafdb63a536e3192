import pytest
import torch
from torch import nn

from galiplib.fast import for_sampling
from galiplib.generator import Generator
from galiplib.loading import load_generator
from galiplib.sampling import sample

CAPTION = "a small red bird with black wings"


@pytest.fixture(scope="module")
def shipped():
    return load_generator()


def test_the_fp32_copy_draws_the_same_pictures(shipped):
    fast = for_sampling(shipped, "fp32")
    assert any(isinstance(block.conv1, nn.ConvTranspose2d) for block in fast.blocks)
    ours = sample(shipped, shipped.bridge, CAPTION, count=2).images
    torch.testing.assert_close(sample(fast, fast.bridge, CAPTION, count=2).images, ours, rtol=1e-3, atol=1e-4)


def test_bf16_pictures_are_40_db_from_those_in_fp32(shipped):
    fast = for_sampling(shipped, "bf16")
    exact = sample(shipped, shipped.bridge, CAPTION, count=8).images
    error = sample(fast, fast.bridge, CAPTION, count=8).images - exact
    assert 10 * torch.log10(4 / error.square().mean()) > 40
    assert error.any()


def test_the_original_stays_as_it_is(shipped):
    before = {name: tensor.clone() for name, tensor in shipped.bridge.model.state_dict().items()}
    fast = for_sampling(shipped, "bf16")
    assert {p.dtype for p in shipped.parameters()} == {torch.float32}
    assert isinstance(shipped.blocks[1].conv1, nn.Conv2d)
    assert all(torch.equal(before[name], tensor) for name, tensor in shipped.bridge.model.state_dict().items())
    assert fast.blocks[0].conv2.weight.dtype == torch.bfloat16
    assert fast.bridge.model is not shipped.bridge.model


@pytest.mark.parametrize("conditioning", ["recurrent", "recurrent-reference"])
def test_ratlips_generators_too(conditioning, small_bridge, tiny_config):
    config = tiny_config(model__conditioning=conditioning, model__attention=True).model
    torch.manual_seed(0)
    generator = Generator(small_bridge, config).eval()
    exact = sample(generator, small_bridge, CAPTION, count=1).images
    fast = for_sampling(generator, "fp32")
    torch.testing.assert_close(sample(fast, fast.bridge, CAPTION, count=1).images, exact, rtol=1e-3, atol=1e-4)
    fast = for_sampling(generator, "bf16")
    error = sample(fast, fast.bridge, CAPTION, count=1).images - exact
    assert error.any() and error.square().mean() < 1e-4 * exact.square().mean()
