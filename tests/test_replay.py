"""Pictures that say where they come from, made again from their files; folders of pictures; animations."""

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from galiplib import Run, WeightsError, load_generator, sample
from galiplib.checkpoints.store import find_checkpoints
from galiplib.images import save_png, to_uint8
from galiplib.sampling import folder as batches
from galiplib.sampling.animation import encode_animation, save_animation
from galiplib.sampling.folder import read_captions, sample_file
from galiplib.sampling.provenance import Origin, file_name, fingerprint, read_png, save_picture
from galiplib.sampling.recipe import Recipe
from galiplib.sampling.sample import collect, interpolate, replay

RED, BLUE = "a red bird with black wings", "a blue bird in the snow"


@pytest.fixture(scope="module")
def mini():
    return load_generator()


@pytest.fixture(scope="module")
def origin(mini):
    return Origin.of(mini, "mini")


@pytest.fixture
def trained(tiny_config, tmp_path):
    """A run folder of two steps."""
    config = tiny_config(train__max_steps=2, train__evaluate_every=0)
    run = Run(tmp_path / "runs" / "tiny", config, "cpu", progress=False)
    for _ in run.train():
        pass
    return run.folder


# ---------------------------------------------------------------- replay


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(RED, 7),
        Recipe(RED, 7, late=BLUE, late_from=2),
        Recipe(RED, 7, truncation=0.4, towards=BLUE, share=1.25),
        Recipe("two 小鳥 <b>red</b> birds 🐦", 2**32 - 1, seed_b=5, turn=0.3),
    ],
)
@pytest.mark.filterwarnings("ignore:words this small CLIP never saw")
def test_a_picture_is_made_again_from_its_file(mini, origin, tmp_path, recipe):
    together = collect(mini, mini.bridge, [Recipe(BLUE, 1), recipe, Recipe(RED, 9)])
    png = save_picture(together.images[1], tmp_path / file_name(recipe), recipe, origin)
    with Image.open(png) as picture:
        before = np.asarray(picture)
        assert picture.text["caption"] == recipe.caption and picture.text["checkpoint"] == "mini"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "(?!words)")
        again = replay(png)
    assert np.array_equal(to_uint8(again.images)[0], before) and again.recipes == [recipe]


def test_replay_compares_the_weights(mini, trained, tmp_path):
    for ema in (True, False):
        generator = load_generator(trained, ema=ema)
        made = sample(generator, generator.bridge, RED)
        png = tmp_path / f"{ema}.png"
        save_picture(made.images[0], png, made.recipes[0], Origin.of(generator, trained, ema))
        assert torch.equal(replay(png).images, made.images)
    assert fingerprint(load_generator(trained)) != fingerprint(load_generator(trained, ema=False))
    moved = trained.rename(tmp_path / "moved")
    with pytest.raises(WeightsError, match=r"runs/tiny"):
        replay(png)
    assert torch.equal(replay(png, checkpoint=moved).images, made.images)
    with pytest.raises(WeightsError, match=r"the weights in .*moved are not those that made .*True.png"):
        _other_weights(moved)
        replay(tmp_path / "True.png", checkpoint=moved)


def _other_weights(run):
    path = max((run / "checkpoints").glob("step_*.pt"))
    state = torch.load(path, weights_only=True)
    state["networks"]["ema.to_rgb.bias"] += 0.01
    torch.save(state, path)


def test_replay_says_what_is_wrong_with_a_file(mini, origin, tmp_path):
    made = sample(mini, mini.bridge, RED)
    plain = tmp_path / "plain.png"
    Image.fromarray(to_uint8(made.images)[0]).save(plain)
    with pytest.raises(ValueError, match=r"plain.png doesn't say how it was made \(no caption, seed"):
        replay(plain)
    text = tmp_path / "text.png"
    text.write_text("no picture")
    with pytest.raises(ValueError, match="text.png is no picture"):
        replay(text)
    with pytest.raises(FileNotFoundError, match="absent.png"):
        replay(tmp_path / "absent.png")
    metadata = origin.metadata(made.recipes[0])
    for key, value in {"seed": "x", "settings": '{"truncate": 1}', "caption": " "}.items():
        path = save_png(made.images[0], tmp_path / "bad.png", {**metadata, key: value})
        with pytest.raises(ValueError, match="bad.png doesn't hold a valid recipe"):
            read_png(path)


