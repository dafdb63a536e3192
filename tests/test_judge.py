"""The judge: the shipped one must be nearly always right, and what it can't read must be said clearly."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from galiplib.data import minibirds
from galiplib.evaluation import judge as judging
from galiplib.evaluation.judge import JUDGED, Judge
from galiplib.files import WeightsError
from galiplib.images import to_images


@pytest.fixture(scope="module")
def shipped():
    return judging.load_judge()


@pytest.mark.parametrize("split", ["seen", "test"])
def test_shipped_judge_reads_fresh_drawings(shipped, split):
    fresh = minibirds.build(split, 200, seed=987_654)
    accuracy = judging.measure(shipped, fresh)
    assert set(accuracy) == set(JUDGED)
    assert min(accuracy.values()) > 0.98, accuracy
    soft = judging.measure(shipped, fresh, sigma=judging.BLUR)
    assert min(soft.values()) > 0.95, soft


def test_shipped_judge_reads_what_the_data_set_excludes(shipped):
    """It must not reason that wing and belly differ from the body: a GAN may paint them alike."""
    data = judging.drawings(400, seed=55)
    body, wing = data.labels[:, 0], data.labels[:, 1]
    same = np.flatnonzero(body == wing)
    assert len(same) > 20
    alike = dataclasses.replace(data, images=data.images[same], labels=data.labels[same])
    assert judging.measure(shipped, alike)["wing"] > 0.95


def test_other_picture_sizes(shipped):
    data = minibirds.build("seen", 40, size=96, seed=3)
    assert shipped.features(to_images(data.images)).shape == (40, judging.FEATURES)
    assert min(judging.measure(shipped, data).values()) > 0.95


def test_shipped_file_says_how_it_was_made(shipped):
    record = shipped.provenance
    assert record["command"].startswith("python -m galiplib.judge --out ")  # where it lay then
    assert {"seed", "data", "steps", "torch"} <= set(record)
    for kind in ("seen", "held_out", "seen_blurred", "held_out_blurred"):
        assert set(record["accuracy"][kind]) == set(JUDGED)
    assert judging.SHIPPED.stat().st_size < 2_000_000
    assert 100_000 < sum(p.numel() for p in shipped.parameters()) < 300_000
    assert not shipped.training and not any(p.requires_grad for p in shipped.parameters())


def test_shapes():
    judge = Judge().eval()
    logits = judge(torch.zeros(2, 3, 56, 56))
    assert {name: tuple(v.shape) for name, v in logits.items()} == {
        name: (2, len(minibirds.ATTRIBUTES[name])) for name in JUDGED
    }


def test_augmentation_keeps_shape_range_and_labels_nameable():
    images = to_images(judging.drawings(32, seed=1).images)
    spoilt = judging.augment(images, torch.Generator().manual_seed(2))
    again = judging.augment(images, torch.Generator().manual_seed(2))
    assert spoilt.shape == images.shape and spoilt.abs().max() <= 1
    torch.testing.assert_close(spoilt, again, rtol=0, atol=0)
    assert (spoilt - images).abs().mean() > 0.02


def test_blur_keeps_flat_pictures_and_widens_a_dot():
    flat = torch.full((1, 3, 21, 21), 0.3)
    torch.testing.assert_close(judging.blur(flat, torch.tensor([2.0])), flat)
    dot = torch.zeros(1, 1, 41, 41)
    dot[..., 20, 20] = 1
    spread = judging.blur(dot, torch.tensor([2.0]))[0, 0]
    variance = (spread.sum(0) * (torch.arange(41.0) - 20).square()).sum()
    assert spread.sum().item() == pytest.approx(1, abs=1e-5)
    assert variance.item() == pytest.approx(4, rel=0.01)


def test_training_lowers_the_loss_and_repeats():
    data = judging.drawings(64, seed=2)

    def losses():
        torch.manual_seed(0)
        judge = Judge()
        reports = list(judging.train_judge(judge, data, steps=12, batch_size=16, lr=2e-3, seed=4))
        assert not judge.training
        return reports

    first = losses()
    assert [report.step for report in first] == list(range(1, 13))
    assert first[-1].loss < 0.9 * first[0].loss
    assert first == losses()
    with pytest.raises(dataclasses.FrozenInstanceError):
        first[0].loss = 0.0
    with pytest.raises(ValueError, match="batch of 65"):
        next(judging.train_judge(Judge(), data, steps=1, batch_size=65))


def test_save_and_load(tmp_path):
    torch.manual_seed(0)
    judge, path = Judge().half().float().eval(), tmp_path / "deep" / "judge.safetensors"
    judging.save_judge(path, judge, {"seed": 7})
    loaded = judging.load_judge(path)
    assert loaded.provenance == {"seed": 7}
    images = torch.rand(3, 3, 56, 56) * 2 - 1
    torch.testing.assert_close(loaded.features(images), judge.features(images))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_missing_damaged_and_foreign_files_are_named(tmp_path):
    path = tmp_path / "judge.safetensors"
    command = r"python -m galiplib\.evaluation\.judge --out"
    with pytest.raises(WeightsError, match=rf"judge\.safetensors.*{command}"):
        judging.load_judge(path)
    whole = judging.SHIPPED.read_bytes()
    for damaged in (b"", b"not weights", whole[: len(whole) // 2], b"\xff" * 100):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"judge\.safetensors.*damaged.*{command}"):
            judging.load_judge(path)
    tensors = Judge().state_dict()
    judging.save_weights(path, "galiplib clip", tensors, {})
    with pytest.raises(ValueError, match="'galiplib clip', not 'galiplib judge'"):
        judging.load_judge(path)
    tensors.pop("heads.body.weight")
    judging.save_weights(path, judging.KIND, tensors, {})
    with pytest.raises(ValueError, match=r"judge\.safetensors.*heads\.body\.weight"):
        judging.load_judge(path)


def test_the_command_writes_a_judge(tmp_path, capsys):
    out = tmp_path / "judge.safetensors"
    small = ["--steps", "2", "--drawings", "20", "--batch-size", "8", "--check", "20"]
    judging.main(["--out", str(out), "--seed", "3", *small])
    record = judging.load_judge(out).provenance
    assert record["steps"] == 2 and record["seed"] == 3 and record["data"]["train"] == 20
    assert json.loads(json.dumps(record)) == record
    assert "held_out_blurred" in capsys.readouterr().out
