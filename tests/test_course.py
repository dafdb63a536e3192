"""The notebook runner, on tiny notebooks made here."""

import json
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.sign import NotebookNotary
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from galiplib.course import runner as course

PARAMETERS = 'profile = "mini"\nout = "outputs"\n'
KERNELSPEC = {"name": "python3", "display_name": "Python 3", "language": "python"}
RESULTS = """\
import json, sys
from pathlib import Path
folder = Path(out) / profile.replace(":", "-")
(folder / "results.json").write_text(json.dumps({"clip": {"similarity": 0.31251}, "steps": 7, "ok": True}))
print("interpreter", sys.executable, "train_steps", train_steps, "lr", lr)"""


def write_notebook(folder: Path, name: str, parameters: str, *sources: str) -> None:
    cells = [new_markdown_cell(f"# Title of {name[:2]}\ntext"), new_code_cell(parameters)]
    cells[1].metadata["tags"] = ["parameters"]
    cells += [new_code_cell(source) for source in sources]
    folder.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": KERNELSPEC}), folder / name)


@pytest.fixture
def notebooks(tmp_path: Path) -> Path:
    folder = tmp_path / "notebooks"
    write_notebook(folder, "01_look.ipynb", PARAMETERS, "x = 1")
    bad = "# the bad one\nraise ValueError('broken here')"
    write_notebook(folder, "05_fail.ipynb", PARAMETERS, "y = 2", bad)
    more = "train_steps = 400  # optimizer steps\nlr = 0.1\nweights = None"
    write_notebook(folder, "06_train.ipynb", PARAMETERS + more, RESULTS)
    write_notebook(folder, "07_die.ipynb", PARAMETERS, "import os\nos._exit(9)")
    return folder


def fails(capsys: pytest.CaptureFixture[str], argv: list[str], folder: Path, code: int = 2) -> str:
    """Runs the command, which must exit with `code`, and returns its error message."""
    assert course.main(argv, folder) == code
    return capsys.readouterr().err


def test_unknown_parameter_is_rejected_before_anything_runs(notebooks, tmp_path, capsys):
    out = tmp_path / "out"
    message = fails(capsys, ["run", "01", "06", "--out", str(out), "-p", "train_step", "3"], notebooks)
    assert "'train_step' (did you mean 'train_steps'?)" in message
    assert "01_look: (none)" in message and "06_train: train_steps, lr" in message
    assert not out.exists()


def test_runner_parameters_have_their_own_options(notebooks, capsys):
    assert "--profile" in fails(capsys, ["run", "-p", "profile", "birds"], notebooks)


def test_unknown_notebook_lists_the_existing_ones(notebooks, capsys):
    message = fails(capsys, ["run", "02"], notebooks)
    assert "no notebook 02" in message and "06  Title of 06" in message


def test_missing_folder_is_named(tmp_path, capsys):
    assert str(tmp_path / "nowhere") in fails(capsys, ["list"], tmp_path / "nowhere")


def test_notebook_without_the_runner_parameters(tmp_path, capsys):
    write_notebook(tmp_path / "n", "01_bare.ipynb", 'profile = "mini"', "x = 1")
    assert "no out in a cell tagged 'parameters'" in fails(capsys, ["list"], tmp_path / "n")


