"""The sampler panel, clicked as a person would, without a browser."""

import html
import io
import warnings

import ipywidgets
import numpy as np
import pytest
import torch
from PIL import Image

from galiplib import minibirds, widgets
from galiplib.clip_bridge import ClipBridge
from galiplib.clip_training import new_clip, vocabulary_of
from galiplib.config import ModelConfig
from galiplib.generator import Generator

NAMES = ("examples", "caption", "seed", "count", "draw", "image", "status", "log")
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
    captions = [*sum(minibirds.build("train", 24, size=32).captions, []), *widgets.EXAMPLES]
    bridge = ClipBridge(new_clip(GEOMETRY, vocabulary_of(captions)))
    config = ModelConfig(channels=4, noise_dim=8, image_size=32, code_channels=8, fusion_blocks=1)
    generator = Generator(bridge, config)
    for parameter in generator.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.8 / parameter[0].numel() ** 0.5)
    made = generator(torch.randn(16, 8), torch.randn(16, 32))
    generator.to_rgb.weight.data *= 0.4 / made.std()
    return generator


@pytest.fixture
def panel(generator):
    return widgets.sampler_panel(generator, generator.bridge, checkpoint="mini <1>")


def everything(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from everything(child)


def find(panel, name):
    found = [widget for widget in everything(panel) if f"sampler-{name}" in widget._dom_classes]
    assert len(found) == 1, name
    return found[0]


def text(panel):
    """What the status shows as text, and the HTML around it is the panel's own."""
    value = find(panel, "status").value
    assert value.count("<") == 2 and value.startswith("<span ") and value.endswith("</span>")
    return html.unescape(value.partition(">")[2].removesuffix("</span>"))


def draw(panel, **values):
    for name, value in values.items():
        find(panel, name).value = value
    find(panel, "draw").click()
    assert not find(panel, "draw").disabled
    return find(panel, "image").value


def test_the_panel_starts_with_a_drawing(panel):
    assert isinstance(panel, ipywidgets.VBox)
    for name in NAMES:
        find(panel, name)
    picture = Image.open(io.BytesIO(find(panel, "image").value))
    assert picture.size == (4 * (6 * 32 + 6) + 6, 6 * 32 + 2 * 6)
    assert picture.text == {"caption": widgets.EXAMPLES[0], "seed": "0", "checkpoint": "mini <1>"}
    assert text(panel).startswith(f"drawing 1: {widgets.EXAMPLES[0]} · seeds 0 to 3 · ")
    assert text(panel).endswith(" · mini <1>")


def test_the_seed_decides_the_bytes(panel):
    first = draw(panel, seed=5)
    other = draw(panel, seed=6)
    assert other != first
    pixels = [np.asarray(Image.open(io.BytesIO(data))).astype(int) for data in (first, other)]
    assert abs(pixels[0] - pixels[1]).max() > 10  # not only the metadata
    assert draw(panel, seed=5) == first
    assert text(panel).startswith("drawing 4: ")


def test_caption_and_count_are_obeyed(panel):
    first = draw(panel, count=1)
    assert Image.open(io.BytesIO(first)).size == (6 * 32 + 2 * 6, 6 * 32 + 2 * 6)
    assert "seed 0 ·" in text(panel)
    assert draw(panel, caption="a purple bird in the sky") != first
    assert Image.open(io.BytesIO(draw(panel, count=9))).height == 3 * (6 * 32 + 6) + 6


def test_an_example_goes_into_the_caption(panel):
    find(panel, "examples").value = widgets.EXAMPLES[2]
    assert find(panel, "caption").value == widgets.EXAMPLES[2]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"caption": " \n "}, "the caption is empty: write what the picture should show"),
        ({"caption": "zzz qqq"}, "knows none of the words"),
        ({"seed": -3}, "the seed must lie between 0 and 4294967295, not -3"),
    ],
)
def test_errors_are_shown_and_the_panel_goes_on(panel, values, message):
    before = find(panel, "image").value
    assert draw(panel, **values) == before
    assert message in text(panel) and "#b3261e" in find(panel, "status").value
    assert draw(panel, caption="a blue bird", seed=9) != before
    assert "drawing 2: a blue bird" in text(panel)


def test_an_unexpected_error_leaves_its_trace(panel, monkeypatch, capsys):
    def explode(*_, **__):
        raise RuntimeError("out of <memory>")

    monkeypatch.setattr(widgets, "sample", explode)
    draw(panel)
    assert text(panel) == "RuntimeError: out of <memory>"
    assert "in explode" in capsys.readouterr().err  # in a notebook, the log's


def test_html_in_a_caption_is_text_and_unknown_words_are_noted(panel):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the warning goes into the panel, not past it
        draw(panel, caption='<img src=x onerror="alert(1)"> bird & <b>red</b>')
    assert '<img src=x onerror="alert(1)"> bird & <b>red</b>' in text(panel)
    assert "note: words this small CLIP never saw are left out: " in text(panel)
    assert "alert" in text(panel).partition("note: ")[2]


def test_a_panel_without_examples(generator):
    panel = widgets.sampler_panel(generator, generator.bridge, examples=())
    assert find(panel, "examples").disabled
    assert "the caption is empty" in text(panel)
