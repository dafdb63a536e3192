"""A training in several processes from a notebook or a script."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from test_processes import TINY
from torch.multiprocessing import ProcessRaisedException

from galiplib import load_config
from galiplib.config import ConfigError
from galiplib.runs.interrupts import Stopped
from galiplib.runs.launch import train_in_processes
from galiplib.runs.log import read_lines

SETTINGS = TINY | {
    "train.max_steps": 10, "train.checkpoint_every": 1, "train.sample_every": 100, "train.evaluate_every": 0,
}  # fmt: skip


def first_checkpoint(folder):
    deadline = time.monotonic() + 120
    while not list((folder / "checkpoints").glob("step_*.pt")):
        assert time.monotonic() < deadline, "took too long"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:going on with")
def test_a_process_that_used_threads_trains_in_two(tmp_path, capfd):
    """Stopped, gone on with to the end, and refused; progress is seen."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.randn(600, 600).exp().sum()  # from here on a fork would wait for libgomp's threads

    def press_stop():
        first_checkpoint(tmp_path)
        os.kill(os.getpid(), signal.SIGINT)

    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=press_stop).start()
        with pytest.raises(Stopped, match=r"stopped after step \d+ of 10; the same command or cell goes on") as caught:
            train_in_processes(tmp_path, load_config("mini", SETTINGS), 2, "cpu")
    finally:
        signal.signal(signal.SIGINT, heard)
        torch.set_num_threads(threads)
    assert caught.value.signal == signal.SIGINT
    steps = [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1)) and 1 <= len(steps) < 10
    assert (tmp_path / "checkpoints" / f"step_{len(steps):06d}.pt").is_file()

    train_in_processes(tmp_path, load_config("mini", SETTINGS), 2, "cpu")
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == list(range(1, 11))
    assert (tmp_path / "generator.safetensors").is_file()
    assert "10/10" in capfd.readouterr().err

    with pytest.raises(ProcessRaisedException, match="holds a run of another configuration: train.lr_g"):
        train_in_processes(tmp_path, load_config("mini", SETTINGS | {"train.lr_g": 0.5}), 1, "cpu")


@pytest.mark.slow
def test_processes_end_with_a_checkpoint_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
            from galiplib import load_config
            from galiplib.runs.launch import train_in_processes

            if __name__ == "__main__":
                config = load_config("mini", {SETTINGS | {"train.max_steps": 1000}!r})
                train_in_processes({str(tmp_path / "run")!r}, config, 2, "cpu")
        """)
    )
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    # where the tests themselves run in the background, Ctrl-C is ignored from the start
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    parent = subprocess.Popen([sys.executable, str(script)], env=os.environ | {"PYTHONPATH": path}, preexec_fn=heard)
    try:
        first_checkpoint(tmp_path / "run")
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) >= 2
    finally:
        parent.kill()
        parent.wait()
    _, left = psutil.wait_procs(children, timeout=60)
    for child in left:
        child.kill()
    assert not left
    done = max(int(path.stem[5:]) for path in (tmp_path / "run" / "checkpoints").glob("step_*.pt"))
    assert [line["step"] for line in read_lines(tmp_path / "run" / "metrics.jsonl")] == list(range(1, done + 1))


def test_more_processes_than_gpus_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for processes in (0, 3):
        with pytest.raises(ConfigError, match=f"processes = {processes}: right would be 1 to 2, one a GPU"):
            train_in_processes(tmp_path / "run", load_config("mini"), processes)
    assert not (tmp_path / "run").exists()
