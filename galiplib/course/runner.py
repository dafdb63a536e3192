"""Runs the notebooks of the course: ``python -m galiplib.course demo | run [NN ...] | list``.

Executed notebooks go to ``<out>/<profile>/notebooks/``,
times and peak memory to ``<out>/<profile>/course.json``.
"""

import argparse
import difflib
import json
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil
import yaml

try:
    import nbformat
    import papermill
    from ipykernel.kernelspec import write_kernel_spec
    from papermill.exceptions import PapermillExecutionError
except ModuleNotFoundError as error:
    raise ImportError(f"the course runner needs {error.name}: pip install 'galiplib[notebooks]'") from error

from ..config import folder_of

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
DEMO = ["01", "05", "06", "07"]
RUNNER_PARAMETERS = ("profile", "out")  # every notebook has these; set with --profile and --out
KERNEL = "python3"  # the name in the notebooks' metadata
SAMPLE_SECONDS = 0.25


class CourseError(Exception):
    """A request that can't be carried out; raised before any notebook runs."""


class NotebookFailed(Exception):
    """A notebook stopped with an error; the message says where."""


@dataclass(frozen=True)
class Notebook:
    """A notebook of the course; `parameters` as papermill reads them from the tagged cell."""

    path: Path
    title: str
    parameters: dict[str, dict[str, str]]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises CourseError if the file is no notebook or lacks the parameters that the runner sets."""
        try:
            cells = nbformat.read(path, as_version=4).cells
            parameters = papermill.inspect_notebook(path)
        except (ValueError, nbformat.ValidationError) as error:
            raise CourseError(f"{path}: {error}") from error
        if missing := [name for name in RUNNER_PARAMETERS if name not in parameters]:
            raise CourseError(f"{path}: no {' and no '.join(missing)} in a cell tagged 'parameters'")
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        heading = re.search(r"^# +(.+)", text, re.M)
        return cls(path, heading[1] if heading else path.stem, parameters)


class PeakMemory:
    """Context manager; `mb`: the highest resident memory of all child processes together, sampled."""

    def __enter__(self) -> Self:
        self.mb = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        runner = psutil.Process()
        while not self._stop.wait(SAMPLE_SECONDS):
            total = 0
            for process in runner.children(recursive=True):
                try:
                    total += process.memory_info().rss
                except psutil.Error:  # it ended between the listing and the question
                    continue
            self.mb = max(self.mb, total / 1e6)


def find_notebooks(folder: Path) -> dict[str, Notebook]:
    """The notebooks of `folder` by their two-digit number. Raises CourseError if there are none."""
    paths = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise CourseError(f"no notebooks (NN_name.ipynb) in {folder}: run the course from a clone")
    return {path.name[:2]: Notebook.read(path) for path in paths}


def select(notebooks: dict[str, Notebook], numbers: list[str]) -> list[Notebook]:
    """The notebooks with these numbers, in this order; all for none. Raises CourseError for others."""
    wanted = [number.zfill(2) for number in numbers] or list(notebooks)
    if unknown := [number for number in wanted if number not in notebooks]:
        existing = "\n".join(f"  {number}  {notebook.title}" for number, notebook in notebooks.items())
        raise CourseError(f"no notebook {', '.join(unknown)}; there are\n{existing}")
    return [notebooks[number] for number in wanted]


def check_values(selected: list[Notebook], values: dict[str, Any]) -> None:
    """Raises CourseError for a name that no selected notebook has: papermill itself would only warn."""
    own = {nb.path.stem: [name for name in nb.parameters if name not in RUNNER_PARAMETERS] for nb in selected}
    known = {name for names in own.values() for name in names}
    for name in values:
        if name in RUNNER_PARAMETERS:
            raise CourseError(f"parameter '{name}' is set with --{name}")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean '{close[0]}'?)" if close else ""
            valid = "\n".join(f"  {stem}: {', '.join(names) or '(none)'}" for stem, names in own.items())
            raise CourseError(f"no selected notebook has a parameter '{name}'{hint}; they have\n{valid}")


def parse_value(text: str) -> Any:
    """A value from the command line, read as YAML. Raises CourseError if it is not."""
    if re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", text):  # YAML 1.1 takes 1e-4 for a string
        return float(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise CourseError(f"not a YAML value: {text!r}") from error


def prepare_folder(folder: Path) -> None:
    """Creates `folder` and tries to write there. Raises CourseError if it can't."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise CourseError(f"cannot write to {folder} ({error.strerror}); choose another --out") from error


