"""The page that draws (site/page), in a real browser: its pictures are those of Python, and what it says when it can't.

Screenshots go to outputs/screenshots, or where GALIP_SCREENSHOTS says.
"""

import gzip
import json
import os
import sys
import threading
import warnings
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from test_browser import CHROMIUM, CONTRAST, PATIENCE, PIXELS, ROOT, chromium, open_page, playwright

from galiplib.clip.bridge import ClipBridge
from galiplib.clip.files import load_clip
from galiplib.images import to_uint8
from galiplib.sampling.provenance import read_png
from galiplib.sampling.recipe import arc, noise_of_seeds
from galiplib.sampling.sample import replay

sys.path.insert(0, str(ROOT / "site" / "page"))
import make_page  # noqa: E402

playwright.expect.set_options(timeout=PATIENCE)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium"),
]
TEXTS = [
    "header p",
    "label",
    ".hint",
    "figcaption span",
    "#status",
    "#draw",
    "#dice",
    ":checked + span",
    "a:not([hidden])",
]
PHONE = {"width": 360, "height": 740}


# ---------------------------------------------------------------- the folder, and a page of it


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    try:
        return make_page.build_page(tmp_path_factory.mktemp("page") / "page", ["mini"], home="../index.html")
    except make_page.PageError as error:
        pytest.skip(str(error))


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address(folder):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


class Page:
    """The page as a person would use it."""

    def __init__(self, page, address, link=""):
        self.page, self.asked = page, []
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto(f"{address}/{link}")

    def says(self, text, where="#status"):
        playwright.expect(self.page.locator(where)).to_contain_text(text)

    def wait(self):
        """Until nothing is being drawn; -> the pixels of the pictures."""
        playwright.expect(self.page.locator("#pictures")).to_have_attribute("aria-busy", "false")
        return self.pixels()

    def pixels(self):
        return self.page.evaluate(PIXELS, "#pictures img")

    def again(self, act):
        act()
        return self.wait()

    def type(self, text, label="Caption"):
        field = self.page.get_by_label(label, exact=True)
        field.fill(text)
        return self.again(lambda: field.press("Enter"))

    def set(self, name, value):
        self.page.locator(f"#{name}").fill(str(value))

    def mode(self, name):
        return self.again(lambda: self.page.get_by_role("radio", name=name).check(force=True))

    def save(self, target, index=0):
        with self.page.expect_download() as caught:
            self.page.get_by_role("link", name="Save").nth(index).click()
        caught.value.save_as(target / caught.value.suggested_filename)
        return target / caught.value.suggested_filename

    def screenshot(self, name):
        folder = Path(os.environ.get("GALIP_SCREENSHOTS", ROOT / "outputs" / "screenshots"))
        folder.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=folder / f"page_{name}.png", full_page=True)


@contextmanager
def opened(browser, address, link="", **context):
    """A page, which may write no error to its console."""
    with open_page(browser, **context) as (page, errors):
        yield Page(page, address, link)
        assert not errors


@pytest.fixture(scope="module")
def one(browser, address):
    """A page for the tests that leave it usable."""
    with opened(browser, address) as page:
        assert len(page.wait()) == 4
        yield page


@pytest.fixture
def page(one):
    """With its controls as at the start, but for the drawn pictures."""
    one.page.get_by_role("radio", name="Pictures").check(force=True)
    for name, value in (("count", 2), ("truncation", 1), ("seed", 0)):
        one.set(name, value)
    one.type("a small red bird with black wings")
    return one


# ---------------------------------------------------------------- the same as in Python


def test_noise_is_that_of_torch(page):
    program = """async cases => {
      const { arc, noiseOfSeed } = await import("./noise.js");
      const noises = cases.map(([seed, size]) => [...noiseOfSeed(seed, size)]);
      return [noises, [...arc(noiseOfSeed(3, 100), noiseOfSeed(9, 100), 0.3)]];
    }"""
    cases = [(seed, size) for seed in (0, 1, 1234567, 2**32 - 1) for size in (16, 17, 31, 32, 64, 100, 512)]
    noises, between = page.page.evaluate(program, cases)
    for (seed, size), noise in zip(cases, noises, strict=True):
        torch.testing.assert_close(torch.tensor(noise), noise_of_seeds([seed], size)[0], rtol=0, atol=3e-6)
    torch.testing.assert_close(torch.tensor(between), arc(*noise_of_seeds([3, 9], 100), 0.3), rtol=0, atol=3e-6)