def test_an_edited_picture_is_noticed(mini, origin, tmp_path):
    made = sample(mini, mini.bridge, RED)
    with pytest.warns(UserWarning, match=r"values differ from .*, by \d+ of 255 at most"):
        replay(save_picture(-made.images[0], tmp_path / "a.png", made.recipes[0], origin))
    with pytest.warns(UserWarning, match="was resized since: made again at 56 x 56"):
        replay(save_picture(made.images[0][:, :40], tmp_path / "b.png", made.recipes[0], origin))


def test_a_picture_is_never_written_over_another(mini, origin, tmp_path):
    made = sample(mini, mini.bridge, RED, count=2)
    path = save_picture(made.images[0], tmp_path / "a.png", made.recipes[0], origin)
    before = path.stat().st_mtime_ns
    save_picture(made.images[0], path, made.recipes[0], origin)  # the same: nothing to do
    assert path.stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match=r"a.png is there already and holds something else \(seed\)"):
        save_picture(made.images[1], path, made.recipes[1], origin)
    (tmp_path / "b.png").write_bytes(b"something of somebody's")
    with pytest.raises(FileExistsError, match=r"b.png is there already"):
        save_picture(made.images[0], tmp_path / "b.png", made.recipes[0], origin)


def test_file_names_tell_recipes_apart():
    names = {
        file_name(recipe)
        for recipe in (
            Recipe(RED), Recipe(RED, 1), Recipe(RED, truncation=0.5), Recipe(RED, towards=BLUE, share=0.5),
            Recipe("小鳥"), Recipe("赤い"), Recipe("../../etc/passwd"), Recipe("x" * 500),
        )
    }  # fmt: skip
    assert len(names) == 8 and "a_red_bird_with_black_wings_seed0.png" in names
    assert all(len(name) < 100 and name.replace("_", "").replace(".", "").isalnum() for name in names)


def test_checkpoints_are_found(trained, tmp_path):
    (tmp_path / "runs" / "state_epoch_001.pth").write_bytes(b"")
    assert find_checkpoints(tmp_path) == [trained, tmp_path / "runs" / "state_epoch_001.pth"]
    assert find_checkpoints(tmp_path / "absent") == []


def test_raw_weights_are_only_in_runs(tmp_path):
    with pytest.raises(WeightsError, match="holds one set of weights"):
        load_generator("mini", ema=False)


# ---------------------------------------------------------------- a file of captions


def test_a_file_of_captions_becomes_a_folder_and_is_gone_on_with(mini, origin, tmp_path, monkeypatch):
    listed = tmp_path / "captions.txt"
    listed.write_text(f"{RED}\n\n  {BLUE}  \n{RED}\n", encoding="utf-8-sig")
    recipes = read_captions(listed, count=2, seed=5)
    seeds = [(RED, 5), (RED, 6), (BLUE, 5), (BLUE, 6), (RED, 7), (RED, 8)]  # a caption's second line goes on with them
    assert [(r.caption, r.seed) for r in recipes] == seeds

    drawn = []

    def stopped_after_two(*arguments):
        for part in draw(*arguments):
            if len(drawn) == 2:
                raise KeyboardInterrupt
            drawn.append(part)
            yield part

    draw = batches.draw
    monkeypatch.setattr(batches, "draw", stopped_after_two)
    folder = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        sample_file(mini, mini.bridge, recipes, folder, origin, progress=False)
    assert len(_manifest(folder)) == 2 and not (folder / "sheet.png").exists()
    first = {path: path.stat().st_mtime_ns for path in folder.glob("*.png")}
    monkeypatch.setattr(batches, "draw", draw)
    sheet = sample_file(mini, mini.bridge, recipes, folder, origin, progress=False)
    lines = _manifest(folder)
    assert [line["caption"] for line in lines] == [r.caption for r in recipes]
    assert lines[3] == {
        "file": "0004_a_blue_bird_in_the_snow_seed6.png", "caption": BLUE, "seed": 6, "settings": {},
        "checkpoint": "mini", "weights": origin.weights, "ema": True, "precision": "fp32",
    }  # fmt: skip
    assert all(path.stat().st_mtime_ns == then for path, then in first.items()) and len(first) == 2
    whole = collect(mini, mini.bridge, recipes)
    for line, pixels in zip(lines, to_uint8(whole.images), strict=True):
        with Image.open(folder / line["file"]) as picture:
            assert np.array_equal(np.asarray(picture), pixels)
    with Image.open(sheet) as picture:
        assert picture.width > 6 * 112
    sample_file(mini, mini.bridge, [*recipes, Recipe("a bird")], folder, origin, progress=False)  # a longer list
    assert len(_manifest(folder)) == 7


