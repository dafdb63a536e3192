"""Training on photographs: from a folder in CUB's layout to a generator, with a CLIP of its own."""

import pytest

import galiplib
from galiplib import build as parts
from galiplib.build import make_bridge
from galiplib.config import ConfigError, load_config, profiles
from galiplib.data import minibirds
from galiplib.data.batches import TrainingData
from galiplib.data.datasets import DataError
from galiplib.runs import run as runs
from galiplib.runs.run import Run

SMALL = {
    "clip.name": "own", "clip.stem": "", "model.projected": "",
    "clip.max_steps": 3, "clip.batch_size": 8, "clip.width": 64, "clip.layers": 2, "clip.text_layers": 1,
    "model.channels": 2, "model.code_channels": 4, "model.disc_channels": 8, "train.batch_size": 4,
    "train.max_steps": 3, "train.checkpoint_every": 2, "train.evaluate_every": 3, "train.sample_every": 3,
}  # fmt: skip


@pytest.fixture
def birds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the captions' embeddings go to data/
    monkeypatch.setattr(runs, "EVALUATED", 40)
    minibirds.write_cub(tmp_path / "birds", {"train": 14, "test": 12}, size=64)
    return {"data.folder": str(tmp_path / "birds")}


@pytest.mark.filterwarnings("ignore:Fréchet distance from")
@pytest.mark.filterwarnings("ignore:words this small CLIP never saw")
def test_a_run_trains_its_clip_then_the_gan_and_goes_on(birds, tmp_path):
    config = load_config("birds_lite", {**SMALL, **birds})
    run = Run(tmp_path / "run", config, "cpu", progress=False)
    before = (tmp_path / "run" / "clip.safetensors").read_bytes()
    for report in run.train():
        if report.step == 2:
            break  # an interruption
    run = Run(tmp_path / "run", config, "cpu", progress=False)
    assert run.step == 2 and (tmp_path / "run" / "clip.safetensors").read_bytes() == before
    list(run.train())
    (measured,) = run.evaluations()
    assert measured["images"] == 40 and measured["frechet_images"] == 6
    assert measured["frechet_distance"] > 0 and -1 <= measured["clip_similarity"] <= 1
    assert (tmp_path / "run" / "samples" / "step_000003.png").is_file()
    assert len(list((tmp_path / "data" / "captions").glob("birds-*-train-*.f32"))) == 1
    for path in (tmp_path / "run", tmp_path / "run" / "generator.safetensors"):
        generator = galiplib.load_generator(path)
        made = galiplib.sample(generator, generator.bridge, run.sample_captions, count=2)
        assert made.images.shape == (8, 3, 64, 64)
    record = galiplib.clip.files.clip_record(tmp_path / "run" / "clip.safetensors")
    assert 0 <= record["metrics"]["test"]["retrieval"]["image_to_text"] <= 1


def test_a_picture_that_breaks_while_training_is_replaced(birds, tmp_path):
    data = parts.make_data(load_config("birds_lite", {**SMALL, **birds}))
    broken = data.items[3].image
    broken.write_bytes(broken.read_bytes()[:400])
    training = TrainingData(make_bridge(load_config("mini")), data)
    with pytest.warns(UserWarning, match=f"left out.*{broken.name}"):
        batches = [training.batch(step, 7, 0) for step in (1, 2)]
    assert all(images.shape == (7, 3, 64, 64) for images, _ in batches)


def test_errors_name_what_is_missing(tmp_path):
    config = load_config("birds_lite", {**SMALL, "data.folder": str(tmp_path / "none")})
    with pytest.raises(DataError, match="none"):
        Run(tmp_path / "run", config, "cpu", progress=False)
    with pytest.raises(ConfigError, match="clip.name = 'own' needs a run folder"):
        make_bridge(config)


@pytest.mark.parametrize("name", sorted(set(profiles()) - {"mini", "birds_lite", "flowers_lite", "folder64"}))
def test_profiles_of_the_real_sets_are_the_published_networks(name):
    config = load_config(name)
    assert config.clip.name == "ViT-B/32" and config.clip.convention == "reference"
    assert config.model.image_size == "reference" and config.model.channels == 64
    assert (config.train.lr_g, config.train.lr_d, config.train.clip_weight) == (1e-4, 4e-4, 4.0)
    assert config.data.image_size == 256
