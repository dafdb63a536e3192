import json
import sys

import pytest
from PIL import Image

from galiplib import cli


def galip(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["galip", *map(str, arguments)])
    cli.main()


def fails(monkeypatch, capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        galip(monkeypatch, *arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


SMALL = [
    word
    for key in ("model.channels=4", "model.disc_channels=8", "model.fusion_blocks=1", "train.batch_size=4",
                "data.train_size=16", "data.test_size=20", "train.max_steps=2", "eval.images=40")  # fmt: skip
    for word in ("--set", key)
]


def test_sample_from_the_shipped_generator(monkeypatch, tmp_path):
    out = tmp_path / "x.png"
    galip(monkeypatch, "sample", "a small red bird with black wings", "--count", 8, "--seed", 0, "--out", out)
    with Image.open(out) as image:
        assert image.width > 8 * 56 and image.text["caption"] == "a small red bird with black wings"
    again = tmp_path / "y.png"
    galip(monkeypatch, "sample", "a small red bird with black wings", "--count", 8, "--out", again)
    assert out.read_bytes() == again.read_bytes()


def test_train_resume_export_evaluate(monkeypatch, tmp_path, capsys):
    run, weights = tmp_path / "run", tmp_path / "g.safetensors"
    galip(monkeypatch, "train", *SMALL, "--out", run)
    galip(monkeypatch, "train", *SMALL, "--out", run, "--export", weights)
    assert "complete: 2 steps" in capsys.readouterr().out
    galip(monkeypatch, "evaluate", "--weights", weights, *SMALL, "--out", tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["caption_accuracy"]) == {"body", "wing", "belly", "background"}


def test_describe_lists_every_key(monkeypatch, capsys):
    galip(monkeypatch, "describe", "--set", "train.max_steps=77")
    text = capsys.readouterr().out
    assert "train.max_steps" in text and "77" in text and "learning rate" in text


def test_bad_input_is_one_line_and_status_two(monkeypatch, capsys, tmp_path):
    assert "one of birds" in fails(monkeypatch, capsys, "describe", "--profile", "nope")
    assert "did you mean" in fails(monkeypatch, capsys, "train", "--set", "train.max_step=1", "--out", tmp_path)
    assert "empty" in fails(monkeypatch, capsys, "sample", " ", "--out", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
    (tmp_path / "file").write_text("")
    assert "file" in fails(monkeypatch, capsys, "sample", "a bird", "--out", tmp_path / "file" / "x.png")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(b"1234567890")
    assert "cut.safetensors is damaged" in fails(monkeypatch, capsys, "sample", "a bird", "--weights", cut)
