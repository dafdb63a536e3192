"""A training that goes on from another one's generator: what it takes over, what it refuses before any work."""

import pytest
import torch

from galiplib import load_generator
from galiplib.config import ConfigError, load_config
from galiplib.data import DataError, minibirds
from galiplib.data.datasets import describe, open_dataset
from galiplib.files import WeightsError
from galiplib.runs.choice import check_start
from galiplib.runs.run import Run


@pytest.fixture(scope="module")
def first(tmp_path_factory, tiny_config):
    """The folder of a short training."""
    run = Run(tmp_path_factory.mktemp("first"), tiny_config(train__max_steps=2), "cpu", progress=False)
    list(run.train())
    return run.folder


def same(one, other):
    return all(torch.equal(a, other[name]) for name, a in one.items())


def test_a_generator_is_taken_over_and_first_meets_a_warmed_up_discriminator(first, tmp_path, tiny_config):
    start = first / "generator.safetensors"
    config = tiny_config(train__start=str(start), train__warm_up=2, train__max_steps=3, train__checkpoint_every=1)
    run = Run(tmp_path, config, "cpu", progress=False)
    given = load_generator(start).state_dict()
    assert same(given, run.system.generator.state_dict()) and same(given, run.system.ema.state_dict())
    judged = {name: weight.clone() for name, weight in run.system.discriminator.state_dict().items()}
    for report in run.train():
        if report.step == 2:
            break
        assert report.lr_g == 0
    assert same(given, run.system.ema.state_dict()) and not same(judged, run.system.discriminator.state_dict())
    run = Run(tmp_path, config, "cpu", progress=False)  # goes on from its own checkpoint, not from the start
    assert run.step == 2 and same(given, run.system.generator.state_dict())
    (report,) = run.train()
    assert report.lr_g > 0 and not same(given, run.system.generator.state_dict())


def test_another_generator_is_refused_by_the_keys_that_differ(first, tmp_path, tiny_config):
    start = str(first)
    check_start(tiny_config(train__start=start, model__disc_channels=8), 2)  # its discriminator may be any
    with pytest.raises(ConfigError, match=r"model.channels \(4 there, 6 here\), model.image_size .* 32 here"):
        Run(tmp_path, tiny_config(train__start=start, model__channels=6, model__image_size=32), "cpu", progress=False)
    with pytest.raises(ConfigError, match=r"clip.name \('mini' there, 'own' here\)"):  # before that CLIP is trained
        Run(tmp_path, tiny_config(train__start=start, clip__name="own"), "cpu", progress=False)
    with pytest.raises(ConfigError, match=r"system \('galip' there, 'dfgan' here\)"):
        check_start(load_config("mini:dfgan", {"train.start": start}), 24)
    with pytest.raises(WeightsError, match="there is no weights file or run folder bird64; shipped are .*birds64"):
        check_start(tiny_config(train__start="bird64"), 24)
    with pytest.raises(DataError, match="1 training picture is too few"):
        check_start(tiny_config(train__start=start), 1)


def test_the_profile_of_ones_own_photographs_begins_with_the_birds_that_ship():
    check_start(load_config("folder64", {"data.folder": "photos"}), 100)
    with pytest.raises(ConfigError, match=r"model.image_size \(64 there, 128 here\)"):
        check_start(load_config("folder64", {"model.image_size": 128, "data.image_size": 128}), 100)


def test_photographs_smaller_than_the_picture_are_counted(tmp_path, capsys):
    minibirds.write_cub(tmp_path / "birds", {"train": 6, "test": 4}, size=48)
    photos = open_dataset("birds", tmp_path / "birds", "train", 64, progress=False)
    sides = [min(photos.picture(row).size) for row in range(len(photos))]
    assert photos.smaller(64) == 6 and photos.smaller(min(sides)) == 0
    assert photos.smaller(max(sides)) == sum(side < max(sides) for side in sides)
    describe("birds", tmp_path / "birds", progress=False)
    assert "smaller than 64 px      6, to be enlarged" in capsys.readouterr().out
