"""A worker that dies: torchrun starts the team again, and the run goes on from its last checkpoint."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from launch import launch

from galiplib.config import load_config
from galiplib.runs.log import read_lines
from galiplib.runs.run import Run

SETTINGS = {
    "model.channels": 4, "model.code_channels": 8, "model.disc_channels": 16, "model.head_channels": 8,
    "model.fusion_blocks": 1, "model.projected": "",
    "data.train_size": 24, "data.test_size": 20, "train.batch_size": 4, "train.max_steps": 16,
    "train.checkpoint_every": 3, "train.sample_every": 16, "train.evaluate_every": 0, "train.precision": "fp32",
}  # fmt: skip


def torchrun(folder, *more):
    words = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2", *more,
        "-m", "galiplib.cli", "train", "--device", "cpu", "--out", str(folder), *words,
    ]  # fmt: skip
    # A store of its own for each attempt: in the agent's, workers may find addresses of the attempt before.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def train(rank, folder):
    list(Run(folder, load_config("mini", SETTINGS), "cpu", progress=False).train())


def wait_for(condition, process, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "took too long"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_worker_costs_only_the_steps_since_the_checkpoint(tmp_path):
    process = torchrun(tmp_path / "killed")
    try:
        steps = tmp_path / "killed" / "checkpoints"
        wait_for(lambda: len(list(steps.glob("step_*.pt"))) > 0, process)
        workers = [
            child for child in psutil.Process(process.pid).children(recursive=True)
            if child.environ().get("RANK") == "1"
        ]  # fmt: skip
        os.kill(workers[0].pid, signal.SIGKILL)
        output, _ = process.communicate(timeout=400)
    finally:
        process.kill()
    assert process.returncode == 0, output
    history = read_lines(tmp_path / "killed" / "metrics.jsonl")
    assert [line["step"] for line in history] == list(range(1, 17))
    assert (tmp_path / "killed" / "generator.safetensors").is_file()
    assert "going on from step" in output

    launch(train, 2, tmp_path / "whole")
    for ours, theirs in zip(history, read_lines(tmp_path / "whole" / "metrics.jsonl"), strict=True):
        assert ours | {"seconds": 0} == theirs | {"seconds": 0}  # bit for bit
