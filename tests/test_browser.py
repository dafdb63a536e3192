"""The sampling panel in a real browser: in JupyterLab, light and dark, and as Voila's page.

Screenshots go to outputs/screenshots, or where GALIP_SCREENSHOTS says.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium"),
]

ROOT = Path(__file__).parents[1]
GREEN = "a green bird in the snow"
PATIENCE = 180_000  # ms, for a machine that is busy with other things
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
).split()
SETTINGS = """{
  "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": false},
  "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
  "@jupyterlab/docmanager-extension:plugin": {"autosave": false}
}"""
READY = """() => {
  const kernel = window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel;
  return kernel && kernel.connectionStatus === "connected" && kernel.status === "idle";
}"""
PIXELS = """async selector => {
  const hashes = [];
  for (const image of document.querySelectorAll(selector)) {
    await image.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
    const digest = await crypto.subtle.digest("SHA-256", data);
    hashes.push(Array.from(new Uint8Array(digest)).join("."));
  }
  return hashes;
}"""


# contrast of texts with what is behind them, by the formula of WCAG; its level AA asks for 4.5
CONTRAST = """selectors => selectors.map(selector => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = colour => numbers(colour).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const element = document.querySelector(selector);
  let behind = element;
  while (numbers(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
  const [a, b] = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor].map(light);
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
})"""
TEXTS = [f".sampler {part}" for part in (".sampler-line", "figcaption", ".sampler-caption label")]


@contextmanager
def serving(command, folder, url):
    """A server as a process of its own, killed with its children at the end; its log is shown if it does not answer."""
    log = folder / "server.log"
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, env=environment(folder), start_new_session=True
        )
        try:
            end = time.monotonic() + PATIENCE / 1000
            while not answers(url):
                if process.poll() is not None or time.monotonic() > end:
                    pytest.fail(f"{command[:4]} does not serve {url}:\n{log.read_text()[-3000:]}")
                time.sleep(0.2)
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE / 1000) as page:
            return page.status == 200
    except OSError:
        return False


def environment(folder):
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_WORKSPACES_DIR",
             "JUPYTERLAB_SETTINGS_DIR", "IPYTHONDIR")  # fmt: skip
    own = {name: str(folder / name.lower()) for name in names}
    config = Path(own["JUPYTER_CONFIG_DIR"]) / "labconfig"
    config.mkdir(parents=True, exist_ok=True)
    (config / "default_setting_overrides.json").write_text(SETTINGS)
    return {**os.environ, **own, "PYTHONPATH": str(ROOT)}


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def chromium():
    with playwright.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def lab(tmp_path_factory, outputs):
    """The address of a JupyterLab with the panel's cells of notebook 07."""
    from galiplib.panel.app import NOTEBOOK, app_notebook

    folder, port = tmp_path_factory.mktemp("lab"), free_port()
    parameters = {"profile": "mini", "out": str(outputs), "minute_steps": 2}
    nbformat.write(app_notebook(NOTEBOOK, parameters), folder / "panel.ipynb")
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0", "--IdentityProvider.token=T", f"--ServerApp.root_dir={folder}",
        "--ServerApp.allow_root=True", "--LabApp.expose_app_in_browser=True",
    ]  # fmt: skip
    base = f"http://127.0.0.1:{port}"
    with serving(command, folder, f"{base}/api"):
        yield f"{base}/lab/tree/panel.ipynb?token=T&reset"


class Panel:
    """The panel in a page, as a person would use it."""

    def __init__(self, page, errors):
        self.page, self.errors, self.drawn = page, errors, 1
        self.own = page.locator(".sampler").first
        self.status = self.own.locator(".sampler-status [role=status]")
        self.draw = self.own.get_by_role("button", name="Draw", exact=True)
        self.caption = self.own.get_by_role("textbox", name="Caption", exact=True)

    def says(self, text):
        playwright.expect(self.status).to_contain_text(text, timeout=PATIENCE)

    def press(self, name):
        self.own.get_by_role("button", name=name, exact=True).first.click()

    def choose(self, label, option):
        self.own.get_by_label(label, exact=True).select_option(option)

    def number(self, name, value):
        """Type into the number of a field or a slider."""
        field = self.own.locator(f".sampler-{name} input[type=number], .sampler-{name} .widget-readout").first
        field.fill(str(value))
        field.press("Enter")

    def tab(self, name):
        self.own.get_by_role("tab", name=name).click()

    def pixels(self, view="pictures"):
        return self.page.evaluate(PIXELS, f".sampler-{view} img")

    def again(self, act):
        """Do something that draws, wait for the drawing; -> the pixels of the single pictures."""
        act()
        self.drawn += 1
        self.says(f"drawing {self.drawn}: ")
        return self.pixels()

    def theme(self, name):
        change = "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})"
        self.page.evaluate(change, name)

    def screenshot(self, name):
        folder = Path(os.environ.get("GALIP_SCREENSHOTS", ROOT / "outputs" / "screenshots"))
        folder.mkdir(parents=True, exist_ok=True)
        self.own.scroll_into_view_if_needed()
        self.page.screenshot(path=folder / f"{name}.png")