@pytest.mark.parametrize("name", ["mini", "photos64"])
def test_captions_are_read_as_python_reads_them(page, name):
    bridge = ClipBridge(load_clip(name))
    captions = [
        "a small red bird with black wings", "A  BIRD, with 2 wings!", "it's the bird's 'red' belly", "red-winged",
        "a “blue” bird’s wings", "a bluegreen\u200bbird", "ﬂying bird & co &amp; more", "a bird in a zoo", "naïve bird",
        "the superb fairywren's iridescent plumage", "a bird " + "red " * 40, "a 🐦 bird", "<b>red</b> bird",
        "a bird_red",
    ]  # fmt: skip
    program = """async ([vocabulary, length, captions]) => {
      const { BytePairs, Reader } = await import("./reader.js");
      const packed = (await fetch("merges.txt.gz")).body.pipeThrough(new DecompressionStream("gzip"));
      const reader = new Reader(new BytePairs((await new Response(packed).text()).split("\\n")), vocabulary, length);
      return captions.map(caption => [reader.read(caption).tokens, reader.unknown(caption)]);
    }"""
    read = page.page.evaluate(program, [bridge.model.vocabulary, bridge.context_length, captions])
    for caption, (tokens, unknown) in zip(captions, read, strict=True):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            wanted = bridge.tokenize(caption)[0].tolist()
        assert tokens == wanted[: len(tokens)] and not any(wanted[len(tokens) :]), caption
        told = {word for note in said for word in str(note.message).split(": ")[1].split(", ")}
        assert set(unknown) == told, caption


def test_a_saved_picture_is_made_again_in_python(page, tmp_path):
    def check(recipe, index=0):
        file = page.save(tmp_path, index)
        assert read_png(file)[0].settings == recipe
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a value in a thousand is rounded the other way
            again = to_uint8(replay(file).images)[0].astype(int)
        assert np.abs(again - np.asarray(Image.open(file).convert("RGB"))).max() < 2

    page.again(lambda: page.set("truncation", 0.7))
    check({"truncation": 0.7}, index=1)
    page.mode("Two captions")
    page.type("a large white bird at sunset", "Second caption")
    page.again(lambda: page.set("share", 0.3))
    check({"truncation": 0.7, "towards": "a large white bird at sunset", "share": 0.3})
    page.mode("Noise walk")
    page.again(lambda: page.set("turn", 0.4))
    check({"truncation": 0.7, "seed_b": 1, "turn": 0.4})


# ---------------------------------------------------------------- what a person does


def test_a_caption_is_typed_and_the_picture_changes(page):
    before = page.pixels()
    assert len(set(before)) == 2
    after = page.type("a blue bird with yellow wings at sunset")
    assert not set(before) & set(after)
    page.set("seed", 1)
    assert page.again(lambda: page.page.keyboard.press("Enter"))[0] == after[1]
    assert page.type("a small red bird with black wings")[0] == before[1]
    image = page.page.locator("#pictures img").first
    assert image.get_attribute("alt") == "a small red bird with black wings; seed 1, drawn by Mini birds"


def test_one_word_is_changed(page):
    page.mode("One word changed")
    assert page.page.locator("#word option").all_text_contents()[:2] == ["red", "black"]
    assert page.page.locator("#word").input_value() == "red"
    page.set("others", "blue, green, red")
    pictures = page.again(lambda: page.page.keyboard.press("Enter"))
    assert len(set(pictures)) == 3
    assert page.page.locator("figcaption span").all_text_contents() == ["red", "blue", "green"]
    page.screenshot("one_word")


