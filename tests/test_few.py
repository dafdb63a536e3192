"""Few pictures, broken ones, other ones: faults of data are told early, and never taken for faults of weights."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import galiplib
from galiplib.build import held_out_data, make_data
from galiplib.clip.bridge import bpe_tokenizer
from galiplib.config import ConfigError, TrainConfig, load_config
from galiplib.data import DataError, minibirds
from galiplib.data.batches import BatchReader
from galiplib.data.datasets import DATASETS, describe
from galiplib.data.embeddings import Cut, cut_captions
from galiplib.data.shard_writing import write_shards
from galiplib.data.shards import open_shards
from galiplib.evaluation import EvaluationError, TooFew, measure_generator
from galiplib.runs import run as runs
from galiplib.runs.guards import Guard, TrainingFailed
from galiplib.runs.run import Run

WORDS = "red blue green yellow white black brown orange pink grey".split()
SMALL = {
    "clip.name": "own", "clip.stem": "", "model.projected": "",
    "data.name": "folder", "clip.max_steps": 2, "clip.batch_size": 4, "clip.width": 64, "clip.layers": 2,
    "clip.text_width": 64, "clip.text_layers": 1, "clip.embed_dim": 16, "model.channels": 2, "model.code_channels": 4,
    "model.disc_channels": 8, "train.batch_size": 4, "train.max_steps": 2, "train.checkpoint_every": 1,
    "train.evaluate_every": 1, "train.sample_every": 50, "eval.images": 20, "eval.diversity": 1,
    "eval.features": ("clip",), "train.precision": "fp32", "clip.precision": "fp32",
}  # fmt: skip
pytestmark = [
    pytest.mark.filterwarnings("ignore:Fréchet distance from"),
    pytest.mark.filterwarnings("ignore:words this small CLIP never saw"),
]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """count -> a folder with as many pictures, each with a caption beside it."""
    monkeypatch.chdir(tmp_path)  # the captions' embeddings go to data/
    monkeypatch.setattr(runs, "EVALUATED", 20)

    def make(count, first=0):
        folder = tmp_path / "photos"
        folder.mkdir(exist_ok=True)
        for number in range(first, first + count):
            noise = np.random.default_rng(number).integers(0, 255, (70, 64, 3), np.uint8)
            Image.fromarray(noise).save(folder / f"{number:03}.png")
            text = f"a {WORDS[number % 10]} ball on a {WORDS[number // 10 % 10]} wall"
            (folder / f"{number:03}.txt").write_text(text)
        return folder

    return make


def settings(folder, **more):
    return load_config("birds_lite", {**SMALL, "data.folder": str(folder), **more})


def opened(folder, config, **how):
    return Run(folder, config, "cpu", progress=False, **how)


def events(run):
    path = run.folder / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


# ---------------------------------------------------------------- few, or none held out


@pytest.mark.parametrize(("count", "tested"), [(2, 1), (24, 2), (40, 4)])
def test_the_smallest_sets_work_and_say_what_they_lack(count, tested, photos, tmp_path, capsys):
    config = settings(photos(count))
    assert describe("folder", config.data.folder, progress=False)["splits"]["test"]["pictures"] == tested
    run = opened(tmp_path / "run", config)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        list(run.train())
    off = [str(one.message) for one in told if "no evaluation on the way" in str(one.message)]
    assert run.finished and not events(run)
    if tested < 4:
        assert len(off) == 1 and f"takes 4 held-out pictures, and the split test has {tested}" in off[0]
        assert not run.evaluations()
    else:
        assert not off and [line["step"] for line in run.evaluations()] == [1, 2]
    generator = galiplib.load_generator(run.folder)
    assert galiplib.sample(generator, generator.bridge, "a red ball", count=1).images.shape == (1, 3, 64, 64)
    record = json.loads(json.dumps(measure_generator(generator, generator.bridge, config, progress=False).record(),
                                   allow_nan=False))  # fmt: skip
    assert record["images"] == 20 and -1 <= record["clip_similarity"] <= 1
    assert ("frechet_distance" in record) is (tested >= 4) and ("frechet_all" in record) is (tested >= 2)
    lacks = record["left_out"]
    assert "needs as many different captions" in lacks["r_precision"]
    if tested < 4:
        assert lacks["frechet_distance"] == f"halves of the real pictures take 4 of them, not {tested}"


@pytest.mark.parametrize("count", [1, 12])
def test_an_empty_test_split_is_called_by_its_name(count, photos, tmp_path, capsys):
    folder = photos(count)
    if count > 1:  # all of them in one split of a table
        rows = [f"{path.name},a red ball,train" for path in sorted(folder.glob("*.png"))]
        (folder / "captions.csv").write_text("\n".join(["image,caption,split", *rows]))
    found = describe("folder", folder, progress=False)
    assert list(found["splits"]) == ["train"] and found["splits"]["train"]["pictures"] == count
    assert f"the split test of {folder} is empty" in capsys.readouterr().out
    config = settings(folder, **{"train.max_steps": 1})
    run = opened(tmp_path / "run", config)
    with pytest.warns(UserWarning, match="no evaluation on the way.*split test; empty or missing"):
        list(run.train())
    assert run.finished and run.sample_captions
    with pytest.raises(TooFew, match="needs the split test; empty or missing: .'test'"):
        measure_generator(run.system.ema, run.bridge, config, progress=False)


def test_nothing_at_all_is_still_refused(photos, tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match="nothing usable in .*photos"):
        describe("folder", photos(0), progress=False)


def test_a_batch_larger_than_the_data_has_all_of_them_again_and_again():
    data = minibirds.build("train", 5)
    reader = BatchReader(data, None, None, 12, 0, slice(0, 12))
    drawn = np.concatenate([reader.rows(step) for step in (1, 2, 3, 4, 5)])
    assert len(drawn) == 60 and all(sorted(drawn[start : start + 5]) == [0, 1, 2, 3, 4] for start in range(0, 60, 5))
    own = BatchReader(data, None, None, 2, 0, slice(0, 2))  # as ever: the odd one out of each epoch is dropped
    assert [own.rows(step).tolist() for step in (1, 2)] == data.rows(0, 0, 0, 4).reshape(2, 2).tolist()
    assert own.rows(3).tolist() == data.rows(0, 1, 0, 2).tolist()


# ---------------------------------------------------------------- what breaks is no fault of the weights


def test_a_held_out_caption_that_clip_cannot_read_costs_nothing(photos, tmp_path):
    folder = photos(60)
    bad = held_out_data(settings(folder))["test"].items[0].key
    (folder / bad).with_suffix(".txt").write_text("xyzzy")
    run = opened(tmp_path / "run", settings(folder))
    with pytest.warns(UserWarning, match="CLIP knows no word.*1 of the split test: xyzzy"):
        list(run.train())
    assert len(run.evaluations()) == 2 and "xyzzy" not in run.sample_captions and not events(run)


def test_held_out_pictures_that_break_meanwhile_stop_no_training(photos, tmp_path):
    run = opened(tmp_path / "run", settings(photos(40), **{"train.max_steps": 3, "train.evaluate_every": 2}))
    reports = run.train()
    next(reports)
    for item in run.held_out["test"].items:
        item.image.write_bytes(b"no picture")
    run.held_out["test"]._kept.clear()
    with pytest.warns(UserWarning, match="step 2: no evaluation .*can be decoded.*; the training goes on"):
        list(reports)
    assert run.finished and run.guard.rollbacks == 0 and not run.evaluations()
    assert [(one["step"], one["event"]) for one in events(run)] == [(2, "no evaluation"), (3, "no evaluation")]


def test_what_an_evaluation_needs_is_missed_before_the_first_step(photos, tmp_path):
    run = opened(tmp_path / "run", settings(photos(40), **{"eval.statistics": "gone.npz"}))
    with pytest.raises(EvaluationError, match="there is no statistics file gone.npz"):
        next(run.train())
    assert not run.checkpoints.numbered() and not run.history()


def test_giving_up_names_the_best_checkpoint_only_if_there_is_one():
    config = TrainConfig(max_rollbacks=0)
    for guard, named in ((Guard(), False), (Guard(best=1.0, best_step=3), True)):
        with pytest.raises(TrainingFailed) as failed:
            guard.roll_back(5, "bad", config)
        assert ("checkpoints/best.pt" in str(failed.value)) is named


# ---------------------------------------------------------------- captions against the CLIP in use


def test_captions_that_a_context_cuts_and_makes_alike():
    start = "one two three four five six"
    captions = [
        start,
        f"{start} red",
        f"{start} blue",
        f"{start} blue",
        "seven",
        "ONE  two three four five six red end",
    ]
    assert cut_captions(captions, 9) == Cut(longer=1, different=2, alike=1)  # seven words of them are read
    assert cut_captions(captions, 8) == Cut(longer=4, different=4, alike=1)
    assert cut_captions(captions, 77) == Cut(0, 0, 0)
    assert str(Cut(3, 2, 1)) == "3 captions; by the cut 2 different ones become 1" and str(Cut(3, 0, 0)) == "3 captions"
    six = {piece for word in start.split() for piece in bpe_tokenizer().encode(word)}
    assert cut_captions(captions, 8, known=six) == Cut(0, 0, 0)  # what isn't read takes no room


def test_a_run_says_what_its_own_context_cuts(photos, tmp_path):
    folder = photos(12)
    for path in folder.glob("*.txt"):
        path.write_text("one photograph of the very same evening, " + path.read_text())
    config = settings(folder, **{"clip.context_length": 8, "train.max_steps": 1, "train.evaluate_every": 0})
    told = r"longer than the 8 tokens that this run's CLIP reads: 11 captions; by the cut \d+ different ones become 1"
    with pytest.warns(UserWarning, match=told):
        run = opened(tmp_path / "run", config)  # before its CLIP is trained
    with pytest.warns(UserWarning, match=told):
        list(run.train())


# ---------------------------------------------------------------- resume means the same data


def changes(folder):
    """Name -> what is done to a folder of pictures."""
    picture, text = folder / "003.png", folder / "003.txt"
    return {
        "a caption": lambda: text.write_text("something else"),
        "another picture": lambda: Image.new("RGB", (64, 70), "red").save(picture),
        "a name": lambda: (picture.rename(folder / "z.png"), text.rename(folder / "z.txt")),
        "one less": lambda: picture.unlink(),
        "captions swapped": lambda: [
            (folder / f"{a:03}.txt").write_text(f"a {WORDS[b]} ball on a red wall") for a, b in ((3, 4), (4, 3))
        ],
    }


@pytest.mark.parametrize("what", changes(Path()))
def test_other_pictures_or_captions_are_other_data(what, photos):
    folder = photos(12)
    config = settings(folder)
    before = make_data(config).fingerprint
    assert make_data(config).fingerprint == before
    changes(folder)[what]()
    assert make_data(config).fingerprint != before


def test_shards_and_mini_birds_have_a_fingerprint_too(tmp_path):
    config = load_config("mini", {"data.train_size": 6, "data.image_size": 32})
    samples, made = DATASETS["minibirds"].samples(config.data, "train", False)
    write_shards(samples, tmp_path / "a" / "train", {**made, "split": "train", "size": 32}, 4, False)
    write_shards(samples, tmp_path / "b" / "train", {**made, "split": "train", "size": 32}, 6, False)
    one, other = (open_shards(tmp_path / name, "train", 32, progress=False).fingerprint for name in "ab")
    assert one != other and one == open_shards(tmp_path / "a", "train", 32, progress=False).fingerprint
    sizes = [minibirds.build("train", count).fingerprint for count in (4, 4, 5)]
    assert sizes[0] == sizes[1] != sizes[2]


def test_a_run_goes_on_with_its_own_data_only(photos, tmp_path):
    folder = photos(14)
    config = settings(folder, **{"train.max_steps": 4, "train.evaluate_every": 0})
    for report in opened(tmp_path / "run", config).train():
        if report.step == 2:
            break
    assert opened(tmp_path / "run", config).step == 2
    photos(6, first=50)
    with pytest.raises(ConfigError, match=r"run on other data \(13 training pictures then, 18 now.*--allow-changes"):
        opened(tmp_path / "run", config)
    with pytest.warns(UserWarning, match="going on with other data"):
        run = opened(tmp_path / "run", config, allow_changes=True)
    list(run.train())
    state = torch.load(run.checkpoints.numbered()[0], weights_only=True)
    assert state["data"] == {"pictures": 18, "digest": run.source.fingerprint}
    del state["data"]  # as before checkpoints had it
    state["config"]["train"]["max_steps"] = 5
    torch.save(state, run.checkpoints.numbered()[0])
    with pytest.warns(UserWarning, match="the checkpoint tells nothing of"):
        longer = settings(folder, **{"train.max_steps": 5, "train.evaluate_every": 0})
        again = opened(tmp_path / "run", longer, allow_changes=True)
    list(again.train())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        opened(
            tmp_path / "run", settings(folder, **{"train.max_steps": 6, "train.evaluate_every": 0}), allow_changes=True
        )
    assert not any("tells nothing" in str(one.message) for one in told)  # said once


def test_a_clip_of_other_data_is_not_taken_over(photos, tmp_path):
    config = settings(photos(14))
    opened(tmp_path / "run", config)  # trains it; no step of the run yet
    photos(6, first=50)
    with pytest.raises(ConfigError, match="a run on other data"):
        opened(tmp_path / "run", config)


def test_a_geometry_that_fits_no_system_leaves_no_folder_behind(photos, tmp_path):
    for clip in ("own", "mini"):
        bad = settings(photos(12), **{"clip.name": clip, "model.image_size": 4})
        with pytest.raises(ValueError, match="model.image_size = 4"):
            opened(tmp_path / "run", bad)
        assert not (tmp_path / "run").exists()
