import json
import subprocess
import sys

import numpy as np
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
    for key in (
        "model.channels=4",
        "model.disc_channels=8",
        "model.fusion_blocks=1",
        "train.batch_size=4",
        "data.train_size=16",
        "data.test_size=20",
        "train.max_steps=2",
        "train.evaluate_every=0",
        "eval.images=40",
        "eval.diversity=2",
    )  # fmt: skip
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


def test_every_way_of_sampling(monkeypatch, tmp_path, capsys):
    one, again, red, blue = tmp_path / "1.png", tmp_path / "2.png", "a red bird with black wings", "a blue bird"
    guided = ["--truncation", 0.7, "--towards", blue, "--share", 1.5, "--late", blue, "--late-from", 3]
    galip(monkeypatch, "sample", red, "--count", 1, *guided, "--out", one)
    galip(monkeypatch, "replay", one, "--out", again)
    assert one.read_bytes() == again.read_bytes()
    galip(monkeypatch, "sample", red, "--count", 6, "--best", 2, "--device", "cpu", "--out", tmp_path / "best.png")
    assert capsys.readouterr().out.count("CLIP similarity 0.") == 2
    galip(monkeypatch, "sample", red, blue, "--count", 3, "--out", tmp_path / "grid.png")
    galip(monkeypatch, "walk", red, "--to-seed", 5, "--steps", 3, "--out", tmp_path / "walk.gif")
    with Image.open(tmp_path / "walk.gif") as gif:
        assert gif.n_frames == 4 and gif.size == (112, 112)
    (tmp_path / "list.txt").write_text(f"{red}\n{blue}\n")
    galip(monkeypatch, "sample", "--file", tmp_path / "list.txt", "--count", 2)
    assert len((tmp_path / "list" / "manifest.jsonl").read_text().splitlines()) == 4


def test_sample_in_bf16_and_replay_it(monkeypatch, tmp_path):
    exact, fast, again = tmp_path / "1.png", tmp_path / "2.png", tmp_path / "3.png"
    galip(monkeypatch, "sample", "a red bird", "--count", 1, "--out", exact)
    galip(monkeypatch, "sample", "a red bird", "--count", 1, "--out", fast, "--precision", "bf16")
    galip(monkeypatch, "replay", fast, "--out", again)
    assert fast.read_bytes() == again.read_bytes()
    with Image.open(exact) as one, Image.open(fast) as other:
        assert (one.text["precision"], other.text["precision"]) == ("fp32", "bf16")
        difference = np.asarray(one).astype(int) - np.asarray(other)
        assert difference.any() and abs(difference).mean() < 2  # of 255


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["sample"], "give either one or more captions, or --file"),
        (["sample", "a bird", "--file", "x.txt"], "give either"),
        (["replay", "x.png"], "x.png"),
        (["sample", "--file", "x.txt"], "x.txt"),
        (["sample", "--file", "x.txt", "--best", 2], "go with captions"),
        (["walk", "a bird", "a red bird", "--to-seed", 2], "a walk starts at one caption"),
        (["walk", "a bird", "--towards", "a red bird", "--count", 2], "unrecognized arguments: --count 2"),
        (["walk", "a bird", "--steps", 1], "steps must lie between 2 and 4096, not 1"),
        (["sample", "a bird", "--share", 0.5], "give --towards, too"),
        (["sample", "a bird", "--count", 0], "count must lie between 1 and 4096, not 0"),
        (["sample", "a bird", "--best", 0], "keep must lie between 1 and the 8"),
        (["sample", "a bird", "--raw"], "holds one set of weights"),
        (["sample", "--replay", "x.png"], "--replay is of a command of its own: galip replay PNG"),
        (["sample", "a bird", "--to-seed", 2], "galip walk CAPTION --to-seed N"),
        (["sample", "a bird", "--steps", 3], "galip walk CAPTION --steps N"),
        (["sample", "a bird", "--towards", "a red bird"], "galip walk CAPTION --towards CAPTION"),
    ],
)
def test_sampling_options_that_do_not_go_together(monkeypatch, capsys, tmp_path, command, message):
    monkeypatch.chdir(tmp_path)
    said = fails(monkeypatch, capsys, *command)
    assert message in said and (said.count("\n") == 1 or said.startswith("usage"))
    assert not list(tmp_path.iterdir())


def test_help_answers_at_once():
    """Neither torch nor anything else that takes seconds is loaded to say what the commands are."""
    code = "import sys; from galiplib.cli import parser; print(parser().format_help(), *sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "replay" in told
    assert not {"torch", "numpy", "pydantic", "torchvision"} & set(told.split())


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
