"""What can be wrong with several processes: every one of them says what it is, and none waits for ever."""

import os
import shutil
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from launch import begin, launch
from test_processes import TINY

from galiplib import load_config
from galiplib.build import make_shards
from galiplib.config import ConfigError
from galiplib.data import DataError
from galiplib.distributed import ProcessLost
from galiplib.runs.log import read_lines
from galiplib.runs.run import Run

PLAIN = TINY | {"train.evaluate_every": 0, "train.sample_every": 1000}
pytestmark = pytest.mark.slow


def opened(folder, **more):
    overrides = PLAIN | {key.replace("__", "."): value for key, value in more.items()}
    return Run(folder, load_config("mini", overrides), "cpu", progress=False)


def on_shards(folder, data, **more):
    return opened(folder, data__name="shards", data__folder=data, train__max_steps=30, **more)


def cut(folder):
    for shard in Path(folder).glob("*.tar"):
        shard.write_bytes(shard.read_bytes()[:5000])


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    """Two folders as of two machines, each with its own copies of data sets; on the second one, most are damaged."""
    root = tmp_path_factory.mktemp("machines")
    for name, seed in (("birds", 0), ("others", 1)):
        config = load_config("mini", TINY | {"data.seed": seed})
        make_shards(config, root / name, per_shard=10, embed=False, progress=False)
    for rank in (0, 1):
        for name in ("birds", "missing", "resized", "cut", "untested", "unlike"):
            shutil.copytree(root / "birds", root / str(rank) / name)
        shutil.rmtree(root / str(rank) / "cut" / "train" / "index")
        (root / str(rank) / "cut" / "train" / "manifest.json").unlink()
    shutil.copytree(root / "birds", root / "0" / "elsewhere")
    (root / "1" / "missing" / "train" / "00001.tar").unlink()
    cut(root / "1" / "resized" / "train")
    cut(root / "1" / "cut" / "train")
    shutil.rmtree(root / "1" / "untested" / "test")
    shutil.rmtree(root / "1" / "unlike")
    shutil.copytree(root / "others", root / "1" / "unlike")
    return root


def start_badly(rank, root):
    os.chdir(root / str(rank))
    told = "process 1 of 2: " if rank == 0 else "^"  # what went wrong in process 1

    # configurations
    with pytest.raises(ConfigError, match="train.batch_size = 7 can't be shared by 2 processes .* multiple of 2"):
        opened(root / "run", train__batch_size=7)
    with pytest.raises(ConfigError, match="differ in train.batch_size: 8 in process 0, 7 in process 1"):
        opened(root / "run", train__batch_size=8 - rank)
    with pytest.raises(ConfigError, match="there is no here/config.json.* on a disk that they share"):
        opened("here")

    # data
    for name, message in (
        ("missing", r"missing/train/00001\.tar is missing, .*manifest\.json lists it"),
        ("resized", r"resized/train/00000\.tar has 5,000 bytes, .*manifest\.json says [\d,]+: it is cut"),
        ("cut", r"cut/train/00000\.tar is cut: a tar file ends in 1,024 zero bytes"),
        ("elsewhere", "there is no folder elsewhere"),
    ):
        with pytest.raises(DataError, match=told + message):
            list(on_shards(root / "run", name).train())
    with pytest.raises(ConfigError, match=r"differ in held-out pictures: {'test': \d+} in process 0, {} in process 1"):
        list(on_shards(root / "run", "untested", train__evaluate_every=10).train())
    with pytest.raises(ConfigError, match="differ in captions: '(.*)' in process 0, '(?!\\1')"):
        list(on_shards(root / "run", "unlike").train())
    assert not (root / "run" / "checkpoints").exists() and not (root / "run" / "metrics.jsonl").exists()

    # pictures that can't be read any more
    run = on_shards(root / "run", "birds")
    with pytest.raises(DataError, match=told + r"birds/train/0000\d\.tar is cut: it ends at byte 5,000, not at"):
        for report in run.train():
            if report.step == 2 and rank == 1:
                cut("birds/train")
    assert run.step == 2 and [path.name for path in run.checkpoints.numbered()] == ["step_000002.pt"]

    # a process that is there, but doesn't answer
    torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=2), torch.distributed.group.WORLD)
    if rank == 0:
        with pytest.raises(ProcessLost, match=r"process 0 of 2 has lost another one.*last checkpoint"):
            opened(root / "run")
    else:
        time.sleep(4)


def test_what_one_process_finds_wrong_all_say(machines):
    launch(start_badly, 2, machines)


def train_until_killed(rank, folder):
    run = opened(folder, train__max_steps=1000, train__checkpoint_every=1000)
    for report in run.train():
        if report.step == 2:
            (folder / f"ready{rank}").touch()
            while not (folder / "go on").is_file():
                time.sleep(0.05)
        if report.step == 5 and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def wait_and_lose(rank, folder):
    if rank == 1:
        train_until_killed(rank, folder)
    with pytest.raises(ProcessLost, match="process 0 of 2 has lost another one, which was killed") as caught:
        train_until_killed(rank, folder)
    assert isinstance(caught.value.__cause__, RuntimeError)
    (folder / "said").write_text(str(caught.value))


def start_beside(rank, folder):
    message = "another process is training in .*: stop it first, or choose another folder"
    with pytest.raises(ConfigError, match=message):
        list(opened(folder, train__max_steps=1000, train__checkpoint_every=1000).train())
    with pytest.raises(ConfigError, match=message):
        opened(folder, train__lr_g=0.5)


def test_a_folder_is_one_teams_and_a_killed_process_ends_the_other(tmp_path):
    processes = begin(wait_and_lose, 2, tmp_path)
    try:
        while not all((tmp_path / f"ready{rank}").is_file() for rank in (0, 1)):
            assert all(process.is_alive() for process in processes)
            time.sleep(0.1)
        before = (tmp_path / "config.json").read_bytes()
        start_beside(0, tmp_path)  # alone
        launch(start_beside, 2, tmp_path)
        assert (tmp_path / "config.json").read_bytes() == before
        (tmp_path / "go on").touch()
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0, -signal.SIGKILL]
    finally:
        for process in processes:
            process.kill()
    assert "goes on from its last checkpoint" in (tmp_path / "said").read_text()
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert [path.name for path in (tmp_path / "checkpoints").glob("*.pt")] == ["step_000005.pt"]  # all was done of it
