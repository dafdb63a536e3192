"""The sampler panel, clicked as a person would, without a browser."""

import asyncio
import base64
import html
import io
import re
import threading
import warnings
import zipfile

import ipywidgets
import numpy as np
import pytest
import torch
from PIL import Image

from galiplib import Run, load_generator
from galiplib.clip.bridge import ClipBridge
from galiplib.clip.training import new_clip, vocabulary_of
from galiplib.config import GalipConfig
from galiplib.data import minibirds
from galiplib.images import to_uint8
from galiplib.panel import results as panel_drawings
from galiplib.panel import sampler
from galiplib.panel.jobs import Jobs
from galiplib.sampling.sample import replay, sample
from galiplib.systems.galip import Generator

GEOMETRY = dict(
    embed_dim=32,
    image_resolution=32,
    vision_layers=2,
    vision_width=64,
    vision_patch_size=8,
    context_length=24,
    transformer_width=64,
    transformer_heads=1,
    transformer_layers=1,
)


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    captions = [*sum(minibirds.build("train", 24, size=32).captions, []), *sampler.EXAMPLES]
    bridge = ClipBridge(new_clip(GEOMETRY, vocabulary_of(captions)))
    config = GalipConfig(channels=4, noise_dim=8, image_size=32, code_channels=8, fusion_blocks=1)
    generator = Generator(bridge, config)
    for parameter in generator.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.8 / parameter[0].numel() ** 0.5)
    made = generator(torch.randn(16, 8), torch.randn(16, 32))
    generator.to_rgb.weight.data *= 0.4 / made.std()
    return generator


@pytest.fixture
def panel(generator, tmp_path):
    return sampler.sampler_panel(generator, "mini <1>", folder=tmp_path)


def everything(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from everything(child)


def all_of(panel, name):
    return [widget for widget in everything(panel) if f"sampler-{name}" in widget._dom_classes]


def find(panel, name):
    found = all_of(panel, name)
    assert len(found) == 1, name
    return found[0]


def text(panel):
    """What the status shows as text; the HTML around it is the panel's own."""
    value = find(panel, "status").value
    assert value.count("<") == 2 and value.startswith("<div role=") and value.endswith("</div>")
    return html.unescape(value.partition(">")[2].removesuffix("</div>"))


def is_error(panel):
    return "sampler-error" in find(panel, "status").value


def pictures(panel, view="pictures"):
    """The pictures of a view as arrays (H, W, 3)."""
    found = re.findall(r'<img[^>]*src="data:image/\w+;base64,([^"]+)"', find(panel, view).value)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int) for data in found]


def draw(panel, **values):
    for name, value in values.items():
        find(panel, name).value = value
    find(panel, "draw").click()
    return pictures(panel)


def test_the_panel_starts_with_a_drawing(panel, generator):
    assert isinstance(panel, ipywidgets.VBox)
    made = sample(generator, generator.bridge, sampler.EXAMPLES[0], count=4)
    assert np.array_equal(pictures(panel), to_uint8(made.images))
    assert text(panel).startswith(f"drawing 1: {sampler.EXAMPLES[0]} · seeds 0 to 3 · ")
    assert text(panel).endswith(" · mini <1>")
    assert find(panel, "cancel").disabled and len(find(panel, "history").children) == 1


def test_the_seed_decides_the_pictures(panel):
    first, other = draw(panel, seed=5), draw(panel, seed=6)
    assert abs(first[0] - other[0]).max() > 10
    assert np.array_equal(draw(panel, seed=5), first) and np.array_equal(first[1], other[0])
    assert text(panel).startswith("drawing 4: ")


def test_caption_count_and_truncation_are_obeyed(panel):
    first = draw(panel, count=1)
    assert len(first) == 1 and "seed 0 ·" in text(panel)
    assert not np.array_equal(draw(panel, caption="a purple bird in the sky"), first)
    assert len(draw(panel, count=9)) == 9
    same = draw(panel, truncation=0)
    assert all(np.array_equal(picture, same[0]) for picture in same)


def test_examples_dice_and_enter_draw_at_once(panel):
    find(panel, "examples").value = sampler.EXAMPLES[2]
    assert find(panel, "caption").value == sampler.EXAMPLES[2] and text(panel).startswith("drawing 2: this green")
    assert find(panel, "examples").value == ""
    find(panel, "roll").click()
    assert text(panel).startswith("drawing 3: ")
    for name in ("caption", "towards"):
        find(panel, name)._handle_custom_msg({"event": "submit"}, [])
    assert text(panel).startswith("drawing 5: ")


def test_the_nearest_to_clip_are_shown_with_their_scores(panel):
    draw(panel, best=16, count=3)
    scores = [float(value) for value in re.findall(r"seed \d+ · (-?\d\.\d{3})", find(panel, "pictures").value)]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    assert "seeds 0 to 15" in text(panel)


