"""The generator that the panel and notebook 07 begin with: the best by ImageNet's eyes, not merely the latest."""

import json
import os
import shutil

import pytest
import torch

from galiplib.runs import choice
from galiplib.runs.choice import best_at_hand

SHIPPED = 5.0  # floors


@pytest.fixture
def shipped(monkeypatch):
    """The record of the shipped weights, to be changed."""
    record = {"config": {"profile": "mini:sharp"}, "metrics": evaluation(SHIPPED)}
    monkeypatch.setattr(choice, "generator_record", lambda: record)
    return record


def evaluation(floors):
    return {"imagenet_frechet_distance": 68.0 * floors, "imagenet_frechet_floor": 68.0, "frechet_distance": 9.0}


@pytest.fixture
def make(tmp_path):
    def run(name, floors, best=None, profile="mini", steps=40, finished=True):
        """A run folder whose evaluations every 10 steps lie at `floors` (None: without these eyes)."""
        folder = tmp_path / name
        (folder / "checkpoints").mkdir(parents=True)
        settings = {"profile": profile, "train": {"max_steps": steps if finished else steps + 1}}
        (folder / "config.json").write_text(json.dumps(settings))
        lines = [{"step": 10 * n, **(evaluation(f) if f else {"fid": 3.0})} for n, f in enumerate(floors, start=1)]
        (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        torch.save({"step": steps}, folder / "checkpoints" / f"step_{steps:06d}.pt")
        if best:
            torch.save({"step": best}, folder / "checkpoints" / "best.pt")
        return folder

    return run


def test_the_least_distance_in_floors_wins(make, tmp_path, shipped):
    train = make("mini/train", [14.0, 9.0, 8.0, 7.0])
    assert best_at_hand(tmp_path, "mini") == ("mini", {str(train): pytest.approx(7.0), "mini": SHIPPED})
    long = make("mini-sharp/long", [9.0, 4.0, 3.0, 4.5], best=20, profile="mini:sharp")
    best = long / "checkpoints" / "best.pt"  # by the judge: the record of its own step counts
    source, found = best_at_hand(tmp_path, "mini")
    assert source == str(best) and found[str(best)] == pytest.approx(4.0) and found[str(long)] == pytest.approx(4.5)
    assert best_at_hand(tmp_path, "mini:sharp")[0] == source  # a variant of the same pictures
    best.write_bytes(b"damaged")
    assert best_at_hand(tmp_path, "mini")[0] == str(long)
    shipped["metrics"] = evaluation(4.4)
    assert best_at_hand(tmp_path, "mini")[0] == "mini"
    shipped["metrics"] = {}  # made before these eyes
    assert best_at_hand(tmp_path, "mini")[0] == str(long)


def test_of_a_best_that_is_the_newest_the_run_is_named(make, tmp_path, shipped):
    train = make("mini/train", [3.0, 2.0], best=20, steps=20)
    assert best_at_hand(tmp_path, "mini")[0] == str(train)


def test_an_evaluation_in_the_run_s_folder_counts(make, tmp_path, shipped):
    """`galip evaluate --weights RUN --out RUN`, of a run made before these eyes."""
    run = make("mini/long", [None] * 4)
    said = run / "results.json"
    for results, found in (
        ({"weights": str(run)}, str(run)),
        ({"weights": "mini"}, "mini"),
        ({"pictures": "x"}, "mini"),
    ):
        said.write_text(json.dumps(results | evaluation(2.0)))
        assert best_at_hand(tmp_path, "mini")[0] == found
    said.write_text(json.dumps({"weights": str(run)} | evaluation(2.0)))
    os.utime(said, (1, 1))  # older than the checkpoint: of an earlier one
    assert best_at_hand(tmp_path, "mini") == ("mini", {})


def test_what_is_not_finished_or_of_another_profile_is_no_candidate(make, tmp_path, shipped):
    make("mini/train", [9.0, 8.0, 7.0, 6.0])
    make("mini/stopped", [2.0, 2.0, 2.0, 2.0], best=20, finished=False)
    make("birds/train", [1.0, 1.0, 1.0, 1.0], profile="birds")
    shutil.rmtree(make("mini/cleared", [1.0, 1.0, 1.0, 1.0]) / "checkpoints")
    (make("mini/nameless", [1.0, 1.0, 1.0, 1.0]) / "config.json").unlink()
    assert best_at_hand(tmp_path, "mini")[0] == "mini"
    assert best_at_hand(tmp_path, "birds")[0] == str(tmp_path / "birds" / "train")  # which the shipped one can't draw


def test_without_records_it_is_the_latest(make, tmp_path, shipped):
    assert best_at_hand(tmp_path, "mini") == ("mini", {})
    make("mini/other", [None] * 4)
    assert best_at_hand(tmp_path, "mini") == ("mini", {})
    train = make("mini/train", [None] * 4, finished=False)
    assert best_at_hand(tmp_path, "mini") == (str(train), {})


def test_the_shipped_record_is_readable(tmp_path):
    assert best_at_hand(tmp_path / "absent") == ("mini", {})
    assert choice.generator_record()["config"]["profile"].startswith("mini")