def test_unwritable_out_is_named(notebooks, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    assert f"cannot write to {out}" in fails(capsys, ["run", "01", "--out", str(out)], notebooks)


def test_list(notebooks, capsys):
    assert course.main(["list"], notebooks) == 0
    printed = capsys.readouterr().out
    assert "06  Title of 06" in printed
    assert "train_steps          = 400  # optimizer steps" in printed


@pytest.mark.parametrize(
    ("default", "text", "value"),
    [
        ("400", "60", 60), ("0.1", "1e-4", 1e-4), ("0", "0010", 10), ("1", "1e3", 1000), ("True", "false", False),
        ("[1, 2]", "[3, 4]", [3, 4]), ("'a bird'", "a red bird #1: yes", "a red bird #1: yes"), ("'a'", "010", "010"),
        ("None", "60", 60), ("None", "ViT-B/32", "ViT-B/32"), ("None", "None", None), ("None", "yes", "yes"),
    ],
)  # fmt: skip
def test_values_are_of_the_parameters_type(default, text, value):
    found = course.parse_value(text, {"inferred_type_name": "None", "default": default})
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", ["[1", "1:30", "nan", ".inf", "1_0", "yes", "0x10", ""])
def test_what_is_no_plain_number_is_refused(text, notebooks, capsys):
    message = fails(capsys, ["run", "06", "-p", "lr", text], notebooks)
    assert f"parameter 'lr' = {text!r}: right would be a decimal number" in message


def test_an_annotation_says_more_than_none(tmp_path, capsys):
    source = 'profile = "mini"\nout = "outputs"\nsteps: int = None\nfile: str = None'
    write_notebook(tmp_path, "01_bare.ipynb", source, "x = 1")
    assert "'steps' = 'many': right would be a whole number" in fails(capsys, ["run", "-p", "steps", "many"], tmp_path)
    selected = list(course.find_notebooks(tmp_path).values())
    assert course.check_values(selected, [("file", "2024"), ("steps", "none")]) == {"file": "2024", "steps": None}


def test_demo_runs_in_this_interpreter_and_records(notebooks, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(course, "DEMO", ["01", "06"])
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))  # where signatures are kept
    monkeypatch.chdir(tmp_path)  # a relative --out is relative to here
    assert course.main(["demo", "--profile", "tiny:small", "--out", "o", "-p", "train_steps", "3"], notebooks) == 0
    printed = capfd.readouterr().out
    assert f"interpreter {sys.executable} train_steps 3 lr 0.1" in printed
    assert "01_look: started" in printed and "06_train: started" in printed
    rows = [line.split() for line in printed.splitlines()[-2:]]
    assert rows == [["clip.similarity", "0.3125"], ["steps", "7"]]

    folder = tmp_path / "o" / "tiny-small"
    assert str(folder / "results.json") in printed and "samples.png: not written" in printed
    record = json.loads((folder / "course.json").read_text())
    entries = record["notebooks"]
    assert list(entries) == ["01_look", "06_train"]
    injected = {"profile": "tiny:small", "out": str(tmp_path / "o"), "train_steps": 3}
    injected["weights"] = str(folder / "train")  # the demo shows what it has trained
    assert entries["06_train"]["parameters"] == injected
    assert "train_steps" not in entries["01_look"]["parameters"]
    assert all(entry["seconds"] > 0 and entry["peak_mb"] > 1 for entry in entries.values())
    assert record["peak_mb"] == max(entry["peak_mb"] for entry in entries.values())
    executed = nbformat.read(folder / "notebooks" / "06_train.ipynb", as_version=4)
    assert "train_steps = 3" in executed.cells[2].source
    assert NotebookNotary(data_dir=str(tmp_path / "jupyter")).check_signature(executed)  # JupyterLab shows its HTML


def test_failing_notebook_stops_and_names_the_cell(notebooks, tmp_path, capsys):
    folder = tmp_path / "mini"
    folder.mkdir()
    stale = {"notebooks": {"05_fail": {"seconds": 1.0, "peak_mb": 1.0, "parameters": {}}}}
    (folder / "course.json").write_text(json.dumps(stale))
    message = fails(capsys, ["run", "05", "06", "--out", str(tmp_path)], notebooks, code=1)
    assert "05_fail.ipynb failed in cell [4]" in message  # parameters and the injected cell come first
    assert "# the bad one" in message and "ValueError: broken here" in message
    assert str(folder / "notebooks" / "05_fail.ipynb") in message
    assert not (folder / "notebooks" / "06_train.ipynb").exists()
    assert json.loads((folder / "course.json").read_text())["notebooks"] == {}


def test_dead_kernel_names_the_cell(notebooks, tmp_path, capsys):
    message = fails(capsys, ["run", "7", "--out", str(tmp_path)], notebooks, code=1)
    assert "07_die.ipynb failed in cell [3]" in message and "os._exit(9)" in message
    assert "DeadKernelError" in message
