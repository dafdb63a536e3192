"""The course as a web site: `python site/make_site.py` gathers the pages, runs notebooks that were not, and builds.

Pages are the repository's own: README, docs, the notebooks with the outputs of their executed copies, and whatever
files these link to. They are laid out under build/site/pages as in the repository, with their links made to fit, and
Sphinx makes build/site/html of them, which needs nothing from elsewhere.
"""

import argparse
import html
import json
import os
import re
import shutil
import subprocess
import sys
import time
from operator import attrgetter
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from pygments.lexers import get_lexer_for_filename
from pygments.util import ClassNotFound

from galiplib.config import load_config, valid_keys
from galiplib.course import runner
from links import faults

SITE = Path(__file__).parent
ROOT = SITE.parent
OUT = ROOT / "build" / "site"
LIBRARY = ["docs/systems.md", "docs/photographs.md", "docs/evaluation.md"]
LIBRARY += ["docs/architecture.md", "docs/files.md", "data/README.md"]
MORE = ["benchmarks/README.md", "docs/launching.md", "docs/scaling.md", "CONTRIBUTING.md", "CHANGELOG.md"]
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")
LAB = "http://localhost:8888/lab/tree"  # where `make lab` serves notebooks/
SMALL = dict(  # for notebooks that are run at a small size
    train_size=1000, clip_steps=20, measure_birds=40, measured=60, train_steps=12, eval_images=100, compare_images=60,
    minute_steps=3, steps=6, seeds=1, rounds=1, tune_steps=4, look_steps=4,
)  # fmt: skip
DRAW = '<p><a class="draw" href="draw/index.html">Draw in your browser</a></p>'
LIVE = "<p>Here stands a panel that needs a running kernel: <code>make lab</code> or <code>make app</code>.</p>"


# ---------------------------------------------------------------- notebooks


def shown(text: str) -> str:
    """What a terminal would show: of a progress bar, its last state."""

    def line(written: str) -> str:
        left = ""
        for piece in written.split("\r"):
            left = piece + left[len(piece) :]
        return left.rstrip()

    return "\n".join(map(line, text.split("\n")))


