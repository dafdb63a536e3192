"""What the house costs its visitors: its size, its start-up, a training step beside that of a checkout of before.

python benchmarks/house.py                     # size and start-up
python benchmarks/house.py --before ../before  # and a mini training step of each: git worktree add ../before REVISION

All times are processor time of processes with one thread, in turns, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
STARTS = {
    "import torch": "import torch",
    "import galiplib": "import galiplib",
    "from galiplib import *": "from galiplib import *",  # all that a notebook asks of it
    "galip --help": "import sys; sys.argv = ['galip', '--help']; from galiplib.cli import main; main()",
}
STEPS = """
import sys, time, tempfile
import torch
torch.set_num_threads(1)
from galiplib import Run, load_config
rarely = {f"train.{name}_every": 100_000 for name in ("evaluate", "sample", "checkpoint")}
with tempfile.TemporaryDirectory() as folder:
    sizes = {"data.train_size": 640, "data.test_size": 40, "train.max_steps": 100_000, "train.precision": "fp32"}
    try:
        config = load_config("mini:galip", sizes | rarely)
    except ValueError:  # of before that variant, which mini was then
        config = load_config("mini", sizes | rarely)
    steps = Run(folder, config, "cpu", progress=False).train()
    for line in sys.stdin:
        started = time.process_time()
        for _ in range(int(line)):
            next(steps)
        print(time.process_time() - started, flush=True)
"""


def sizes() -> dict[str, int]:
    """Lines of what has a budget."""
    sys.path.insert(0, str(ROOT / "tests"))
    import test_house as house  # counts as the test does

    return {name: house.lines(modules) for name, (modules, _) in house.BUDGETS.items()}


def processor_time(code: str) -> float:
    """Seconds, user and system, that a fresh interpreter takes for a line of code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, env=environment(ROOT))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def start_up(rounds: int = 5) -> dict[str, float]:
    """Median seconds of each start, the starts taken in turns."""
    taken: dict[str, list[float]] = {name: [] for name in STARTS}
    for _ in range(rounds):
        for name, code in STARTS.items():
            taken[name].append(processor_time(code))
    return {name: statistics.median(times) for name, times in taken.items()}


def environment(checkout: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}


def paired_steps(before: Path, rounds: int, steps: int = 4) -> dict[str, list[float]]:
    """Seconds of a mini training step of both checkouts, a process each, `steps` of them a turn (one with penalty)."""
    command = [sys.executable, "-c", STEPS]
    sides = {
        name: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=path,
                               env=environment(path))
        for name, path in (("before", before), ("now", ROOT))
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in sides}
    try:
        for turn in range(-2, rounds):  # two to warm up
            for name in sorted(sides, reverse=turn % 2 == 1):
                print(steps, file=sides[name].stdin, flush=True)
                taken = float(sides[name].stdout.readline()) / steps
                if turn >= 0:
                    times[name].append(taken)
    finally:
        for process in sides.values():
            process.kill()
    return times


def report_steps(times: dict[str, list[float]]) -> None:
    ratios = [now / before for before, now in zip(times["before"], times["now"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    drawn = random.Random(0)
    medians = sorted(statistics.median(drawn.choices(ratios, k=len(ratios))) for _ in range(2000))
    for name, seconds in times.items():
        print(f"mini training step, {name:6}  {statistics.median(seconds):.4f} s, median of {len(seconds)} turns")
    print(f"now / before {middle:.3f}, quartiles {low:.3f} to {high:.3f}, "
          f"95% of resampled medians {medians[50]:.3f} to {medians[-51]:.3f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="a checkout to time a training step against")
    parser.add_argument("--rounds", type=int, default=40, help="turns of four steps each")
    args = parser.parse_args()
    for name, lines in sizes().items():
        print(f"{name:30} {lines:6,} lines")
    seconds = start_up()
    for name, time in seconds.items():
        print(f"{name:30} {time:6.2f} s of processor time, {time / seconds['import torch']:4.2f} x import torch")
    if args.before:
        report_steps(paired_steps(args.before.resolve(), args.rounds))


if __name__ == "__main__":
    main()
