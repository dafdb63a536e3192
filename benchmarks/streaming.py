"""Training from shards: speed of loading against speed of training, and memory against the number of samples.

    OMP_NUM_THREADS=1 python benchmarks/streaming.py --folder DIR      # about 1.2 GB of disk, removed afterwards
    python benchmarks/streaming.py report                              # the figure again

Mini birds in shards, 2,000, 20,000 and 200,000 of them. 4,000 are drawn; beyond, their pictures are used again, each
time as a sample of its own with a caption of its own, since what is measured is reading. Every size is measured in a
process of its own, or the peak of memory would be that of the largest. In it, rounds of loading alone, training alone
(on a batch in memory) and both take turns, so that a busy machine disturbs all alike; the ratio is what counts. Beside
the time on the clock stands the processor time of a picture, which other work on the machine hardly changes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import psutil

from galiplib import load_config
from galiplib.build import make_bridge, make_system
from galiplib.data import minibirds
from galiplib.data.batches import TrainingData
from galiplib.data.shard_writing import Sample, encoded, write_shards
from galiplib.data.shards import open_shards
from galiplib.system import Batch, Text
from galiplib.training import Optimizers, random_of, train_step

SIZES = (2_000, 20_000, 200_000)
DRAWN = 4_000
ROUNDS, STEPS, WARM_UP = 7, 4, 2
RESULTS, FIGURE = Path(__file__).with_name("streaming.json"), Path(__file__).with_name("streaming.png")


class ReusedBirds:
    """`count` samples from the pictures of 4,000 birds, one caption each, as CC12M has."""

    suffix, image_size, drawn = "png", 56, False

    def __init__(self, count: int, pictures: list[bytes]) -> None:
        self.count, self.pictures = count, pictures
        self.birds = minibirds.birds("train", DRAWN)

    def __len__(self) -> int:
        return self.count

    def sample(self, row: int) -> Sample:
        captions = minibirds.captions(self.birds[row % DRAWN][0], row)
        return Sample(f"bird_{row}", (captions[row // DRAWN % 10],), self.pictures[row % DRAWN])


def seconds(work, steps: range) -> tuple[float, float]:
    """Seconds a step on the clock and of the processor."""
    started = time.perf_counter(), time.process_time()
    for step in steps:
        work(step)
    return (time.perf_counter() - started[0]) / len(steps), (time.process_time() - started[1]) / len(steps)


def measure(folder: Path) -> dict[str, float]:
    """Pictures a second, processor time a picture in ms, and the memory of this process in MB."""
    config = load_config("mini:galip")
    size = config.train.batch_size
    bridge = make_bridge(config)
    networks = make_system(bridge, config)
    optimizers = Optimizers(networks, config.train)
    before = psutil.Process().memory_info().rss
    started = time.perf_counter()
    data = TrainingData(bridge, open_shards(folder, image_size=56, progress=False))
    data.batch(1, size, 0)
    opened = time.perf_counter() - started
    added = psutil.Process().memory_info().rss - before
    kept = data.batch(1, size, 0)

    def load(step: int):
        return data.batch(step, size, 0)

    def train(step: int, batch=kept):
        images, sentence = batch
        noise = networks.draw(size, partial(random_of, 0, step=step))
        train_step(networks, optimizers, Batch(images, Text(sentence), noise), config.train, step)

    def both(step: int):
        train(step, load(step))

    times = {"loading": [], "training": [], "both": []}
    for number in range(ROUNDS + 1):
        first = 2 + 97 * number  # places all over an epoch
        for name, work in (("loading", load), ("training", train), ("both", both)):
            elapsed = seconds(work, range(first, first + (STEPS if number else WARM_UP)))
            if number:
                times[name].append(elapsed)

    def ratio(one: str, other: str) -> float:
        """How many times as fast one is as the other, the median over the rounds."""
        return statistics.median(b[0] / a[0] for a, b in zip(times[one], times[other], strict=True))

    found = {"samples": len(data)}
    for name, pairs in times.items():
        clock, processor = (statistics.median(column) / size for column in zip(*pairs, strict=True))
        found |= {f"{name}_per_s": round(1 / clock, 1), f"{name}_cpu_ms": round(1e3 * processor, 2)}
    return {
        **found, "loading_to_training": round(ratio("loading", "training"), 1),
        "both_to_training": round(ratio("both", "training"), 2), "opened_s": round(opened, 2),
        "added_mb": round(added / 1e6, 1), "peak_mb": round(peak() / 1e6),
    }  # fmt: skip


def peak() -> int:
    """The largest memory that this process has held, bytes."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def make(folder: Path) -> None:
    """Shards, index and embeddings of every size."""
    print(f"drawing {DRAWN:,} birds")
    pictures = [encoded(minibirds.render(bird, pose), "png") for bird, pose in minibirds.birds("train", DRAWN)]
    bridge = make_bridge(load_config("mini"))
    for count in SIZES:
        write_shards(ReusedBirds(count, pictures), folder / str(count) / "train", {"count": count})
        open_shards(folder / str(count), image_size=56).sentences(bridge)


def report(rows: list[dict[str, float]]) -> None:
    """Draw the figure, print the table."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(rows[0])
    print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
    for row in rows:
        print("| " + " | ".join(f"{row[name]:,}" for name in names) + " |")
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    samples = [row["samples"] for row in rows]
    for name, label in (("training", "a training step"), ("both", "the step with its loading"), ("loading", "loading")):
        left.plot(samples, [row[f"{name}_cpu_ms"] for row in rows], "o-", label=label)
    left.set(yscale="log", ylim=(0.1, 300), ylabel="ms of processor time a picture", title="Time")
    left.legend(loc="center right")
    right.plot(samples, [row["peak_mb"] for row in rows], "o-", label="peak of the process")
    right.axhline(1500, color="grey", linestyle="--", label="the limit: 1.5 GB")
    right.set(ylim=(0, 1700), ylabel="MB", title="Memory")
    right.legend(loc="lower right")
    for axes in (left, right):
        axes.set(xscale="log", xlabel="samples in the shards")
        axes.grid(alpha=0.3)
    figure.savefig(FIGURE, dpi=110)
    print(FIGURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("run", "report", "one"), default="run")
    parser.add_argument("--folder", type=Path, help="for the shards; by default a temporary one")
    args = parser.parse_args()
    if args.what == "one":
        print(json.dumps(measure(args.folder)))
    elif args.what == "report":
        report(json.loads(RESULTS.read_text()))
    else:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            make(Path(folder))
            rows = []
            for count in SIZES:
                command = [sys.executable, __file__, "one", "--folder", f"{folder}/{count}"]
                rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
                print(rows[-1])
            RESULTS.write_text(json.dumps(rows, indent=2) + "\n")
            report(rows)


if __name__ == "__main__":
    main()