def tidy(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Outputs of a cell as a page shows them: one text a stream, finished bars a line, no widgets without a kernel."""
    kept: list[NotebookNode] = []
    streams: dict[str, NotebookNode] = {}
    for output in outputs:
        if output.output_type == "stream":
            if output.name in streams:
                streams[output.name].text += output.text
                continue
            streams[output.name] = output
        elif "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
            if "%|" in output.data["text/plain"]:  # a bar: its last state was not recorded
                continue
            output.data = {"text/html": LIVE}
        kept.append(output)
    for stream in streams.values():
        stream.text = shown(stream.text)
    return [output for output in kept if output.output_type != "stream" or output.text.strip()]


def with_outputs(notebook: NotebookNode, executed: NotebookNode, out: str) -> NotebookNode | None:
    """The notebook with its executed copy's outputs, in which `out` reads "outputs"; None if its code has changed."""
    ran = {cell.id: cell for cell in executed.cells if cell.cell_type == "code"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            if cell.id not in ran or ran[cell.id].source != cell.source:
                return None
            cell.outputs, cell.execution_count = ran[cell.id].outputs, ran[cell.id].execution_count
    return nbformat.reads(nbformat.writes(notebook).replace(json.dumps(out)[1:-1], "outputs"), as_version=4)


def executed_copy(path: Path, folders: list[Path]) -> tuple[NotebookNode, str] | None:
    """The notebook with outputs, from the first folder where it was run to its end as it is now; and how it was run.

    Raises CourseError for a record or a copy that can't be read.
    """
    for folder in folders:
        record, executed = folder / "course.json", folder / "notebooks" / path.name
        if not record.exists() or not executed.exists():
            continue
        try:
            entry, ran = json.loads(record.read_text())["notebooks"].get(path.stem), nbformat.read(executed, 4)
        except (ValueError, KeyError, nbformat.ValidationError) as error:
            raise runner.CourseError(f"{record} or {executed} is damaged ({error}): move it away") from error
        if entry and (notebook := with_outputs(nbformat.read(path, 4), ran, entry["parameters"]["out"])):
            given = entry["parameters"]
            set_here = [f"`{name} = {str(value).replace(given['out'], 'outputs')}`" for name, value in given.items()
                        if name not in runner.RUNNER_PARAMETERS]  # fmt: skip
            return notebook, f"run in {entry['seconds']:.0f} s" + (", with " if set_here else "") + ", ".join(set_here)
    return None


def page_of(notebook: NotebookNode, name: str, note: str) -> NotebookNode:
    """The notebook as a page: links and a note below its title, outputs tidied, figures described by their section."""
    section = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            section = (re.findall(r"^#+ +(.+)", cell.source, re.M) or [section])[-1]
        else:
            cell.outputs = tidy(cell.outputs)
            cell.metadata.mystnb = {"image": {"alt": f"Figure of the section: {section}"}}
    links = f"{{download}}`Download <downloads/{name}>` · [open in JupyterLab]({LAB}/{name}) while `make lab` runs"
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell(f"{links} · {note}"))
    return notebook


# ---------------------------------------------------------------- pages


class Pages:
    """The pages under `folder`, laid out as in the repository."""

    def __init__(self, folder: Path, listed: set[Path]):
        self.folder, self.listed = folder, listed  # those of the table of contents
        self.placed: set[Path] = set()

    def write(self, path: Path, text: str, more: str = "") -> None:
        """Write a page, with `more` of Sphinx's file-wide metadata."""
        page = self.folder / path
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text if path in self.listed else f"---\norphan: true\n{more}---\n{text}", encoding="utf-8")

    def linked(self, text: str, folder: Path) -> str:
        """The text of a page in `folder` with links to pages of this site; what they lead to is placed, too."""

        def fit(match: re.Match[str]) -> str:
            path = Path(os.path.normpath(folder / match[1]))
            if path == Path("README.md"):
                return f"]({os.path.relpath('index.md', folder)}"
            return f"]({match[1].rstrip('/')}{self.place(path)}"

        return LINK.sub(fit, text)

    def place(self, path: Path) -> str:
        """Put a file or folder of the repository here -> what its page's name has after its own."""
        source, shown_as_text = ROOT / path, path.suffix not in {".md", ".ipynb", ".png", ".jpg", ".svg", ".gif"}
        if path not in self.placed:
            self.placed.add(path)
            page = Path(f"{path}.md") if shown_as_text else path
            if path.suffix == ".md":
                self.write(page, self.linked(source.read_text(encoding="utf-8"), path.parent))
            elif source.is_dir():
                names = sorted(f"- `{file.name}`" for file in source.iterdir() if file.name != "__pycache__")
                self.write(page, "\n".join([f"# {path}", "", *names, ""]))
            elif path.suffix != ".ipynb":  # notebooks are placed with their outputs
                (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, self.folder / path)
                if shown_as_text:
                    include = f"```{{literalinclude}} {path.name}\n:language: {language(path)}\n:linenos:\n```\n"
                    self.write(page, f"# {path}\n\n{include}", "nosearch: true\n")  # words are looked for in texts
        return ".md" if shown_as_text else ""


def language(path: Path) -> str:
    """Pygments' name for what is written in a file."""
    try:
        return get_lexer_for_filename(path.name).aliases[0]
    except ClassNotFound:
        return "text"


def settings() -> str:
    """The page of every key of a configuration, as `galip describe` prints them."""
    config = load_config()
    rows = [f"| `{key}` | `{attrgetter(key)(config)!r}` | {html.escape(meaning).replace('|', '&#124;')} |"
            for key, meaning in valid_keys(config.system).items()]  # fmt: skip
    head = "What `--set`, `load_config` and profiles take. `galip describe --profile birds:ratlip` has those of others."
    return "\n".join(["# Settings", "", head, "", "| key | in profile `mini` | meaning |", "|---|---|---|", *rows, ""])