def test_two_captions_are_mixed_and_walked(panel):
    find(panel, "tabs").selected_index = 1
    ends = []
    for share in (0.0, 1.0):
        find(panel, "share").value = share
        ends += pictures(panel, "mixture")
        assert text(panel).startswith("mixture: ")
    assert len(ends) == 2 and abs(ends[0] - ends[1]).max() > 10
    find(panel, "share").value, find(panel, "late").value = 0.0, 1
    assert find(panel, "late").max == 4
    styled = pictures(panel, "mixture")[0]
    assert all(abs(styled - end).max() > 2 for end in ends) and "from block 3 on" in text(panel)
    find(panel, "tabs").selected_index = 0
    assert np.array_equal(draw(panel, count=1)[0], ends[0])
    assert np.array_equal(draw(panel, caption=find(panel, "towards").value)[0], ends[1])
    for kind, mark in (("gif", b"GIF89a"), ("mp4", b"ftyp")):
        find(panel, "tabs").selected_index = 1
        find(panel, "frames").value, find(panel, "kind").value = 4, kind
        find(panel, "animate").click()
        assert " → " in text(panel) and not is_error(panel)
        link = all_of(panel, "download")[0].value
        data = base64.b64decode(re.search(r'base64,([^"]+)"', link)[1])
        assert mark in data[:12] and f'_walk.{kind}"' in link


def test_the_grid_has_a_row_a_caption(panel):
    find(panel, "tabs").selected_index = 2
    draw(panel, captions="a red bird\n\n a blue   bird \n", columns=3, seed=2)
    shown = pictures(panel, "grid")
    assert len(shown) == 6 and text(panel).startswith("drawing 2: 2 captions, 3 seeds each · seeds 2 to 4")
    assert re.findall(r'scope="(\w+)">([^<]*)<', find(panel, "grid").value) == [
        ("col", "seed 2"), ("col", "seed 3"), ("col", "seed 4"), ("row", "a red bird"), ("row", "a blue bird"),
    ]  # fmt: skip


def test_the_history_brings_back_keeps_and_downloads(panel, tmp_path):
    first = pictures(panel)
    draw(panel, caption="a purple bird in the sky", seed=7, count=1)
    assert len(find(panel, "history").children) == 2
    all_of(panel, "show")[1].click()  # the newest comes first
    assert np.array_equal(pictures(panel), first) and text(panel) == f"back: {sampler.EXAMPLES[0]}"
    assert (find(panel, "caption").value, find(panel, "seed").value) == (sampler.EXAMPLES[0], 0)
    for _ in range(2):
        all_of(panel, "keep")[1].click()
        assert text(panel) == f"kept: 4 files in {tmp_path / 'kept'}"
    files = sorted((tmp_path / "kept").iterdir())
    assert len(files) == 4 and np.array_equal(np.asarray(Image.open(files[0])), first[0])
    assert Image.open(files[1]).text["seed"] == "1"
    one, several = (entry.value for entry in all_of(panel, "download"))
    assert 'download="a_purple_bird_in_the_sky_seed7.png"' in one
    data = base64.b64decode(re.search(r'base64,([^"]+)"', several)[1])
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {f.name: f.read_bytes() for f in files}
    for seed in range(15):
        draw(panel, seed=seed)
    assert len(find(panel, "history").children) == sampler.HISTORY


def test_another_picture_of_the_same_name_gets_another_name(panel, tmp_path):
    (tmp_path / "kept").mkdir()
    draw(panel, count=1, caption="a bird")
    (tmp_path / "kept" / "a_bird_seed0.png").write_bytes(b"somebody's")
    all_of(panel, "keep")[0].click()
    assert text(panel).startswith("kept: a_bird_seed0_2.png in ")
    assert (tmp_path / "kept" / "a_bird_seed0.png").read_bytes() == b"somebody's"


def test_a_folder_that_cannot_be_written_is_named(panel, tmp_path):
    (tmp_path / "kept").write_text("a file")
    all_of(panel, "keep")[0].click()
    assert is_error(panel) and str(tmp_path / "kept") in text(panel)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"caption": " \n "}, "the caption is empty: write what the picture should show"),
        ({"caption": "zzz qqq"}, "knows none of the words"),
        ({"seed": -3}, "the seed must lie between 0 and 4294967295, not -3"),
    ],
)
def test_errors_are_shown_and_the_panel_goes_on(panel, values, message):
    before = find(panel, "pictures").value
    draw(panel, **values)
    assert find(panel, "pictures").value == before
    assert message in text(panel) and is_error(panel)
    draw(panel, caption="a blue bird", seed=9)
    assert find(panel, "pictures").value != before
    assert "drawing 2: a blue bird" in text(panel) and not is_error(panel)


def test_empty_second_captions_and_grids_are_errors(panel):
    find(panel, "tabs").selected_index, find(panel, "towards").value = 1, " "
    for act in (find(panel, "animate").click, find(panel, "draw").click):
        act()
        assert "the second caption is empty" in text(panel) and is_error(panel)
    find(panel, "tabs").selected_index = 2
    draw(panel, captions=" \n")
    assert "no caption" in text(panel) and is_error(panel)