def test_two_captions_and_a_way_there_and_back(page):
    page.mode("Two captions")
    seen = {page.again(lambda share=share: page.set("share", share))[0] for share in (0, 0.5, 1)}
    assert len(seen) == 3
    page.page.get_by_role("button", name="There and back").click()
    page.page.wait_for_function("() => document.querySelector('#share').value === '0.1'")
    page.page.get_by_role("button", name="Stop").click()
    playwright.expect(page.page.get_by_role("button", name="There and back")).to_be_visible()


def test_completion_by_keyboard(page):
    field = page.page.get_by_role("combobox", name="Caption")
    field.fill("a red bird with bl")
    options = page.page.get_by_role("listbox", name="Words").get_by_role("option")
    assert options.all_text_contents() == ["black", "blue"]
    field.press("ArrowDown")
    field.press("ArrowDown")
    assert field.get_attribute("aria-activedescendant") == options.nth(1).get_attribute("id")
    field.press("Enter")
    assert field.input_value() == "a red bird with blue "
    playwright.expect(options).to_have_count(0)
    page.page.keyboard.type("w")
    assert options.all_text_contents() == ["with", "white", "wings"]
    field.press("Escape")
    playwright.expect(options).to_have_count(0)


def test_everything_has_a_name_and_is_reached_by_keyboard(page):
    controls = page.page.locator("input:visible, select:visible, button:visible, a:visible")
    for control in controls.all():
        name = control.evaluate("c => c.labels?.[0]?.textContent || c.ariaLabel || c.textContent")
        assert name.strip(), control.evaluate("c => c.outerHTML")
    page.page.get_by_label("Caption", exact=True).focus()
    reached = []
    for _ in range(20):
        page.page.keyboard.press("Tab")
        reached.append(page.page.evaluate("() => document.activeElement.id || document.activeElement.tagName"))
    assert {"draw", "A", "seed", "dice", "count", "truncation", "generator"} <= set(reached)


def test_unknown_words_and_empty_captions_are_told(page):
    field = page.page.get_by_label("Caption", exact=True)
    field.fill("a red Zebra with Stripes")
    page.says("Words that this model never saw are left out: Zebra, Stripes.", "#unread")
    before = page.pixels()
    for caption, said in (("  ", "The caption is empty: write what the picture should show."),
                          ("zebra", "This model knows none of the words of “zebra”.")):  # fmt: skip
        field.fill(caption)
        field.press("Enter")
        page.says(said, "#error")
        assert page.pixels() == before
    field.fill('<img src=x onerror="document.title=1"> a red bird')
    page.again(lambda: field.press("Enter"))
    assert page.page.title() == "Draw by caption"
    page.set("seed", -1)
    page.page.keyboard.press("Enter")
    page.says("A seed is a whole number from 0 to 4294967295.", "#error")


def test_a_link_holds_the_recipe(browser, address, page):
    page.set("seed", 5)
    page.again(lambda: page.page.keyboard.press("Enter"))
    page.mode("One word changed")
    page.page.get_by_label("The word that changes").select_option("black")
    page.set("others", "pink, white")
    page.again(lambda: page.page.keyboard.press("Enter"))
    link = page.page.evaluate("() => location.hash")
    with opened(browser, address, link) as other:
        assert len(other.wait()) == 3 and other.pixels() == page.pixels()


# ---------------------------------------------------------------- where it runs, and where it can't


def test_nothing_is_asked_outside_and_it_draws_offline(browser, address):
    with opened(browser, address) as page:
        page.wait()
        assert all(url.startswith((address, "blob:", "data:")) for url in page.asked), page.asked
        assert not page.page.context.cookies()
        page.page.context.set_offline(True)
        assert page.type("a green bird in the snow")


def test_wide(browser, address):
    with opened(browser, address, "#count=8") as page:
        page.wait()
        for theme in ("light", "dark"):
            page.page.emulate_media(color_scheme=theme)
            assert min(page.page.evaluate(CONTRAST, TEXTS)) > 4.5
            page.screenshot(f"wide_{theme}")


def test_on_a_phone(browser, address):
    with opened(browser, address, viewport=PHONE, has_touch=True) as page:
        page.wait()
        for name in ("Pictures", "One word changed", "Two captions", "Noise walk"):
            page.page.get_by_role("radio", name=name).check(force=True)
            assert page.page.evaluate("() => document.documentElement.scrollWidth") <= PHONE["width"]
        page.mode("Two captions")
        page.screenshot("phone_two_captions")
        page.mode("Pictures")
        page.screenshot("phone")