def gather(folder: Path, books: list[runner.Notebook], outputs: list[Path], draws: bool) -> None:
    """Writes all pages into an empty `folder`; `draws`: the first one leads to the page that draws."""
    pages = Pages(folder, {Path(name) for name in ("index.md", "settings.md", *LIBRARY, *MORE)})
    course = [f"{book.path.name[:2]} {book.title} <notebooks/{book.path.stem}>" for book in books]
    parts = {"The course": course, "The library": ["api", "settings", *LIBRARY], "More": MORE}
    index = pages.linked((ROOT / "README.md").read_text(encoding="utf-8"), Path())
    if draws:
        index = index.replace("\n\n", f"\n\n{DRAW}\n\n", 1)  # below the title
    pages.write(Path("index.md"), index + "".join(contents(*part) for part in parts.items()))
    pages.write(Path("settings.md"), settings())
    shutil.copy(SITE / "api.rst", folder)
    for name in (*LIBRARY, *MORE):
        pages.place(Path(name))
    (folder / "notebooks" / "downloads").mkdir(parents=True)
    for book in books:
        path = book.path
        shutil.copy(path, folder / "notebooks" / "downloads")
        bare = nbformat.read(path, as_version=4), f"not run here: `make course ARGS={path.name[:2]}` makes its outputs"
        notebook, note = executed_copy(path, outputs) or bare
        page = page_of(notebook, path.name, note)
        for cell in page.cells:
            if cell.cell_type == "markdown":
                cell.source = pages.linked(cell.source, Path("notebooks"))
        nbformat.write(page, folder / "notebooks" / path.name)


def contents(caption: str, entries: list[str]) -> str:
    """A part of the table of contents."""
    return "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *entries, "```", ""])


# ---------------------------------------------------------------- building


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0, or 1 if a notebook fails, Sphinx warns or a link leads nowhere."""
    parser = argparse.ArgumentParser(description="Build the course's site.")
    parser.add_argument("--outputs", type=Path, default=ROOT / "outputs", help="of make course, default: %(default)s")
    parser.add_argument("--small", action="store_true", help="run what was not at a small size, in build/site/small")
    parser.add_argument("--as-is", action="store_true", help="run nothing: notebooks that were not have no outputs")
    args = parser.parse_args(argv)
    from sphinx.cmd.build import main as sphinx  # the extra "site": tests of the pages do without

    start, out = time.perf_counter(), OUT / "small" if args.small else args.outputs.absolute()
    folders = [args.outputs / "mini", out / "mini"]
    books = list(runner.find_notebooks(runner.NOTEBOOKS).values())
    try:
        missing = [book for book in books if not args.as_is and executed_copy(book.path, folders) is None]
        runner.run_course(missing, out / "mini", {"profile": "mini", "out": str(out), **(SMALL if args.small else {})})
    except (runner.CourseError, runner.NotebookFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    site, built = OUT / "html", OUT / "new"  # whole, or the one before stays
    for folder in ("pages", "new", "draw"):
        shutil.rmtree(OUT / folder, ignore_errors=True)
    page = [sys.executable, str(SITE / "page" / "make_page.py"), str(OUT / "draw"), "--home", "../index.html"]
    draws = subprocess.run(page).returncode == 0  # without npm there is none, as it says
    gather(OUT / "pages", books, folders, draws)
    options = ["-W", "--keep-going", "-q", "-c", str(SITE), "-d", str(OUT / "doctrees")]
    options += ["-A", "draws=1"] if draws else []
    print("setting the pages ..." if draws else "setting the pages, without the one that draws ...", flush=True)
    if sphinx([*options, str(OUT / "pages"), str(built)]):
        return 1
    if draws:
        (OUT / "draw").rename(built / "draw")
    said, links, pages = faults(built)
    if said:
        print("\n".join(said), file=sys.stderr)
        return 1
    shutil.rmtree(site, ignore_errors=True)
    built.rename(site)
    size = sum(file.stat().st_size for file in site.rglob("*") if file.is_file()) / 1e6
    print(f"{site}: {pages} pages, {size:.1f} MB; {links} links and files looked at, all there; "
          f"{time.perf_counter() - start:.0f} s")  # fmt: skip
    print(f"python -m http.server --directory {site}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
