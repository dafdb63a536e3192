"""Kill a training with signal 9 at random moments, start it again each time, compare it with one left alone.

    python benchmarks/kill.py        # twenty rounds, each its own run, killed twice at random; prints "20 of 20 equal"

Equal means bit for bit: every tensor of the last checkpoint (networks, EMA, both optimizers), the guards' counts and
all lines of the log but their times.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

SETTINGS = (
    "train.max_steps=40", "train.checkpoint_every=5", "train.sample_every=10", "train.evaluate_every=0",
    "train.batch_size=4", "data.train_size=24", "model.channels=4", "model.disc_channels=16",
    "train.colour=0.5", "train.cutout=0.3",
)  # fmt: skip


def start(folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "galiplib.cli", "train", "--device", "cpu", "--out", str(folder)]
    command += [part for setting in SETTINGS for part in ("--set", setting)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish(folder: Path) -> tuple[dict, list[dict]]:
    """Train to the end -> the last checkpoint, the log without times."""
    assert start(folder).wait() == 0, f"training in {folder} failed"
    (newest,) = folder.glob("checkpoints/step_000040.pt")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return torch.load(newest, weights_only=True), [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def equal(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def steps_of(folder: Path) -> int:
    """The newest checkpoint's step: what a kill can't take any more."""
    return max((int(path.stem[5:]) for path in folder.glob("checkpoints/step_*.pt")), default=0)


def tortured(folder: Path, kills: int, rng: random.Random) -> int:
    """Start and kill a run at random moments of its training -> how many kills met it alive."""
    met = 0
    for _ in range(kills):
        process, before = start(folder), steps_of(folder)
        wanted = before + 5 * rng.randrange(0, 3)
        while process.poll() is None and steps_of(folder) < wanted:
            time.sleep(0.002)
        time.sleep(rng.random() * 2)  # also while it starts, writes a checkpoint, or draws samples
        met += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    return met


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--kills", type=int, default=2, help="per round")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as work:
        whole, good, kills = finish(Path(work) / "whole"), 0, 0
        for index in range(args.rounds):
            folder = Path(work) / f"round{index}"
            met = tortured(folder, args.kills, rng)
            reached = steps_of(folder)
            same = equal(whole, finish(folder))
            good, kills = good + same, kills + met
            print(f"round {index + 1}: killed {met} times, last checkpoint then {reached}, equal: {same}", flush=True)
        print(f"{good} of {args.rounds} equal, {kills} kills")
    sys.exit(good != args.rounds)


if __name__ == "__main__":
    main()
