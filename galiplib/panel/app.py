"""The sampler panel as a page of its own: ``python -m galiplib.panel.app``.

Voila serves the cells of notebook 07 that are tagged `app`, without their code, on this machine only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat

from ..course.runner import NOTEBOOKS, own_kernel

NOTEBOOK = NOTEBOOKS / "07_sampling.ipynb"
TITLE = "# Words to birds\n\nType a caption, press Enter. Every picture can be downloaded by a click."


def app_notebook(path: Path, parameters: dict[str, Any]) -> nbformat.NotebookNode:
    """A notebook's cells tagged `app`, a title, parameters of their own. Raises ValueError if none is tagged."""
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if "app" in cell.metadata.get("tags", [])]
    if not cells:
        raise ValueError(f"no cell of {path} is tagged 'app'")
    lines = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    first = next((i for i, cell in enumerate(cells) if "parameters" in cell.metadata["tags"]), -1) + 1
    cells.insert(first, nbformat.v4.new_code_cell(lines))
    notebook.cells = [nbformat.v4.new_markdown_cell(TITLE), *cells]
    return notebook


def main(argv: list[str] | None = None) -> int:
    """Serve the page until Ctrl-C; options that are not known here go to Voila."""
    about = "Open the sampler panel as a web page."
    parser = argparse.ArgumentParser("python -m galiplib.panel.app", description=about)
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="where runs lie and kept pictures go")
    parser.add_argument("--port", type=int, default=8866)
    args, others = parser.parse_known_args(argv)
    with tempfile.TemporaryDirectory() as folder, own_kernel():
        page = Path(folder) / "app.ipynb"
        nbformat.write(app_notebook(NOTEBOOK, {"profile": args.profile, "out": str(args.out.absolute())}), page)
        options = ["--Voila.ip=127.0.0.1", f"--port={args.port}", "--show_tracebacks=True", *others]
        try:
            return subprocess.run([sys.executable, "-m", "voila", str(page), *options], check=False).returncode
        except KeyboardInterrupt:
            return 130


if __name__ == "__main__":
    sys.exit(main())
