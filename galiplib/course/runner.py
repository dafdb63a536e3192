"""Runs the notebooks of the course: ``python -m galiplib.course demo | run [NN ...] | list``.

Executed notebooks go to ``<out>/<profile>/notebooks/``, times and peak memory to ``<out>/<profile>/course.json``.
"""

import argparse
import ast
import difflib
import json
import multiprocessing
import os
import re
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ..config import read_value

try:
    import nbformat
    import papermill
    from ipykernel.kernelspec import write_kernel_spec
    from nbformat.sign import NotebookNotary
    from papermill.exceptions import PapermillExecutionError
except ModuleNotFoundError as error:
    raise ImportError(f"the course runner needs {error.name}: pip install 'galiplib[notebooks]'") from error

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
DEMO = ["01", "05", "06", "07"]
RUNNER_PARAMETERS = ("profile", "out")  # every notebook has these; set with --profile and --out
KERNEL = "python3"  # the name in the notebooks' metadata
MAXRSS = 1 if sys.platform == "darwin" else 1024  # bytes in the unit of getrusage


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

    @property
    def own(self) -> list[str]:
        """The names of its parameters without the runner's."""
        return [name for name in self.parameters if name not in RUNNER_PARAMETERS]


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


def check_values(selected: list[Notebook], typed: list[tuple[str, str]]) -> dict[str, Any]:
    """Names and what was typed -> the values, of the types that the notebooks' parameters have.

    Raises CourseError for a value that can't be one, or a name that no notebook has: papermill itself would only warn.
    """
    known, values = {name: notebook.parameters[name] for notebook in selected for name in notebook.own}, {}
    for name, text in typed:
        if name in RUNNER_PARAMETERS:
            raise CourseError(f"parameter '{name}' is set with --{name}")
        if name not in known:
            hint = "".join(f" (did you mean '{close}'?)" for close in difflib.get_close_matches(name, known, n=1))
            valid = "\n".join(f"  {nb.path.stem}: {', '.join(nb.own) or '(none)'}" for nb in selected)
            raise CourseError(f"no selected notebook has a parameter '{name}'{hint}; they have\n{valid}")
        try:
            values[name] = parse_value(text, known[name])
        except ValueError as error:
            raise CourseError(f"parameter '{name}' = {text!r}: {error}") from None
    return values


def parse_value(text: str, parameter: Mapping[str, str] | None = None) -> Any:
    """What was typed -> a value of a notebook's parameter; raises ValueError as `config.read_value` does.

    Its type is the annotated one or its default's; of a bare None, or unknown, it is a number if it looks like one.
    """
    parameter = {"inferred_type_name": "None", "default": "None", **(parameter or {})}
    named = {"int": int, "float": float, "bool": bool, "str": str}.get(parameter["inferred_type_name"])
    try:
        default = ast.literal_eval(parameter["default"])
    except (ValueError, SyntaxError):  # no literal: nothing is known
        default = None
    if isinstance(default, list | tuple):
        kind: Any = type(default[0]) if default else str
        return list(read_value(text, tuple[kind, ...]))
    if default is None:
        return None if text.strip() == "None" else read_value(text, named | None if named else int | float | str | None)
    return read_value(text, float if isinstance(default, float) else named or type(default))


def prepare(notebooks: Path, record: Path) -> dict[str, Any]:
    """Makes the folder of executed notebooks, reads an earlier course.json -> its entries. Raises CourseError."""
    try:
        notebooks.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=notebooks).close()  # whether it can be written to
        return json.loads(record.read_text())["notebooks"] if record.exists() else {}
    except OSError as error:
        raise CourseError(f"cannot write to {notebooks} ({error.strerror}); choose another --out") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CourseError(f"{record} is not a record of the course: move it away") from error


def write_record(path: Path, profile: str, entries: dict[str, Any]) -> None:
    """Writes course.json whole or not at all."""
    seconds = round(sum((entry["seconds"] for entry in entries.values()), 0.0), 1)
    peak = max((entry["peak_mb"] for entry in entries.values()), default=0.0)
    record = {"profile": profile, "cpus": os.cpu_count(), "seconds": seconds, "peak_mb": peak, "notebooks": entries}
    partial = path.with_suffix(".json.tmp")
    partial.write_text(json.dumps(record, indent=2, default=str) + "\n")
    partial.replace(path)


@contextmanager
def own_kernel() -> Iterator[None]:
    """Makes `KERNEL` mean this interpreter, whatever kernels are registered on the machine."""
    before = os.environ.get("JUPYTER_PATH", "")  # empty counts as not set
    with tempfile.TemporaryDirectory() as folder:
        quiet = ["--log-level=ERROR"]  # the kernel warns at each start that its local TCP is not encrypted
        write_kernel_spec(Path(folder) / "kernels" / KERNEL, extra_arguments=quiet)
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [folder, before]))  # the first one wins
        try:
            yield
        finally:
            os.environ["JUPYTER_PATH"] = before


