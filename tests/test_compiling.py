"""A training with compiled parts is the same training."""

from functools import partialmethod

import pytest
import torch
from torch._dynamo.utils import counters

from galiplib.build import make_system
from galiplib.clip.bridge import ClipBridge
from galiplib.clip.training import new_clip
from galiplib.runs.run import Run
from galiplib.systems.galip import GALIP


def losses(config, folder):
    return [(report.loss_d, report.loss_g) for report in Run(folder, config, "cpu", progress=False).train()]


def test_a_compiled_run_has_the_same_losses(tiny_config, tmp_path, monkeypatch):
    """Traced, cut into graphs and differentiated as for inductor, which would take minutes to write their kernels."""
    settings = {"train__max_steps": 3, "train__precision": "fp32", "train__sample_every": 3}
    plain = losses(tiny_config(**settings), tmp_path / "plain")
    counters.clear()
    monkeypatch.setattr(GALIP, "compile_networks", partialmethod(GALIP.compile_networks, "aot_eager"))
    fast = losses(tiny_config(**settings, train__compile=True), tmp_path / "fast")
    assert counters["stats"]["unique_graphs"] >= 3
    torch.testing.assert_close(torch.tensor(fast[:1]), torch.tensor(plain[:1]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.tensor(fast), torch.tensor(plain), rtol=0.05, atol=0.02)  # Adam blows rounding up


@pytest.mark.slow
def test_inductor_compiles_and_computes_the_same(tiny_config):
    """The smallest of the graphs, of the smallest CLIP: each kernel takes a second."""
    geometry = {
        "embed_dim": 8, "image_resolution": 16, "vision_layers": 1, "vision_width": 64, "vision_patch_size": 4,
        "context_length": 8, "transformer_width": 16, "transformer_heads": 1, "transformer_layers": 1,
    }  # fmt: skip
    bridge = ClipBridge(new_clip(geometry, [0, 1]).eval().requires_grad_(False))
    system = make_system(bridge, tiny_config(data__image_size=8, model__image_size=8))
    counters.clear()
    system.compile_networks()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(system.bridge.tap_image(images), bridge.tap_image(images), rtol=1e-4, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == 1 and counters["inductor"]["extern_calls"] > 0  # it came that far


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
