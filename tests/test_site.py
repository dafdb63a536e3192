"""The course's site: how notebooks become pages; and every page of a built one, in a browser.

The browser opens build/site/html, or the folder that GALIP_SITE names.
"""

import functools
import http.server
import json
import os
import threading
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import make_site
from galiplib.course.runner import CourseError
from links import faults

WIDGET = "application/vnd.jupyter.widget-view+json"


def stream(text, name="stderr"):
    return new_output("stream", name=name, text=text)


def widget(text):
    return new_output("display_data", {WIDGET: {"model_id": "1"}, "text/plain": text})


# ---------------------------------------------------------------- notebooks


def test_a_finished_bar_leaves_one_line_and_a_cleared_one_none():
    pieces = [stream(f"\rbirds: {percent:3}%|" + "#" * (percent // 10)) for percent in (0, 50, 100)]
    outputs = make_site.tidy([*pieces, stream("steps\n", "stdout"), stream("\n\rgone: 50%\r         \r"), stream("\n")])
    assert [(output.name, output.text) for output in outputs] == [
        ("stderr", "birds: 100%|##########\n\n"), ("stdout", "steps\n"),
    ]  # fmt: skip
    assert make_site.shown("12345\rab\n6") == "ab345\n6"  # as a terminal overwrites


def test_widgets_need_a_kernel_that_a_page_has_not():
    outputs = make_site.tidy([widget("real pictures:   0%|          | 0/10"), widget("VBox(children=(...))")])
    assert len(outputs) == 1 and list(outputs[0].data) == ["text/html"] and "make lab" in outputs[0].data["text/html"]


@pytest.fixture
def course(tmp_path):
    """A notebook, and a folder in which it was run."""
    notebook = new_notebook(cells=[
        new_markdown_cell("# Birds\n\nSee [the step](../galiplib/training.py)."),
        new_code_cell("print(out)"), new_markdown_cell("## A figure"), new_code_cell("figure"),
    ])  # fmt: skip
    path, folder = tmp_path / "03_birds.ipynb", tmp_path / "far" / "outputs"
    nbformat.write(notebook, path)
    ran = nbformat.from_dict(notebook)
    ran.cells[1].outputs = [stream(f"{folder}/mini/train\n", "stdout")]
    ran.cells[3].outputs = [new_output("display_data", {"image/png": "aGk="})]
    (folder / "mini" / "notebooks").mkdir(parents=True)
    nbformat.write(ran, folder / "mini" / "notebooks" / path.name)
    entry = {"seconds": 61.2, "parameters": {"profile": "mini", "out": str(folder), "weights": f"{folder}/mini/train"}}
    (folder / "mini" / "course.json").write_text(json.dumps({"notebooks": {"03_birds": entry}}))
    return path, folder / "mini"


def test_outputs_come_from_the_executed_copy_and_name_no_folder_of_this_machine(course, tmp_path):
    path, folder = course
    notebook, note = make_site.executed_copy(path, [tmp_path / "none", folder])
    assert note == "run in 61 s, with `weights = outputs/mini/train`"
    page = make_site.page_of(notebook, path.name, note)
    assert page.cells[2].outputs[0].text == "outputs/mini/train\n" and str(tmp_path) not in nbformat.writes(page)
    assert "downloads/03_birds.ipynb" in page.cells[1].source and note in page.cells[1].source
    assert page.cells[4].metadata.mystnb["image"]["alt"] == "Figure of the section: A figure"


def test_words_may_change_without_a_run_and_code_may_not(course):
    path, folder = course
    notebook = nbformat.read(path, 4)
    notebook.cells[0].source = "# Birds, explained"
    nbformat.write(notebook, path)
    assert make_site.executed_copy(path, [folder])[0].cells[0].source == "# Birds, explained"
    notebook.cells[1].source = "print(out, 1)"
    nbformat.write(notebook, path)
    assert make_site.executed_copy(path, [folder]) is None


def test_a_stopped_run_is_none_and_a_damaged_record_is_named(course):
    path, folder = course
    record = folder / "course.json"
    record.write_text('{"notebooks": {}}')
    assert make_site.executed_copy(path, [folder]) is None
    record.write_text('{"notebooks": ')
    with pytest.raises(CourseError, match="course.json"):
        make_site.executed_copy(path, [folder])


# ---------------------------------------------------------------- pages and links


def test_links_lead_to_pages_of_the_site(tmp_path):
    pages = make_site.Pages(tmp_path, set())
    here = "[a](../README.md#use-it) [b](../galiplib/training.py) [c](files.md) [d](https://e.f) [g](../tests/before)"
    there = (
        "[a](../index.md#use-it) [b](../galiplib/training.py.md) [c](files.md) [d](https://e.f) [g](../tests/before.md)"
    )
    assert pages.linked(here, Path("docs")) == there
    assert "literalinclude} training.py\n:language: python" in (tmp_path / "galiplib" / "training.py.md").read_text()
    assert (tmp_path / "galiplib" / "training.py").exists() and (tmp_path / "docs" / "files.md").exists()


def test_what_leads_nowhere_or_elsewhere_is_found(tmp_path):
    (tmp_path / "a.html").write_text('<p id="x"><a href="b/#y">1</a> <a href="#x">2</a> <a href="https://c.d">3</a>')
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "index.html").write_text('<p id="y"><a href="../a.html">1</a><img src="data:image/png;base64,">')
    assert faults(tmp_path) == ([], 3, 2)
    (tmp_path / "c.html").write_text(
        '<a href="d.html"></a><a href="b/#z"></a><script src="//cdn.x/y.js"></script><img src="e">'
    )
    assert [fault.split(": ", 1)[1] for fault in faults(tmp_path)[0]] == [
        "is loaded from elsewhere: //cdn.x/y.js",
        "leads nowhere: d.html",
        "has no such place: b/#z",
        "leads nowhere: e",
    ]


# ---------------------------------------------------------------- a built site

LEFT = "net::ERR_ABORTED"  # what was still under way when the next page was opened
BUILT = Path(os.environ.get("GALIP_SITE", make_site.OUT / "html"))


@pytest.fixture(scope="module")
def served():
    if not (BUILT / "index.html").exists():
        pytest.skip(f"no site in {BUILT}: make site")
    handler = functools.partial(Quiet, directory=BUILT)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def page(served):
    """A page of a browser, and what went wrong in it since it was last emptied."""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    from test_browser import CHROMIUM, chromium

    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    with chromium() as browser:
        page, wrong = browser.new_page(), []
        page.on("console", lambda message: message.type in ("error", "warning") and wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("requestfailed", lambda request: request.failure == LEFT or wrong.append(request.url))
        page.on("response", lambda response: response.status >= 400 and wrong.append(response.url))
        page.on(
            "request", lambda request: request.url.startswith((served, "data:", "blob:")) or wrong.append(request.url)
        )
        yield page, wrong


@pytest.mark.browser
@pytest.mark.slow
def test_every_page_opens_without_an_error_or_a_request_elsewhere(served, page):
    page, wrong = page
    said = faults(BUILT)[0]
    for path in sorted(BUILT.rglob("*.html")):
        page.goto(f"{served}/{path.relative_to(BUILT).as_posix()}")
        said += [f"{path.relative_to(BUILT)}: {text}" for text in wrong]
        wrong.clear()
    assert said == []


@pytest.mark.browser
@pytest.mark.slow
def test_search_solutions_formulas_and_the_theme(served, page):
    page, wrong = page
    page.goto(f"{served}/notebooks/01_data.html")
    solution = page.locator("details").first
    assert not solution.locator("pre").is_visible()
    solution.locator("summary").click()
    assert solution.locator("pre").is_visible()
    page.goto(f"{served}/notebooks/06_evaluation.html")
    assert page.locator("math").first.bounding_box()["width"] > 20
    behind = "() => getComputedStyle(document.body).backgroundColor"
    seen = set()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        seen.add(page.evaluate(behind))
    assert len(seen) == 2
    page.goto(f"{served}/search.html?q=truncation")
    page.locator("#search-results li a").first.wait_for()
    assert wrong == []