def execute(path: Path, executed: Path, parameters: dict[str, Any]) -> float:
    """Runs a notebook into `executed` -> MB of its largest process. Raises NotebookFailed.

    To be called in a process of its own: the memory is that of all children it ever waited for.
    """
    streams = {"stdout_file": sys.stdout, "stderr_file": sys.stderr}  # what the cells print, as they print it
    bar = sys.stderr.isatty()
    try:
        papermill.execute_notebook(path, executed, parameters, kernel_name=KERNEL, progress_bar=bar, **streams)
    except (PapermillExecutionError, RuntimeError) as error:  # RuntimeError: the kernel died
        raise NotebookFailed(describe_failure(executed, error)) from None
    NotebookNotary().sign(nbformat.read(executed, as_version=4))  # or JupyterLab would strip the drawings
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * MAXRSS / 1e6


def describe_failure(executed: Path, error: Exception) -> str:
    """Where and why the notebook written to `executed` stopped, by a raised error or a dead kernel."""
    lines = [f"{executed.name} failed"]
    cells = nbformat.read(executed, as_version=4).cells if executed.exists() else []
    code = [cell for cell in cells if cell.cell_type == "code"]
    if started := [cell for cell in code if cell.metadata.get("papermill", {}).get("start_time")]:
        lines[0] += f" in cell [{started[-1].execution_count or len(started)}]:"
        lines += [f"    {line}" for line in started[-1].source.splitlines()[:4]]
    name, text = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", error)  # papermill's has both
    lines.append(f"{name}: {text}")
    return "\n".join([*lines, f"executed notebook: {executed}"])


def run_course(selected: list[Notebook], folder: Path, parameters: Mapping[str, Any]) -> None:
    """Runs the notebooks in order; results go to `folder`, each notebook gets those parameters that it has.

    Raises CourseError before the first, NotebookFailed when one fails.
    """
    record, total = folder / "course.json", 0.0
    entries = prepare(folder / "notebooks", record)
    for notebook in selected:
        stem, start = notebook.path.stem, time.perf_counter()
        print(f"{stem}: started", flush=True)
        entries.pop(stem, None)  # its executed notebook is about to be overwritten
        write_record(record, parameters["profile"], entries)
        own = {name: value for name, value in parameters.items() if name in notebook.parameters}
        executed = folder / "notebooks" / notebook.path.name
        with own_kernel(), ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as process:
            peak = process.submit(execute, notebook.path, executed, own).result()
        entries[stem] = {"seconds": round(time.perf_counter() - start, 1), "peak_mb": round(peak, 1), "parameters": own}
        write_record(record, parameters["profile"], entries)
        total += entries[stem]["seconds"]
        print(f"{stem}: {entries[stem]['seconds']:.1f} s, peak {peak:.0f} MB, total so far {total:.1f} s", flush=True)


def print_list(notebooks: dict[str, Notebook]) -> None:
    """Prints number, title and parameters with defaults of each notebook."""
    for number, notebook in notebooks.items():
        print(f"{number}  {notebook.title}")
        for name, parameter in notebook.parameters.items():
            comment = f"  # {parameter['help']}" if parameter["help"] else ""
            print(f"      {name:<20} = {parameter['default']}{comment}")


def print_results(folder: Path) -> None:
    """Prints where the demo's results are, and their numbers, by dotted names; lists are left out."""
    from pandas import json_normalize

    for path in (folder / "results.json", folder / "samples.png"):
        print(f"{path.name}: {path if path.exists() else 'not written'}")
    if (folder / "results.json").exists():
        results = json_normalize(json.loads((folder / "results.json").read_text())).to_dict("records")[0]
        width = max(len(str(name)) for name in results)
        for name, value in sorted(results.items()):
            if isinstance(value, int | float) and not isinstance(value, bool):
                print(f"  {name:<{width}}  {f'{value:.4g}' if isinstance(value, float) else value:>10}")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line; argparse itself exits with 2 on a bad one."""
    running = argparse.ArgumentParser(add_help=False)
    running.add_argument("--profile", default="mini", help="birds, birds:ratlip, ...; default: %(default)s")
    running.add_argument("--out", type=Path, default=Path("outputs"), help="folder, default: %(default)s")
    running.add_argument("-p", dest="values", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                         help="set a parameter (see list); may be repeated")  # fmt: skip
    parser = argparse.ArgumentParser("python -m galiplib.course", description="Run the course's notebooks.")
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
        values = check_values(selected, args.values)
        folder = args.out.absolute() / Path(args.profile).stem.replace(":", "-")  # as a configuration's `folder`
        trained = {"weights": str(folder / "train")} if args.command == "demo" else {}  # not the best at hand
        run_course(selected, folder, {"profile": args.profile, "out": str(args.out.absolute()), **trained, **values})
        if args.command == "demo":
            print_results(folder)
    except (CourseError, NotebookFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, CourseError) else 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
