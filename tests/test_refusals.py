"""What can't be written, drawn on or read back is refused before the work, and nothing of others is overwritten."""

import shutil
import sys
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image

from galiplib import cli, files
from galiplib.build import make_system, pick_device
from galiplib.checkpoints.published import Published, export_reference
from galiplib.clip.bridge import CLIP, ClipBridge
from galiplib.config import ConfigError, build_config
from galiplib.files import WeightsError, check_folder, check_target, free_name, is_ours, save_weights, write_json
from galiplib.images import save_png
from galiplib.runs.run import Run

RED = "a red bird with black wings"


def galip(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["galip", *map(str, args)])
    cli.main()


@pytest.fixture
def fails(monkeypatch, capsys):
    """Arguments -> what a command says that must not begin its work."""

    def run(*args):
        for place in ("checkpoints.loading.load_generator", "runs.run.Run", "clip.training.learn_clip"):
            monkeypatch.setattr(f"galiplib.{place}", lambda *_, **__: pytest.fail("it began"))
        with pytest.raises(SystemExit) as stopped:
            galip(monkeypatch, *args)
        assert stopped.value.code == 2
        return capsys.readouterr().err

    return run


# ---------------------------------------------------------------- where it can't be written


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["sample", RED, "--out", "x.jpg"], "x.jpg must have a name that ends in .png"),
        (["sample", RED, "--out", "folder"], "folder must have a name that ends in .png"),
        (["sample", RED, "--out", "folder.png"], "folder.png is a folder"),
        (["sample", RED, "--out", "file/x.png"], "can't write to file: "),
        (["sample", "--file", "captions.txt", "--out", "file"], "can't write to file: "),
        (["walk", RED, "--out", "x.webm"], "ends in .gif or .mp4 or .png"),
        (["replay", "ours.png", "--out", "x.jpeg"], "ends in .png"),
        (["evaluate", "--out", "file"], "can't write to file: "),
        (["evaluate", "--pictures", "nowhere"], "there is no folder nowhere"),
        (["compare", "mini", "gone.pt", "--out", "c"], "there is no weights file or run folder gone.pt"),
        (["compare", "mini", "--out", "file/c"], "can't write to file/c: "),
        (["train", "--out", "run", "--export", "x.pth"], "ends in .safetensors"),
        (["train", "--out", "run", "--export", "file/x.safetensors"], "can't write to file: "),
        (["train-clip", "--out", "clip.pt"], "ends in .safetensors"),
        (["export", "run", "--out", "folder"], "ends in .pth"),
        (["data", "folder", "--sheet", "sheet.jpg"], "ends in .png"),
        (["sample", RED, "--out", "theirs.png"], "theirs.png is there already and galip didn't write it"),
        (["walk", RED, "--out", "theirs.png"], "theirs.png is there already"),
        (["export", "run", "--out", "theirs.pth"], "theirs.pth is there already"),
        (["train", "--out", "run", "--export", "theirs.safetensors"], "theirs.safetensors is there already"),
        (["evaluate", "--out", "theirs"], "results.json is there already"),
        (["compare", "mini", "--out", "theirs"], "comparison.csv is there already"),
        (["sample", RED, "--device", "cuda:99"], "there is no device cuda:99"),
        (["evaluate", "--device", "gpu"], "unknown device 'gpu': one of auto, cuda"),
        (["walk", RED, "--device", "cpu:0x"], "unknown device"),
        (["replay", "ours.png", "--device", "tpu"], "unknown device"),
        (["compare", "mini", "--out", "c", "--device", "cuda:99"], "there is no device cuda:99"),
        (["sample", RED, "--weights", "gone"], "there is no weights file or run folder gone"),
    ],
)
def test_it_is_known_before_the_work(args, said, fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("folder", "folder.png", "theirs"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "captions.txt").write_text(RED)
    picture = Image.fromarray(np.zeros((4, 4, 3), np.uint8))
    picture.save("theirs.png")
    save_png(picture, "ours.png", {"checkpoint": "mini"})
    torch.save({"model": {}}, "theirs.pth")
    (tmp_path / "theirs.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    (tmp_path / "theirs" / "results.json").write_text("{}")
    (tmp_path / "theirs" / "comparison.csv").write_text("model,mine\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert said in fails(*args)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_full_disk_and_a_read_only_folder_are_known(tmp_path, monkeypatch):
    check_folder(tmp_path / "new" / "deeper")
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
        with pytest.raises(OSError, match="its disk has 1,000 left"):
            check_target(tmp_path / "x.png")

    def refused(**_):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(files.tempfile, "TemporaryFile", refused)
        with pytest.raises(OSError, match=f"can't write to {tmp_path}: Permission denied"):
            check_target(tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_devices():
    assert pick_device("cpu").type == "cpu" and pick_device().type in ("cpu", "cuda", "mps")
    for name in ("", "cpu:", "cpu:1", "cuda:-1", "cuda:x", "xpu", "CPU"):
        with pytest.raises(ConfigError, match="device"):
            pick_device(name)


@pytest.mark.parametrize(
    ("side", "settings", "said"),
    [
        (64, {}, "this one has 8 x 8, and maps of"),  # its own 64 pixels in patches of 8
        (56, {"prompt_layers": 1}, "clip.prompt_layers = 1 is not what"),
        (56, {"taps": (0, 1)}, "clip.taps = "),
    ],
)
def test_an_export_that_nobody_could_read_back_is_refused(side, settings, said, tmp_path):
    model = {"channels": 4, "noise_dim": 8, "code_channels": 8, "disc_channels": 16, "head_channels": 8}
    config = build_config({"clip": {"convention": "reference"}, "model": model, "train": {"recipe": "paper"}})
    clip = CLIP(16, side, 4, 64, 8, 77, 49408, 64, 1, 1).float()
    networks = make_system(ClipBridge(clip, "reference", **settings), config).eval()
    bridge = networks.generator.bridge
    published = Published(config, bridge, networks.generator, networks.discriminator, networks.head)
    with pytest.raises(WeightsError, match=said):
        export_reference(published, tmp_path / "state_epoch_001.pth")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- what is there already


def test_a_folder_of_others_becomes_no_run(tmp_path, tiny_config):
    for name, content in (("config.json", '{"architectures": ["CLIPModel"]}'), ("config.json", "[1"),
                          ("generator.safetensors", "mine")):  # fmt: skip
        folder = tmp_path / "theirs"
        folder.mkdir()
        (folder / name).write_text(content)
        for allowed in (False, True):
            with pytest.raises(ConfigError, match=f"{name} is "):
                Run(folder, tiny_config(), "cpu", progress=False, allow_changes=allowed)
        assert [path.name for path in folder.iterdir()] == [name] and (folder / name).read_text() == content
        shutil.rmtree(folder)


def test_a_disk_without_room_for_checkpoints_stops_no_run_half_way(tmp_path, tiny_config, monkeypatch):
    usage = namedtuple("usage", "total used free")
    run = Run(tmp_path / "run", tiny_config(train__max_steps=2), "cpu", progress=False)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 2 * 10**6))
    with pytest.raises(OSError, match=r"checkpoints: it takes [\d,]+ bytes, and its disk has 2,000,000 left"):
        next(run.train())
    assert not run.history()


def test_what_we_wrote_is_ours(tmp_path):
    picture = Image.fromarray(np.zeros((4, 4, 3), np.uint8))
    ours, theirs = tmp_path / "ours.png", tmp_path / "theirs.png"
    save_png(picture, ours, {"caption": "é", "checkpoint": "mini"})
    picture.save(theirs)
    save_weights(tmp_path / "w.safetensors", "galiplib generator", {"a": torch.zeros(2)}, {})
    write_json(tmp_path / "results.json", {"weights": "mini", "errors": {}, "left_out": {}})
    torch.save({"model": {}, "writer": "galiplib"}, tmp_path / "ours.pth")
    torch.save({"model": {}}, tmp_path / "theirs.pth")
    found = {path.name: is_ours(path) for path in tmp_path.iterdir()}
    assert found == {
        "ours.png": True, "theirs.png": False, "w.safetensors": True, "results.json": True, "ours.pth": True,
        "theirs.pth": False,
    }  # fmt: skip
    assert check_target(theirs, force=True) == theirs and check_target(ours) == ours


def test_names_that_nobody_gave_overwrite_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for seed in (0, 7):
        galip(monkeypatch, "sample", RED, "--count", 1, "--seed", seed)
    names = ["a_red_bird_with_black_wings.png", "a_red_bird_with_black_wings_2.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert free_name(tmp_path / names[0]).name == "a_red_bird_with_black_wings_3.png"
    Image.new("RGB", (4, 4)).save("mine.png")
    galip(monkeypatch, "sample", RED, "--count", 1, "--out", "mine.png", "--force")
    assert is_ours("mine.png")
    galip(monkeypatch, "walk", RED, "--to-seed", 2, "--steps", 2)
    assert is_ours("a_red_bird_with_black_wings_walk.gif")


def test_one_caption_twice_makes_two_pictures(tmp_path, monkeypatch, capsys):
    path = tmp_path / "captions.txt"
    path.write_text(f"{RED}\na blue bird\n{RED}\n")
    galip(monkeypatch, "sample", "--file", path, "--seed", 3)
    made = sorted((tmp_path / "captions").glob("0*.png"))
    assert [one.stem[-1] for one in made] == ["3", "3", "4"] and made[0].read_bytes() != made[2].read_bytes()
    shutil.rmtree(tmp_path / "captions")
    (tmp_path / "t.csv").write_text(f"caption,seed\n{RED},5\n{RED},5\n")
    galip(monkeypatch, "sample", "--file", tmp_path / "t.csv")  # as it says
    assert len(list((tmp_path / "t").glob("0*_seed5.png"))) == 2
