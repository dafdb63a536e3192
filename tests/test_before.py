"""What an earlier version recorded (tests/before) still opens, and gives what it gave then.

The run folders stopped at step 4 of 6; `goes_on_with.json` holds steps 5 and 6 as the version before went on.
"""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch

from galiplib import Run, load_clip, load_discriminator, load_generator, sample
from galiplib.checkpoints.store import recorded_config
from galiplib.evaluation import list_pictures, load_statistics
from galiplib.sampling.folder import read_captions, sample_file
from galiplib.sampling.provenance import Origin, fingerprint, read_png
from galiplib.sampling.sample import replay

BEFORE = Path(__file__).parent / "before"
RUNS = ("galip", "ratlip")
EXPORTS = ("galip", "ratlip", "ratlip-reference")


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.filterwarnings("ignore:Fréchet distance from", "ignore:going on with")
def test_a_run_goes_on_as_it_would_have(name, tmp_path):
    folder = shutil.copytree(BEFORE / "runs" / name, tmp_path / name)
    recorded = json.loads((folder / "config.json").read_text())
    run = Run(folder, recorded_config(recorded), "cpu", progress=False)
    assert run.step == 4 and [line["step"] for line in run.history()] == [1, 2, 3, 4]
    reports = list(run.train())
    then = json.loads((folder / "goes_on_with.json").read_text())
    now = run.history()[4:]
    assert [report.step for report in reports] == [line["step"] for line in now] == [5, 6]
    for before, after in zip(then, now, strict=True):
        assert before.keys() <= after.keys()
        for key in before.keys() - {"seconds"}:
            assert after[key] == pytest.approx(before[key], rel=1e-3, abs=1e-5), (before["step"], key)
    assert [line["step"] for line in run.evaluations()] == [3, 6]
    found = json.loads((folder / "config.json").read_text())
    assert found["system"] == name and recorded_config(found) == recorded_config(recorded)
    assert all(found[section].items() >= recorded[section].items() for section in ("data", "clip", "train", "eval"))
    assert load_generator(folder / "generator.safetensors").image_size == 28


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("ema", [True, False])
def test_networks_of_a_run_load(name, ema):
    generator = load_generator(BEFORE / "runs" / name, ema=ema)
    made = sample(generator, generator.bridge, "a red bird", count=2).images
    assert made.shape == (2, 3, 28, 28)
    discriminator, head = load_discriminator(BEFORE / "runs" / name / "checkpoints" / "step_000004.pt")
    tapped, embedding = generator.bridge.encode_image(torch.zeros(2, 3, 28, 28))
    assert head(discriminator(tapped), embedding).shape == (2,)


@pytest.mark.parametrize("name", EXPORTS)
def test_exports_load(name):
    generator = load_generator(BEFORE / f"{name}.safetensors")
    assert sample(generator, generator.bridge, "a red bird").images.isfinite().all()


def test_a_small_clip_loads():
    model = load_clip(BEFORE / "clip.safetensors")
    own = load_clip(BEFORE / "runs" / "galip" / "clip.safetensors")
    assert all(torch.equal(tensor, own.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "png, checkpoint, settings",
    [
        ("picture.png", "galip.safetensors", {}),
        ("ratlip_reference.png", "ratlip-reference.safetensors", {}),
        ("mixed.png", "runs/galip", {"truncation": 0.7, "towards": "a blue bird with yellow wings", "share": 0.4}),
        ("pictures/0001_a_red_bird_seed0.png", "ratlip.safetensors", {}),
        ("pictures/0002_a_blue_bird_in_the_snow_seed0.png", "ratlip.safetensors", {}),
    ],
)
def test_a_picture_is_made_again(png, checkpoint, settings):
    """The weights have the fingerprint of then, and the pixels are those of then, within 1 of 255."""
    recipe, origin = read_png(BEFORE / png)
    assert recipe.settings == settings and origin.checkpoint == checkpoint
    assert fingerprint(load_generator(BEFORE / checkpoint)) == origin.weights
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".* was resized since|.*by ([2-9]|\\d\\d+) of 255 at most")
        assert replay(BEFORE / png, BEFORE / checkpoint).recipes == [recipe]


def test_a_folder_of_pictures_reads_and_goes_on(tmp_path):
    folder = shutil.copytree(BEFORE / "pictures", tmp_path / "pictures")
    paths, captions = list_pictures(folder)
    assert captions == ["a red bird", "a blue bird in the snow"]
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert [path.name for path in paths] == [line["file"] for line in lines]

    generator = load_generator(BEFORE / "ratlip.safetensors")
    captions_file = tmp_path / "captions.txt"
    captions_file.write_text("\n".join(captions))
    before = {path.name: path.stat().st_mtime_ns for path in paths}
    origin = Origin.of(generator, "ratlip.safetensors")
    sample_file(generator, generator.bridge, read_captions(captions_file), folder, origin)
    assert {path.name: path.stat().st_mtime_ns for path in paths} == before  # all there already
    assert [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()] == lines


def test_statistics_load():
    statistics, note = load_statistics(BEFORE / "statistics.npz", 8)
    assert statistics.mu.shape == (8,) and statistics.sigma.shape == (8, 8) and statistics.count == 50
    assert note == {"data": "minibirds", "split": "test", "size": 28, "features": "clip", "weights": "x"}