def read_record(path: Path) -> dict[str, Any]:
    """The entries of an earlier course.json, none without one. Raises CourseError if it is unreadable."""
    try:
        return json.loads(path.read_text())["notebooks"] if path.exists() else {}
    except (ValueError, KeyError, TypeError) as error:
        raise CourseError(f"{path} is not a record of the course: move it away") from error


def write_record(path: Path, profile: str, entries: dict[str, Any]) -> None:
    """Writes course.json whole or not at all."""
    seconds = round(sum((entry["seconds"] for entry in entries.values()), 0.0), 1)
    peak = max((entry["peak_mb"] for entry in entries.values()), default=0.0)
    record = {"profile": profile, "cpus": os.cpu_count(), "seconds": seconds, "peak_mb": peak}
    partial = path.with_suffix(".json.tmp")
    partial.write_text(json.dumps(record | {"notebooks": entries}, indent=2, default=str) + "\n")
    partial.replace(path)


@contextmanager
def own_kernel() -> Iterator[None]:
    """Makes `KERNEL` mean this interpreter, whatever kernels are registered on the machine."""
    before = os.environ.get("JUPYTER_PATH")
    with tempfile.TemporaryDirectory() as folder:
        quiet = ["--log-level=ERROR"]  # the kernel warns at each start that its local TCP is not encrypted
        write_kernel_spec(Path(folder) / "kernels" / KERNEL, extra_arguments=quiet)
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [folder, before]))  # the first one wins
        try:
            yield
        finally:
            del os.environ["JUPYTER_PATH"]
            if before is not None:
                os.environ["JUPYTER_PATH"] = before


def describe_failure(executed: Path, error: Exception) -> str:
    """Where and why the notebook written to `executed` stopped, by a raised error or a dead kernel."""
    lines = [f"{executed.name} failed"]
    cells = nbformat.read(executed, as_version=4).cells if executed.exists() else []
    code = [cell for cell in cells if cell.cell_type == "code"]
    if started := [cell for cell in code if cell.metadata.get("papermill", {}).get("start_time")]:
        cell = started[-1]
        lines[0] += f" in cell [{cell.execution_count or len(started)}]:"
        lines += [f"    {line}" for line in cell.source.splitlines()[:4]]
    raised = isinstance(error, PapermillExecutionError)
    lines.append(f"{error.ename}: {error.evalue}" if raised else f"{type(error).__name__}: {error}")
    return "\n".join([*lines, f"executed notebook: {executed}"])


