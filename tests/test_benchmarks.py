"""The benchmarks' yardstick computes what galiplib computes: the same step, the same pictures."""

import copy
import importlib
import json
import os
import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from clip.model import LayerNorm
from launch import launch
from torch import Tensor, nn

from benchmarks.reference import Reference
from galiplib.build import make_system
from galiplib.checkpoints.published import to_theirs
from galiplib.clip.bridge import ClipBridge
from galiplib.config import load_config
from galiplib.system import Batch, Text
from galiplib.training import Optimizers, train_step

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CAPTIONS = ["a red bird with black wings", "a small blue bird", "a white belly in the snow", "this is a red bird"]


@pytest.fixture
def doubled(monkeypatch):
    """Everything computes in float64, where nothing but a real difference is larger than 1e-9."""
    monkeypatch.setattr(LayerNorm, "forward", nn.LayerNorm.forward)
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=[56, 60, "reference"])  # doublings of the grid; a last block that is none; the published sizes
def pair(request, small_clip, doubled):
    """Our paper recipe and the reference, on the same weights, none of them at its neutral start."""
    small = {"channels": 4, "code_channels": 8, "disc_channels": 16, "head_channels": 8, "fusion_blocks": 1}
    settings = {f"model.{name}": value for name, value in small.items()}
    settings |= {"model.image_size": request.param, "model.smooth_shortcut": False, "train.recipe": "paper"}
    # Where a discriminator's gradient cancels to rounding noise, Adam makes a whole step of it: a small one.
    config = load_config("mini", {**settings, "train.precision": "fp32", "train.lr_d": 1e-9})
    bridge = ClipBridge(copy.deepcopy(small_clip), "reference").double()
    networks = make_system(bridge, config)
    torch.manual_seed(1)
    for parameter in networks.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    networks.ema.load_state_dict(networks.generator.state_dict())
    theirs = Reference(bridge, config)
    for name, ours in (("netG", networks.generator), ("netD", networks.discriminator), ("netC", networks.head)):
        theirs.copy(name, ours)
    return config, bridge, networks, theirs


def recorded(optimizer: torch.optim.Optimizer) -> dict[int, Tensor]:
    """The gradients that the optimizer's next step finds, by the identity of their parameter."""
    found = {}

    def record(*_):
        for group in optimizer.param_groups:
            found.update({id(p): p.grad.clone() for p in group["params"] if p.grad is not None})

    optimizer.register_step_pre_hook(record)
    return found


def test_the_reference_step_is_the_paper_recipes(pair):
    config, bridge, networks, theirs = pair
    size = networks.generator.image_size
    images, noise = torch.rand(4, 3, size, size) * 2 - 1, torch.randn(4, config.model.noise_dim)
    tokens = bridge.tokenize(CAPTIONS)
    with torch.no_grad():
        sentence = bridge.encode_text(tokens)
        before = networks.generator(noise, sentence)
    optimizers = Optimizers(networks, config.train)
    gradients = {"ours": recorded(optimizers.adam["discriminator"]), "theirs": recorded(theirs.optimizer_d)}
    gradients["ours G"], gradients["theirs G"] = recorded(optimizers.adam["generator"]), recorded(theirs.optimizer_g)

    losses = theirs.step(images, tokens, noise)
    report = train_step(networks, optimizers, Batch(images, Text(sentence), {"z": noise}), config.train, 1)
    for name, value in losses.items():
        assert getattr(report, name) == pytest.approx(value, rel=1e-9, abs=1e-12), name
    assert losses["penalty"] > 1e-3

    for network, module, which in (
        ("netD", networks.discriminator, ""), ("netC", networks.head, ""), ("netG", networks.generator, " G"),
    ):  # fmt: skip
        for name, parameter in module.named_parameters():
            other = getattr(theirs, network).get_parameter(to_theirs(network, name))
            ours, wanted = gradients["ours" + which][id(parameter)], gradients["theirs" + which][id(other)]
            assert (ours - wanted).abs().max() <= 1e-7 * wanted.abs().max() + 1e-12, name
    with torch.no_grad():
        after, wanted = networks.generator(noise, sentence), theirs.netG(noise, sentence)
    assert (after - wanted).abs().max() <= 1e-6 * (after - before).abs().max()


def test_the_reference_draws_the_same_pictures(pair):
    config, bridge, networks, theirs = pair
    noise, tokens = torch.randn(4, config.model.noise_dim), bridge.tokenize(CAPTIONS)
    with torch.no_grad():
        ours = networks.generator(noise, bridge.encode_text(tokens)).clamp(-1, 1)
    pictures = theirs.sample(tokens, noise)
    assert pictures.std() > 0.01
    torch.testing.assert_close(ours, pictures, rtol=1e-9, atol=1e-9)


def run(rank, folder, *command):
    """A benchmark's lines as its own process would, what it prints in a file."""
    os.chdir(BENCHMARKS)
    sys.path.insert(0, str(BENCHMARKS))
    with open(folder / "printed", "w") as stream, redirect_stdout(stream):
        if command:
            sys.argv = list(command)
            runpy.run_path(command[0], run_name="__main__")
        else:
            for path in sorted(BENCHMARKS.glob("*.py")):
                importlib.import_module(path.stem)


@pytest.mark.slow
def test_every_benchmark_can_be_imported(tmp_path):
    """They run for minutes, so that a name that moved is found here."""
    launch(run, 1, tmp_path)


@pytest.mark.slow
def test_a_benchmark_measures_what_it_says(tmp_path):
    """The smallest one, to its end: a training step of mini at batch 2."""
    launch(run, 1, tmp_path, "train_step.py", "--sizes", "mini", "--batch", "2", "--only", "ours fp32")
    assert 0.2 < float((tmp_path / "printed").read_text().split()[-1]) < 8  # GB


@pytest.mark.slow
def test_quality_against_seconds(tmp_path):
    """Two steps of tiny networks, with and without a projected discriminator: a row a point, and a figure."""
    tiny = ["channels=4", "code_channels=8", "disc_channels=16", "head_channels=8", "fusion_blocks=1"]
    both = [f"model.{one}" for one in tiny] + ["data.train_size=24", "data.test_size=20", "train.batch_size=4"]
    few = ("--seeds", "0", "--steps", "2", "--points", "2", "--pictures", "8", "--out", str(tmp_path))
    launch(run, 1, tmp_path, "quality.py", *few, "--candidate", "model.projected=lite0", "--both", *both)
    rows = json.loads((tmp_path / "quality.json").read_text())["rows"]
    plain, other = "mini:galip", "mini:galip + model.projected=lite0"
    assert [(row["configuration"], row["step"]) for row in rows] == [(plain, 1), (other, 1), (plain, 2), (other, 2)]
    assert all(row["floors"] > 1 for row in rows) and 0 < rows[0]["seconds"] < rows[2]["seconds"]
    assert rows[0]["caption_accuracy"].keys() == {"body", "wing", "belly", "background"}
    assert (tmp_path / "quality.png").stat().st_size > 5000
