"""A training with compiled parts is the same training."""

import pytest
import torch
from torch._dynamo.utils import counters

from galiplib.build import make_system
from galiplib.clip.bridge import ClipBridge
from galiplib.runs.run import Run


def losses(config, folder):
    return [(report.loss_d, report.loss_g) for report in Run(folder, config, "cpu", progress=False).train()]


@pytest.mark.slow
def test_a_compiled_run_has_the_same_losses(tiny_config, tmp_path):
    settings = {"train__max_steps": 3, "train__precision": "fp32", "train__sample_every": 3}
    plain = losses(tiny_config(**settings), tmp_path / "plain")
    counters.clear()
    fast = losses(tiny_config(**settings, train__compile=True), tmp_path / "fast")
    assert counters["stats"]["unique_graphs"] >= 3
    torch.testing.assert_close(torch.tensor(fast[:1]), torch.tensor(plain[:1]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.tensor(fast), torch.tensor(plain), rtol=0.05, atol=0.02)  # Adam blows rounding up


def test_what_cannot_be_compiled_runs_as_it_is(small_clip, tiny_config):
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    bridge = ClipBridge(small_clip)
    images = torch.rand(2, 3, 56, 56) * 2 - 1
    system = make_system(bridge, tiny_config())
    noise, sentence = torch.randn(2, 100), torch.randn(2, bridge.embed_dim)
    painted = system.generator(noise, sentence)
    system.compile_networks(backend=broken)
    compiled = system.bridge
    expected = bridge.encode_image(images)
    for found, wanted in zip(compiled.encode_image(images), expected, strict=True):
        assert torch.equal(found, wanted)
    assert torch.equal(compiled.tap_image(images), bridge.tap_image(images))
    assert compiled.model is bridge.model and torch.equal(system.generator(noise, sentence), painted)
