"""Does a training in bf16 learn as well as one in fp32? Both, with several seeds, the same steps.

    python benchmarks/precision.py --folder /tmp/precision                 # finished runs there are not repeated
    python benchmarks/precision.py --folder /tmp/unbounded --range-weight 0 --only-gan

Profile mini: the GAN, measured on 1,000 captions, and the small CLIP that notebook 02 trains.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import pandas as pd
import torch

import measure
from galiplib import load_config
from galiplib.clip.files import KIND
from galiplib.clip.training import learn_clip
from galiplib.data import minibirds
from galiplib.files import load_weights
from galiplib.runs.ablation import ab, spread

PRECISIONS = ("fp32", "bf16")
GAN_SHOWN = {
    "accuracy": "caption accuracy", "frechet_distance": "Fréchet distance (judge)",
    "clip_similarity": "CLIP similarity",
}  # fmt: skip
CLIP_SHOWN = ("prompt", "counterfactual", "retrieval")


def gan(folder: Path, steps: int, seeds: range, range_weight: float) -> pd.DataFrame:
    """A row a run."""
    variants = {name: {"train.precision": name, "train.range_weight": range_weight} for name in PRECISIONS}
    rows = ab(variants, seeds, steps, folder)
    return rows.rename(columns=GAN_SHOWN)[["variant", "seed", *GAN_SHOWN.values()]]


def small_clip(folder: Path, steps: int, seeds: range) -> pd.DataFrame:
    """A row a run: shares of held-out birds, means over the attributes or both ways of retrieval."""
    rows, birds = [], {}
    for seed in seeds:
        for name in PRECISIONS:
            config = load_config("mini", {"clip.max_steps": steps, "clip.precision": name, "train.seed": seed})
            birds = birds or {split: minibirds.build(split, count) for split, count in (
                ("train", config.data.train_size), ("test", config.data.test_size))}  # fmt: skip
            path = folder / f"clip_{name}_seed{seed}.safetensors"
            if not path.is_file():
                learn_clip(config, birds["train"], {"test": birds["test"]}, path)
            values = load_weights(path, KIND)[1]["metrics"]["test"]
            rows.append({"variant": name, "seed": seed} | {
                key: sum(values[key].values()) / len(values[key]) for key in CLIP_SHOWN
            })  # fmt: skip
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/precision"), help="of the runs")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--range-weight", type=float, default=1.0, help="train.range_weight of the GAN")
    parser.add_argument("--only-gan", action="store_true", help="leave the small CLIP out")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    trainings = {"GAN": partial(gan, range_weight=args.range_weight), "small CLIP": small_clip}
    for what in ("GAN",) if args.only_gan else trainings:
        found = trainings[what](args.folder, args.steps, range(args.seeds))
        print(found)
        columns = [name for name in found if name not in ("variant", "seed")]
        summary = spread(found, columns)
        for column in columns:
            values = {name: summary.loc[name, column] for name in PRECISIONS}
            shown = {name: f"{mean:.3f} ± {deviation:.3f}" for name, (mean, deviation) in values.items()}
            rows.append({"training": what, "measure": column, **shown})
    machine = measure.describe(torch.device("cpu"))
    note = f"{args.steps} steps, {args.seeds} seeds, mean and standard deviation. {machine}"
    measure.write_table("precision" if args.range_weight else "precision_unbounded", rows, note)


if __name__ == "__main__":
    main()
