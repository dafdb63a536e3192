"""How time and memory grow with batch, picture size and data set: table and figure.

    python benchmarks/growth.py            # profile mini; a step longer than --limit seconds ends its curve

Each point is a process of its own, whose peak memory is its own: python benchmarks/growth.py --point batch 32
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

import matplotlib.pyplot as plt
import torch

import measure
import subjects
from galiplib.data import minibirds
from galiplib.data.batches import TrainingData

CURVES = {
    "batch": ("pictures in a step", (1, 2, 4, 8, 16, 32, 64, 128)),
    "side": ("side of the pictures, pixels", (64, 128, 224, 256, 512)),
    "data": ("pictures in the data set", (500, 1000, 2000, 4000, 8000)),
}
SIDE_BATCH = 4


def point(curve: str, value: int, device: torch.device) -> tuple[float, float]:
    """Seconds of a step of ours (of a batch from the data set), and the process's peak memory in GB."""
    bridge = subjects.bridge_of("mini", device)
    if curve == "data":
        data = TrainingData(bridge, minibirds.build("train", value))
        steps = iter(range(1, 10**9))
        calls = {"": lambda: data.batch(next(steps), 32, seed=0)}
    else:
        batch, side = (value, None) if curve == "batch" else (SIDE_BATCH, value)
        calls = {"": subjects.step_of(f"ours {subjects.fast(device)}", "mini", bridge, batch, side)[0]}
    seconds = statistics.median(measure.alternate(calls, device, repeats=3, warm_up=1)[""])
    return seconds, measure.own_peak(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=20, help="seconds a step, after which a curve ends")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--point", nargs=2, metavar=("CURVE", "VALUE"), help="one point, printed")
    args = parser.parse_args()
    device = torch.device(args.device)
    if args.point:
        print(*point(args.point[0], int(args.point[1]), device))
        return
    rows = []
    for curve, (label, values) in CURVES.items():
        for value in values:
            command = [sys.executable, __file__, "--device", args.device, "--point", curve, str(value)]
            made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            seconds, peak = map(float, made.stdout.split()[-2:])
            rows.append({"curve": label, "value": value, "seconds": f"{seconds:.4f}", "peak GB": f"{peak:.2f}"})
            print(rows[-1])
            if seconds > args.limit:
                break
    measure.write_table(f"growth_{device.type}", rows, measure.describe(device))
    draw(rows, device)


def draw(rows: list[dict], device: torch.device) -> None:
    figure, axes = plt.subplots(2, len(CURVES), figsize=(12, 6), sharex="col")
    for column, (label, _) in enumerate(CURVES.values()):
        found = [row for row in rows if row["curve"] == label]
        for axis, key in zip(axes[:, column], ("seconds", "peak GB"), strict=True):
            axis.plot([row["value"] for row in found], [float(row[key]) for row in found], marker="o")
            axis.set_xscale("log", base=2)
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
            axis.set_ylabel(key if key == "peak GB" else f"seconds a {'batch of 32' if column == 2 else 'step'}")
        axes[1, column].set_xlabel(label)
        values = [row["value"] for row in found]
        axes[1, column].set_xticks(values, values, rotation=45)
        axes[1, column].minorticks_off()
    axes[0, 1].set_title(f"batch {SIDE_BATCH}")
    figure.tight_layout()
    figure.savefig(measure.RESULTS / f"growth_{device.type}.png", dpi=100)


if __name__ == "__main__":
    main()