def test_an_unexpected_error_leaves_its_trace(panel, monkeypatch):
    def explode(*_, **__):
        raise RuntimeError("out of <memory>")

    monkeypatch.setattr(panel_drawings, "draw", explode)
    draw(panel)
    assert text(panel) == "RuntimeError: out of <memory>"
    assert "in explode" in find(panel, "log").outputs[0]["text"]


def test_html_in_a_caption_is_text_and_unknown_words_are_noted(panel):
    nasty = '<img src=x onerror="alert(1)"> bird & <b>red</b>'
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the warning goes into the panel, not past it
        draw(panel, caption=nasty)
    assert nasty in text(panel)
    assert "note: words this small CLIP never saw are left out: " in text(panel)
    for widget in everything(panel):
        if isinstance(widget, ipywidgets.HTML):
            assert "<img src=x" not in widget.value and "<b>" not in widget.value


def test_a_caption_of_500_words_is_cut_with_a_notice(panel):
    draw(panel, caption="a red bird with black wings\n" * 83, count=1)
    assert "note: the caption is longer than the 24 tokens that CLIP reads; left out: " in text(panel)


def test_a_panel_without_examples(generator, tmp_path):
    panel = sampler.sampler_panel(generator, examples=(), folder=tmp_path)
    assert find(panel, "examples").disabled
    assert "the caption is empty" in text(panel)


# ---------------------------------------------------------------- checkpoints


@pytest.fixture
def trained(tiny_config, tmp_path):
    """A run folder of two steps, and the configuration of a third one."""
    config = tiny_config(train__max_steps=2, train__evaluate_every=0)
    run = Run(tmp_path / "some" / "run", config, "cpu", progress=False)
    for _ in run.train():
        pass
    return run.folder, config


def test_the_checkpoint_is_chosen_in_the_panel(trained, tmp_path):
    folder, config = trained
    panel = sampler.sampler_panel(load_generator(), folder=tmp_path, training=config)
    choice = find(panel, "checkpoint")
    shipped = tuple((f"{name} (shipped)", name) for name in ("mini", "birds64", "flowers64"))
    assert choice.options == (*shipped, ("some/run", str(folder)))
    assert find(panel, "averaged").disabled
    shipped = pictures(panel)
    choice.value = str(folder)
    assert text(panel).endswith(str(folder)) and not np.array_equal(pictures(panel), shipped)
    averaged = pictures(panel)
    find(panel, "averaged").value = False
    assert text(panel).endswith(f"{folder} (in training)") and not np.array_equal(pictures(panel), averaged)
    all_of(panel, "keep")[0].click()
    png = min((tmp_path / "kept").iterdir())
    assert np.array_equal(to_uint8(replay(png).images)[0], pictures(panel)[0])

    find(panel, "train").click()  # two more steps' worth, in a folder of its own
    assert text(panel).endswith(str(tmp_path / "a_minute"))
    assert choice.value == str(tmp_path / "a_minute")

    folder.rename(tmp_path / "elsewhere")
    choice.value = str(folder)
    assert is_error(panel) and str(folder) in text(panel)
    assert choice.value == str(tmp_path / "a_minute")  # what is in use
    find(panel, "again").click()
    assert str(tmp_path / "elsewhere") in dict(choice.options).values()


# ---------------------------------------------------------------- jobs


def test_jobs_let_the_event_loop_live_and_can_be_cancelled():
    seen, go = [], threading.Event()

    def counting(number):
        for done in range(number):
            go.wait(10)
            yield done + 1, number
        return number

    async def scene():
        jobs = Jobs(lambda done, total: seen.append((done, total)), lambda busy: seen.append(busy))
        one = [seen.append, seen.append, lambda: seen.append("cancelled")]
        jobs.start("a", lambda: counting(1000), *one)
        jobs.start("b", lambda: counting(1), *one)  # waits, and is forgotten for the next of its kind
        jobs.start("b", lambda: counting(2), *one)
        while (1, 1000) not in seen:
            go.set()
            await asyncio.sleep(0.001)  # this runs while the job does
        jobs.cancel()
        while jobs.busy:
            await asyncio.sleep(0.001)
        assert seen.count("cancelled") == 2 and (1000, 1000) not in seen and seen[0] is True and seen[-1] is False
        seen.clear()
        jobs.start("a", lambda: counting(1), *one)
        jobs.start("b", lambda: counting(1), *one)
        jobs.start("b", lambda: counting(2), *one)
        jobs.start("c", lambda: 1 / 0, *one)
        while jobs.busy:
            await asyncio.sleep(0.001)
        assert seen[:6] == [True, (1, 1), 1, (1, 2), (2, 2), 2]
        assert isinstance(seen[6], ZeroDivisionError) and seen[7:] == [False]

    asyncio.run(scene())