def _manifest(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def test_a_csv_says_more(tmp_path):
    table = tmp_path / "c.csv"
    table.write_text(f'caption,seed,truncation,towards,share\n"{RED}, small",3,,,\n{BLUE},,0.5,{RED},1.5\n')
    assert read_captions(table, seed=9) == [
        Recipe(f"{RED}, small", 3), Recipe(BLUE, 9, truncation=0.5, towards=RED, share=1.5),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "caption,sede\nx,1\n", r"a.csv: unknown column 'sede'; known are caption, seed"),
        ("a.csv", "seed\n1\n", r"a.csv has no column 'caption'"),
        ("a.csv", "caption,seed\nx,1\n ,2\n", r"a.csv, line 3: the caption is empty"),
        ("a.csv", "caption,seed\nx,one\n", r"a.csv, line 2: seed is no number but 'one'"),
        ("a.csv", "caption,seed\nx,-1\n", r"a.csv, line 2: the seed must lie between 0"),
        ("a.csv", "caption\na red bird, black wings\n", r"a.csv, line 2: more cells than columns"),
        ("a.csv", "", r"a.csv has no column 'caption'"),
        ("a.txt", " \n\n", r"a.txt holds no caption"),
        ("a.txt", b"\xff\xfe\x00", r"a.txt, line 1: is no text in UTF-8"),
    ],
)
def test_a_file_that_holds_no_captions_is_refused_by_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read_captions(tmp_path / name)


def test_a_folder_is_never_written_over(mini, origin, tmp_path):
    recipes = [Recipe(RED), Recipe(BLUE)]
    sample_file(mini, mini.bridge, recipes, tmp_path / "a", origin, progress=False)
    with pytest.raises(FileExistsError, match=r"manifest.jsonl is of another list of captions \(it has 0001_a_red"):
        sample_file(mini, mini.bridge, recipes[::-1], tmp_path / "a", origin, progress=False)
    (tmp_path / "a" / "0002_a_blue_bird_in_the_snow_seed0.png").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="0002_a_blue_bird_in_the_snow_seed0.png is there already"):
        sample_file(mini, mini.bridge, recipes, tmp_path / "a", origin, progress=False)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "sheet.png").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="sheet.png is there already, but no manifest"):
        sample_file(mini, mini.bridge, recipes, tmp_path / "b", origin, progress=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="can't write .*file"):
        sample_file(mini, mini.bridge, recipes, tmp_path / "file", origin, progress=False)


# ---------------------------------------------------------------- animations


@pytest.fixture(scope="module")
def frames(mini):
    return interpolate(mini, mini.bridge, RED, BLUE, steps=4).images


def test_a_gif_plays_back_and_forth(frames, tmp_path):
    path = save_animation(frames, tmp_path / "walk.gif", fps=10, scale=2, comment=f"{RED} -> {BLUE}")
    with Image.open(path) as gif:
        assert gif.n_frames == 6 and gif.size == (112, 112) and gif.info["loop"] == 0 and gif.info["duration"] == 100
        assert gif.info["comment"] == f"{RED} -> {BLUE}".encode()
        shown = np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(gif)])
    drawn = to_uint8(frames).repeat(2, 1).repeat(2, 2)
    assert abs(shown[:4].astype(int) - drawn).mean() < 4 and np.array_equal(shown[5], shown[1])


def test_an_mp4_holds_the_frames(frames):
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    data = encode_animation(frames, "mp4", scale=4, bounce=False)
    command = [ffmpeg, "-loglevel", "error", "-i", "pipe:", "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:"]
    raw = subprocess.run(command, input=data, capture_output=True, check=True).stdout
    shown = np.frombuffer(raw, np.uint8).reshape(4, 224, 224, 3).astype(int)
    assert abs(shown - to_uint8(frames).repeat(4, 1).repeat(4, 2)).mean() < 6


def test_animations_say_what_is_wrong(frames, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="a gif or an mp4, not 'avi'"):
        save_animation(frames, tmp_path / "walk.avi")
    with pytest.raises(ValueError, match="at least 1, not 4, 0, 12"):
        encode_animation(frames, "gif", scale=0)
    with pytest.raises(FloatingPointError):
        encode_animation(frames * float("nan"), "gif")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ImportError, match="an MP4 needs imageio-ffmpeg"):
        encode_animation(frames, "mp4")
    assert not list(tmp_path.iterdir())