def run_notebook(notebook: Notebook, executed: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """Runs one notebook into `executed`; returns its entry for course.json. Raises NotebookFailed."""
    start = time.perf_counter()
    with PeakMemory() as memory:
        try:
            papermill.execute_notebook(
                notebook.path,
                executed,
                parameters,
                kernel_name=KERNEL,
                progress_bar=sys.stderr.isatty(),
                stdout_file=sys.stdout,  # streams what the cells print, as they print it
                stderr_file=sys.stderr,
            )
        except (PapermillExecutionError, RuntimeError) as error:  # RuntimeError: the kernel died
            raise NotebookFailed(describe_failure(executed, error)) from error
    seconds = round(time.perf_counter() - start, 1)
    return {"seconds": seconds, "peak_mb": round(memory.mb, 1), "parameters": parameters}


def run_course(selected: list[Notebook], profile: str, out: Path, values: dict[str, Any]) -> None:
    """Runs the notebooks in order. Raises CourseError before the first, NotebookFailed when one fails."""
    check_values(selected, values)
    folder = out / folder_of(profile)
    prepare_folder(folder / "notebooks")
    record = folder / "course.json"
    entries = read_record(record)
    total = 0.0
    with own_kernel():
        for notebook in selected:
            stem = notebook.path.stem
            print(f"{stem}: started", flush=True)
            entries.pop(stem, None)  # its executed notebook is about to be overwritten
            write_record(record, profile, entries)
            parameters = {"profile": profile, "out": str(out)}
            parameters |= {name: value for name, value in values.items() if name in notebook.parameters}
            entry = run_notebook(notebook, folder / "notebooks" / notebook.path.name, parameters)
            entries[stem] = entry
            write_record(record, profile, entries)
            total += entry["seconds"]
            memory = f"peak {entry['peak_mb']:.0f} MB"
            print(f"{stem}: {entry['seconds']:.1f} s, {memory}, total so far {total:.1f} s", flush=True)


def print_list(notebooks: dict[str, Notebook]) -> None:
    """Prints number, title and parameters with defaults of each notebook."""
    for number, notebook in notebooks.items():
        print(f"{number}  {notebook.title}")
        for name, parameter in notebook.parameters.items():
            comment = f"  # {parameter['help']}" if parameter["help"] else ""
            print(f"      {name:<20} = {parameter['default']}{comment}")


def flat_numbers(tree: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, formatted number) of every number in nested dictionaries; lists are left out."""
    if isinstance(tree, dict):
        for key, branch in tree.items():
            yield from flat_numbers(branch, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, int | float) and not isinstance(tree, bool):
        yield name, f"{tree:.4g}" if isinstance(tree, float) else str(tree)


def print_results(folder: Path) -> None:
    """Prints where the demo's results are, and their numbers."""
    for path in (folder / "results.json", folder / "samples.png"):
        print(f"{path.name}: {path if path.exists() else 'not written'}")
    if (folder / "results.json").exists():
        rows = list(flat_numbers(json.loads((folder / "results.json").read_text())))
        width = max((len(name) for name, _ in rows), default=0)
        for name, number in rows:
            print(f"  {name:<{width}}  {number:>10}")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line; argparse itself exits with 2 on a bad one."""
    running = argparse.ArgumentParser(add_help=False)
    running.add_argument("--profile", default="mini", help="birds, birds:ratlip, ...; default: %(default)s")
    running.add_argument("--out", type=Path, default=Path("outputs"), help="folder, default: %(default)s")
    pair = {"nargs": 2, "action": "append", "default": [], "metavar": ("NAME", "VALUE")}
    running.add_argument("-p", dest="values", **pair, help="set a parameter (see list); may be repeated")
    parser = argparse.ArgumentParser("python -m galiplib.course.runner", description="Run the course's notebooks.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("demo", parents=[running], help=f"run {', '.join(DEMO)} and show what came out")
    run = commands.add_parser("run", parents=[running], help="run all, or those with the numbers given")
    run.add_argument("numbers", nargs="*", metavar="NN")
    commands.add_parser("list", help="list the notebooks and their parameters")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, folder: Path = NOTEBOOKS) -> int:
    """Exit code: 0, 1 for a failed notebook, 2 for what can't be carried out, 130 for Ctrl-C."""
    args = parse_arguments(argv)
    try:
        notebooks = find_notebooks(folder)
        if args.command == "list":
            print_list(notebooks)
            return 0
        selected = select(notebooks, DEMO if args.command == "demo" else args.numbers)
        out = args.out.absolute()
        run_course(selected, args.profile, out, {name: parse_value(text) for name, text in args.values})
        if args.command == "demo":
            print_results(out / folder_of(args.profile))
    except (CourseError, NotebookFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, CourseError) else 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