def test_opened_as_a_file(browser, folder):
    with open_page(browser) as (page, _):
        page.goto((folder / "index.html").as_uri())
        playwright.expect(page.get_by_role("alert")).to_contain_text("python -m http.server")
        playwright.expect(page.get_by_role("button", name="Draw")).to_be_hidden()


def test_without_simd(browser, address):
    with open_page(browser) as (page, errors):
        page.add_init_script("WebAssembly.validate = () => false")
        page.goto(address)
        playwright.expect(page.get_by_role("alert")).to_contain_text("no WebAssembly with SIMD")
        assert not errors


def answering(answer):
    return lambda route: route.fulfill(**answer)


def test_weights_that_do_not_arrive(browser, address, folder):
    foreign = b"x" * (folder / "mini.planes.gz").stat().st_size
    with open_page(browser) as (page, _):
        again = page.get_by_role("button", name="Draw").click
        for answer, said in (
            ({"status": 404}, "the server says 404"),
            ({"body": b"x" * 1000}, "1000 bytes of"),
            ({"body": foreign}, "mini.planes.gz can't be opened"),
        ):
            page.route("**/mini.planes.gz", answering(answer))
            if page.url == "about:blank":
                mine = Page(page, address)
            else:
                again()
            mine.says(said, "#error")
            page.unroute_all()
        assert mine.again(again)


# ---------------------------------------------------------------- how it is built


def test_the_folder_is_small_and_refers_to_nothing_outside(folder):
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    assert sum(sizes.values()) < 11e6, sizes
    for file in folder.glob("*.[jhc]*s*"):
        assert file.name == "ort.js" or "://" not in file.read_text().replace("http://localhost:8000", ""), file
    assert json.loads((folder / "models.json").read_text())["home"] == "../index.html"


def test_what_generators_share_is_written_once_and_merged_again(tmp_path):
    weights = {name: numpy_helper.from_array(np.float16(values), name) for name, values in
               {"eye": [1, 2], "first": [3, 4], "second": [5, 6]}.items()}  # fmt: skip
    models = [make_page.ModelProto(graph={"name": own, "initializer": [weights["eye"], weights[own]]})
              for own in ("first", "second")]  # fmt: skip
    parts = [*models, make_page.taken_out(models)]
    assert [[w.name for w in part.graph.initializer] for part in parts] == [["first"], ["second"], ["eye"]]
    bodies = []
    for part in parts:
        entry = make_page.write_packed(part, tmp_path / "part.planes.gz")
        content = gzip.decompress((tmp_path / entry["file"]).read_bytes())
        body = bytearray(len(content))
        body[::2], body[1::2] = content[: len(body[::2])], content[len(body[::2]) :]
        bodies.append(bytes(body))
    whole = make_page.ModelProto.FromString(bodies[1] + bodies[2])
    assert whole.graph.name == "second" and sorted(w.name for w in whole.graph.initializer) == ["eye", "second"]


def test_words_are_words():
    words = make_page.words_of(load_clip("photos64").vocabulary)
    assert {"red", "a", "petals", "beak"} <= set(words) and not {"ing", "tion", "ly", ",", "<|endoftext|>"} & set(words)


def test_what_stands_in_the_way_of_a_page_is_told(tmp_path, monkeypatch):
    with pytest.raises(make_page.PageError, match="no generator of the page: maxi; there are mini"):
        make_page.build_page(tmp_path / "page", ["maxi"])
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(make_page.PageError, match="is there already and is no page"):
        make_page.build_page(tmp_path, ["mini"])
    monkeypatch.setattr(make_page, "BUILD", tmp_path / "build")
    monkeypatch.setattr(make_page.shutil, "which", lambda _: None)
    with pytest.raises(make_page.PageError, match="comes by npm, and there is none"):
        make_page.build_page(tmp_path / "page", ["mini"])
    assert not (tmp_path / "page").exists()
