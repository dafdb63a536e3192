"""Does a training stay good when it goes on? Profile mini at five times its length, recipes side by side.

    python benchmarks/stability.py train --recipe stable --batch 8      # one of the four runs; called again, it goes on
    python benchmarks/stability.py report                               # table and figure of the runs that there are

Each run is a run folder in outputs/stability; OMP_NUM_THREADS=1 lets two of them share two cores.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

from galiplib import load_config
from galiplib.runs.log import read_lines
from galiplib.runs.run import Run

TIMES = 5  # the profile's own length
COLOURS = {"paper": "tab:red", "stable": "tab:blue"}
PANELS = {
    "frechet": "Fréchet distance",
    "accuracy": "caption accuracy",
    "diversity": "diversity of a batch (mean of 50)",
}


def train(recipe: str, batch: int, out: Path) -> None:
    length = load_config("mini:galip").train.max_steps
    settings = {
        "train.recipe": recipe, "train.batch_size": batch, "train.max_steps": TIMES * length,
        "train.evaluate_every": length // 2, "train.sample_every": length,
    }  # fmt: skip
    for _ in Run(out / f"{recipe}_{batch}", load_config("mini:galip", settings)).train():
        pass


def curves(folder: Path) -> pd.DataFrame:
    """Step, Fréchet distance, mean caption accuracy over body, wing and belly, diversity of the 50 batches before."""
    diversity = pd.DataFrame(read_lines(folder / "metrics.jsonl")).set_index("step").diversity.rolling(50).mean()
    rows = []
    for line in read_lines(folder / "evaluations.jsonl"):
        accuracy = line["caption_accuracy"]
        rows.append(
            {
                "step": line["step"],
                "frechet": line["frechet_distance"],
                "accuracy": sum(accuracy[name] for name in ("body", "wing", "belly")) / 3,
                "diversity": diversity[line["step"]],
            }
        )
    return pd.DataFrame(rows)


def report(out: Path) -> None:
    table, found = [], {}
    for folder in sorted(path.parent for path in out.glob("*/evaluations.jsonl")):
        recipe, batch = folder.name.split("_")
        found[recipe, int(batch)] = curve = curves(folder)
        steps = read_lines(folder / "metrics.jsonl")
        best = curve.loc[curve.frechet.idxmin()]
        last = curve.iloc[-1]
        table.append(
            {
                "recipe": recipe, "batch": int(batch), "steps": len(steps),
                "best Fréchet": round(best.frechet, 1), "at step": int(best.step),
                "last Fréchet": round(last.frechet, 1), "last / best": round(last.frechet / best.frechet, 2),
                "last accuracy": round(last.accuracy, 3), "best accuracy": round(curve.accuracy.max(), 3),
                "skipped": sum(line["skipped"] for line in steps), "rollbacks": steps[-1]["rollbacks"],
            }
        )  # fmt: skip
    print(pd.DataFrame(table).to_string(index=False))
    (out / "stability.json").write_text(json.dumps(table, indent=2))

    batches = sorted({batch for _, batch in found})
    size = (5 * len(batches), 8)
    figure, axes = plt.subplots(3, len(batches), figsize=size, sharex=True, sharey="row", squeeze=False)
    for column, batch in enumerate(batches):
        for row, (name, label) in enumerate(PANELS.items()):
            axis = axes[row, column]
            for recipe in COLOURS:
                if (recipe, batch) in found:
                    curve = found[recipe, batch]
                    axis.plot(curve.step, curve[name], marker=".", color=COLOURS[recipe], label=recipe)
            axis.grid(alpha=0.3)
            if name == "frechet":
                axis.set_yscale("log")
                axis.set_yticks([20, 30, 50, 100, 150], minor=False)
                axis.yaxis.set_major_formatter("{x:g}")
                axis.yaxis.set_minor_formatter("")
                axis.set_title(f"batch {batch}")
                axis.legend()
            if column == 0:
                axis.set_ylabel(label)
        axes[-1, column].set_xlabel("step")
    figure.tight_layout()
    figure.savefig(out / "stability.png", dpi=120)
    print(out / "stability.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/stability"))
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("train")
    one.add_argument("--recipe", choices=list(COLOURS), required=True)
    one.add_argument("--batch", type=int, required=True)
    commands.add_parser("report")
    args = parser.parse_args()
    train(args.recipe, args.batch, args.out) if args.command == "train" else report(args.out)


if __name__ == "__main__":
    main()