@contextmanager
def open_page(browser, **context):
    """A page 1,000 pixels wide, and what it writes to its console as errors."""
    with browser.new_context(**{"viewport": {"width": 1000, "height": 1200}, **context}) as opened:
        page = opened.new_page()
        page.set_default_timeout(PATIENCE)
        errors = []
        page.on("console", lambda message: message.type == "error" and errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield page, errors


def open_lab(page, errors, lab):
    page.goto(lab)
    page.wait_for_function(READY)
    page.evaluate("() => window.jupyterapp.commands.execute('application:toggle-left-area')")
    assert page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
    panel = Panel(page, errors)
    panel.says("drawing 1: ")
    return panel


@pytest.fixture(scope="module")
def opened(browser, lab):
    with open_page(browser) as (page, errors):
        yield open_lab(page, errors, lab)


@pytest.fixture
def panel(opened):
    """The panel as every test finds it; none may write an error to the console."""
    opened.tab("Pictures")
    opened.choose("Show", "as they come")
    opened.number("count", 2)
    opened.number("seed", 0)
    opened.caption.fill(GREEN)
    yield opened
    assert not opened.errors


# ---------------------------------------------------------------- JupyterLab


def test_a_caption_is_typed_and_the_picture_changes(panel):
    before = panel.pixels()
    assert len(before) == 4  # as it starts
    panel.number("count", 4)
    panel.caption.fill("a blue bird with yellow wings at sunset")
    after = panel.again(lambda: panel.caption.press("Enter"))
    assert len(after) == 4 and not set(before) & set(after)
    panel.screenshot("lab_light")


def test_the_same_seed_gives_identical_pixels_and_another_seed_others(panel):
    panel.number("seed", 11)
    first = panel.again(panel.draw.click)
    panel.number("seed", 40)
    assert not set(first) & set(panel.again(panel.draw.click))
    panel.number("seed", 11)
    assert panel.again(panel.draw.click) == first
    panel.number("count", 1)
    assert panel.again(panel.draw.click) == first[:1]
    rolled = panel.again(lambda: panel.press("Roll the dice"))
    assert not set(rolled) & set(first)


def test_the_panel_is_used_by_keyboard_alone(panel):
    panel.caption.focus()
    panel.page.keyboard.press("Control+a")
    panel.page.keyboard.type("a purple bird in a meadow")
    reached = []
    for _ in range(12):
        panel.page.keyboard.press("Tab")
        reached.append(panel.page.evaluate("() => document.activeElement.innerText || document.activeElement.type"))
        if reached[-1] == "Draw":
            break
    assert reached[-1] == "Draw", reached
    before = panel.pixels()
    assert panel.again(lambda: panel.page.keyboard.press("Space")) != before
    assert panel.page.evaluate("() => document.activeElement.innerText") == "Draw"  # the focus stays


def test_an_empty_caption_is_an_error_in_plain_sight(panel):
    before = panel.pixels()
    panel.caption.fill("  ")
    panel.draw.click()
    panel.says("the caption is empty: write what the picture should show")
    assert panel.pixels() == before and panel.own.locator(".sampler-error").is_visible()
    panel.screenshot("lab_error")
    panel.caption.fill('<img src=x onerror="document.title=1"> a red bird')
    assert panel.again(panel.draw.click) != before
    panel.says('<img src=x onerror="document.title=1"> a red bird')
    assert panel.page.title() != "1"


def test_two_captions_meet_on_a_slider_and_move(panel):
    panel.tab("Two captions")
    panel.number("share", 0)
    panel.says(f"mixture: {GREEN} ")
    start = panel.pixels("mixture")
    slider = panel.own.locator(".sampler-share .noUi-handle")
    slider.focus()
    for _ in range(6):  # 6 steps of 0.05
        slider.press("ArrowRight")
    panel.says(f"mixture: 70% {GREEN}, 30% ")
    assert panel.pixels("mixture") != start
    panel.screenshot("lab_two_captions")
    panel.number("frames", 6)
    for kind, tag in (("GIF", "img"), ("MP4", "video")):
        panel.choose("File", kind)
        panel.again(lambda: panel.press("Animate"))
        playwright.expect(panel.own.locator(f".sampler-mixture {tag}")).to_be_visible()
        with panel.page.expect_download() as caught:
            panel.own.locator(".sampler-download a").first.click()
        assert caught.value.suggested_filename == f"a_green_bird_in_the_snow_walk.{kind.lower()}"
        assert Path(caught.value.path()).stat().st_size > 2000


def test_the_grid(panel):
    panel.tab("Grid")
    panel.own.get_by_role("textbox", name="Captions").fill("a red bird\na red bird with blue wings")
    panel.number("columns", 3)
    panel.again(panel.draw.click)
    assert len(set(panel.pixels("grid"))) == 6
    panel.screenshot("lab_grid")


def test_the_history_keeps_and_downloads(panel, outputs):
    from galiplib.images import to_uint8
    from galiplib.sampling.sample import replay

    panel.number("count", 1)
    panel.number("seed", 21)
    drawn = panel.again(panel.draw.click)
    with panel.page.expect_download() as caught:
        panel.own.locator(".sampler-pictures a").first.click()
    assert caught.value.suggested_filename == "a_green_bird_in_the_snow_seed21.png"
    with panel.page.expect_download() as again:
        panel.own.locator(".sampler-download a").first.click()
    data = Path(caught.value.path()).read_bytes()
    assert Path(again.value.path()).read_bytes() == data
    panel.press("Keep")
    panel.says("kept: a_green_bird_in_the_snow_seed21.png in ")
    kept = outputs / "kept" / "a_green_bird_in_the_snow_seed21.png"
    assert kept.read_bytes() == data and to_uint8(replay(kept).images).shape == (1, 56, 56, 3)
    panel.number("seed", 22)
    assert panel.again(panel.draw.click) != drawn
    panel.own.locator(".sampler-show").nth(1).click()
    panel.says(f"back: {GREEN}")
    assert panel.pixels() == drawn
    playwright.expect(panel.own.get_by_label("Seed", exact=True)).to_have_value("21")


def test_long_work_is_cancelled(panel):
    panel.tab("Grid")
    captions = [f"a {colour} bird" for colour in ("red", "blue", "green", "white", "black")] * 40
    panel.own.get_by_role("textbox", name="Captions").fill("\n".join(captions))
    panel.number("columns", 8)
    panel.draw.click()
    cancel = panel.own.get_by_role("button", name="Cancel", exact=True)
    playwright.expect(panel.own.locator(".sampler-amount")).to_contain_text(" of 1600", timeout=PATIENCE)
    cancel.click()
    panel.says("drawing: cancelled")
    playwright.expect(cancel).to_be_disabled()
    panel.tab("Pictures")
    panel.again(panel.draw.click)


def test_dark_theme(panel):
    panel.theme("JupyterLab Dark")
    contrast = panel.page.evaluate(CONTRAST, TEXTS)
    panel.screenshot("lab_dark")
    assert min(contrast) > 4.5, contrast
    panel.tab("Two captions")
    panel.number("share", 0.6)
    panel.says("mixture: ")
    panel.screenshot("lab_dark_two_captions")
    panel.theme("JupyterLab Light")


def test_a_minute_of_training_becomes_a_checkpoint(panel, outputs):
    before = panel.pixels()
    assert panel.again(lambda: panel.press("Train a minute")) != before
    panel.says(str(outputs / "a_minute"))
    assert panel.own.locator(".sampler-checkpoint option:checked").text_content() == "a_minute"
    panel.screenshot("lab_trained")
    (outputs / "a_minute").rename(outputs / "gone")
    averaged = panel.own.get_by_label("averaged weights (EMA)")
    averaged.click()
    playwright.expect(panel.own.locator(".sampler-error")).to_contain_text("a_minute", timeout=PATIENCE)
    playwright.expect(averaged).to_be_checked()


# ---------------------------------------------------------------- Voila


@pytest.fixture(scope="module")
def app(tmp_path_factory, outputs):
    """The address of the app."""
    folder, port = tmp_path_factory.mktemp("app"), free_port()
    command = [
        sys.executable, "-m", "galiplib.panel.app", "--out", str(outputs), "--port", str(port), "--no-browser",
        "--port_retries=0",
    ]  # fmt: skip
    with serving(command, folder, f"http://127.0.0.1:{port}/voila/static/voila.js"):
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_app(browser, app, theme):
    with open_page(browser) as (page, errors):
        page.goto(f"{app}/?voila-theme={theme}")
        panel = Panel(page, errors)
        panel.says("drawing 1: ")
        before = panel.pixels()
        panel.caption.fill("a purple bird in a meadow")
        assert panel.again(lambda: panel.caption.press("Enter")) != before
        panel.screenshot(f"voila_{theme}")
        assert min(page.evaluate(CONTRAST, TEXTS)) > 4.5
        assert "Traceback" not in page.content() and "load_generator" not in page.content()
        outside = "cdn"  # the icons' style sheet is asked of a CDN; without a network that fails
        assert not [error for error in errors if outside not in error and "ERR_" not in error]
