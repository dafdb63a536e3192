import json
import math

import numpy as np
import pytest
import torch

from galiplib.augmentation import shift
from galiplib.build import make_bridge, make_system
from galiplib.checkpoints.loading import load_generator
from galiplib.config import ConfigError
from galiplib.data import minibirds
from galiplib.data.batches import TrainingData
from galiplib.files import WeightsError
from galiplib.precision import resolve_precision
from galiplib.runs.run import Run
from galiplib.training import Optimizers, train


@pytest.fixture(scope="module")
def birds():
    return minibirds.build("train", 24)


def loop(config, birds, start=0, networks=None):
    bridge = make_bridge(config)
    networks = networks or make_system(bridge, config)
    data = TrainingData(bridge, birds)
    return networks, list(train(networks, Optimizers(networks, config.train), data, config.train, start))


def test_a_short_training_learns_and_moves_every_part(tiny_config, birds):
    config = tiny_config(train__max_steps=12, train__lr_g=1e-3, train__clip_weight=4, train__penalty_every=2)
    before = make_system(make_bridge(config), config)
    networks, reports = loop(config, birds)
    assert [r.step for r in reports] == list(range(1, 13))
    assert all(math.isfinite(value) for r in reports for value in r.record().values())
    assert sum(r.similarity for r in reports[-3:]) > sum(r.similarity for r in reports[:3])
    assert [r.penalty > 0 for r in reports] == [r.step % 2 == 0 for r in reports]
    for part in ("generator", "discriminator", "head", "ema"):
        pairs = zip(getattr(before, part).parameters(), getattr(networks, part).parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs), part
    assert reports[-1].lr_g < reports[0].lr_g


def test_clip_stays_frozen(tiny_config, birds):
    config = tiny_config(train__max_steps=2)
    bridge = make_bridge(config)
    weights = {name: tensor.clone() for name, tensor in bridge.model.state_dict().items()}
    networks = make_system(bridge, config)
    data = TrainingData(bridge, birds)
    list(train(networks, Optimizers(networks, config.train), data, config.train))
    for name, tensor in bridge.model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    assert all(parameter.grad is None for parameter in bridge.model.parameters())


def test_paper_recipe_keeps_rates_and_no_average(tiny_config, birds):
    config = tiny_config(train__max_steps=3, train__recipe="paper")
    networks, reports = loop(config, birds)
    assert {r.lr_g for r in reports} == {config.train.lr_g}
    for raw, average in zip(networks.generator.parameters(), networks.ema.parameters(), strict=True):
        assert torch.equal(raw, average)


def test_batches_follow_from_seed_and_step(tiny_config, birds):
    data = TrainingData(make_bridge(tiny_config()), birds)
    images, sentences = data.batch(5, 4, seed=3)
    again, _ = data.batch(5, 4, seed=3)
    assert torch.equal(images, again) and images.shape == (4, 3, 56, 56) and sentences.shape == (4, 128)
    epoch = torch.cat([data.batch(step, 4, seed=3)[0] for step in range(1, 7)])
    assert len({image.numpy().tobytes() for image in epoch}) == len({i.tobytes() for i in birds.images})
    many = data.batch(1, 25, seed=0)[0]  # more than there are: some of them twice
    assert len(many) == 25 and len({image.numpy().tobytes() for image in many}) <= 24


def test_shift_moves_each_picture_by_its_offset():
    images = torch.randn(2, 3, 8, 8)
    moved = shift(images, torch.tensor([[0, 0], [2, -1]]))
    assert torch.equal(moved[0], images[0])
    assert torch.equal(moved[1, :, :6, 1:], images[1, :, 2:, :7])
    assert torch.equal(moved[1, :, 7, 1:], images[1, :, 7, :7])  # edge repeated


def test_precision_auto_is_fp32_or_bf16():
    assert resolve_precision("auto", torch.device("cpu")) in ("fp32", "bf16")
    assert resolve_precision("fp32", torch.device("cpu")) == "fp32"


def test_resumed_run_equals_the_uninterrupted_one(tiny_config, tmp_path):
    config = tiny_config(train__max_steps=6, train__sample_every=3)
    whole = Run(tmp_path / "whole", config, progress=False)
    list(whole.train())

    stopped = Run(tmp_path / "parts", config, progress=False)
    for report in stopped.train():
        if report.step == 3:
            break
    resumed = Run(tmp_path / "parts", config, progress=False)
    assert resumed.step == 3 and not resumed.finished
    list(resumed.train())
    for (name, a), b in zip(whole.system.state_dict().items(), resumed.system.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    strip = [{k: v for k, v in line.items() if k != "seconds"} for line in whole.history()]
    assert strip == [{k: v for k, v in line.items() if k != "seconds"} for line in resumed.history()]
    assert sorted(p.name for p in (tmp_path / "parts" / "samples").iterdir()) == ["step_000003.png", "step_000006.png"]

    # The exported EMA generator, the run folder and the live EMA make the same picture, up to fp16 storage.
    noise, sentence = torch.randn(2, 100), torch.randn(2, 128)
    with torch.no_grad():
        live = whole.system.ema(noise, sentence)
        torch.testing.assert_close(load_generator(tmp_path / "whole")(noise, sentence), live)
        exported = load_generator(tmp_path / "whole" / "generator.safetensors")(noise, sentence)
    torch.testing.assert_close(exported, live, atol=2e-2, rtol=2e-2)


def test_run_refuses_another_configuration_unless_allowed(tiny_config, tmp_path):
    run = Run(tmp_path, tiny_config(train__max_steps=1), progress=False)
    list(run.train())
    with pytest.raises(ConfigError, match="train.max_steps .1 -> 2."):
        Run(tmp_path, tiny_config(train__max_steps=2), progress=False)
    assert json.loads((tmp_path / "config.json").read_text())["train"]["max_steps"] == 1
    list(Run(tmp_path, tiny_config(train__max_steps=2), progress=False, allow_changes=True).train())
    assert json.loads((tmp_path / "config.json").read_text())["train"]["max_steps"] == 2


def test_a_run_from_before_a_key_came_does_not_change_unasked(tiny_config, tmp_path):
    list(Run(tmp_path, tiny_config(train__max_steps=1), progress=False).train())
    path = tmp_path / "config.json"
    recorded = json.loads(path.read_text())
    del recorded["train"]["range_weight"]
    path.write_text(json.dumps(recorded))
    with pytest.raises(ConfigError, match=r"another configuration: train.range_weight \(0.0 -> 1.0\)"):
        Run(tmp_path, tiny_config(train__max_steps=1), progress=False)
    Run(tmp_path, tiny_config(train__max_steps=1, train__range_weight=0.0), progress=False)


def test_evaluations_on_the_way(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr("galiplib.runs.run.EVALUATED", 40)
    run = Run(tmp_path, tiny_config(train__max_steps=2, train__evaluate_every=1), progress=False)
    list(run.train())
    assert [line["step"] for line in run.evaluations()] == [1, 2]
    assert np.isfinite(run.evaluations()[-1]["frechet_distance"])


def test_folder_that_cannot_be_written(tiny_config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="can't write .*file/run"):
        Run(tmp_path / "file" / "run", tiny_config(), progress=False)


def test_load_generator_errors(tmp_path):
    with pytest.raises(WeightsError, match="no weights file"):
        load_generator(tmp_path / "absent.safetensors")
    with pytest.raises(WeightsError, match="notebook 05"):
        load_generator(tmp_path)
