"""What the house costs its visitors: python benchmarks/house.py

Processor time of fresh interpreters, in turns, so that a busy machine slows all of them alike; the medians are printed.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys

STARTS = {
    "import torch": "import torch",
    "import galiplib": "import galiplib",
    "from galiplib import *": "from galiplib import *",  # all that a notebook asks of it
    "galip --help": "import sys; sys.argv = ['galip', '--help']; from galiplib.cli import main; main()",
}


def processor_time(code: str) -> float:
    """Seconds, user and system, that a fresh interpreter takes for a line of code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def start_up(rounds: int = 5) -> dict[str, float]:
    """Median seconds of each start, the starts taken in turns."""
    taken: dict[str, list[float]] = {name: [] for name in STARTS}
    for _ in range(rounds):
        for name, code in STARTS.items():
            taken[name].append(processor_time(code))
    return {name: statistics.median(times) for name, times in taken.items()}


def main() -> None:
    seconds = start_up()
    for name, time in seconds.items():
        print(f"{name:24} {time:5.2f} s of processor time, {time / seconds['import torch']:4.2f} x import torch")


if __name__ == "__main__":
    main()
