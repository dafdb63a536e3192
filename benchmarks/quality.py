"""How good after how many seconds? Two configurations of mini trained in turns in one process, on the same batches.

    python benchmarks/quality.py                                    # mini through CLIP alone, and with the rest of it
    python benchmarks/quality.py --candidate model.projected=lite0 train.lr_g=0.002 --steps 500

Training seconds only, of which a slow moment of the machine disturbs both: the Fréchet distance over EfficientNet-Lite2
(pictures against other real ones, in floors: real against real, as many a side) and the judge's caption accuracy, a
curve a seed. Writes results/quality.json and .png.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

import measure
from galiplib import evaluation, load_config
from galiplib.build import make_bridge, make_data, make_system
from galiplib.config import Config
from galiplib.data.batches import TrainingData
from galiplib.evaluation.judge import load_judge
from galiplib.evaluation.samples import frechet_of_samples
from galiplib.images import to_images
from galiplib.training import Optimizers, train

BASE = "mini:galip"
CANDIDATE = ("model.projected=lite0", "model.energy=2", "train.lr_g=0.002")
INK = {BASE: "tab:gray"}  # the other one is blue


class Examiner:
    """Measures generators beside the same real pictures, of captions that no training used."""

    def __init__(self, config: Config, bridge: Any, pictures: int) -> None:
        self.bridge, self.judge, self.look = bridge, load_judge(), evaluation.extractor("imagenet")
        source = make_data(config, "seen")
        chosen = evaluation.plan(source.captions, 2 * pictures)
        features = self.look(to_images(source.pixels(chosen.rows)[0]))  # (2 N, 1280)
        self.real, other = features.chunk(2)
        self.captions = chosen.captions[pictures:]  # those of the other half, which gives the floor
        self.floor = frechet_of_samples(self.real, other)

    def __call__(self, generator: Any) -> dict[str, Any]:
        images = evaluation.generate(generator, self.bridge, self.captions)
        distance = frechet_of_samples(self.real, self.look(images))
        found = evaluation.caption_accuracy(self.judge, images, self.captions)
        return {
            "floors": distance / self.floor, "frechet_distance": distance,
            "caption_accuracy": {name: one.value for name, one in found.items()},
        }  # fmt: skip


def in_turns(configs: dict[str, Config], points: int, pictures: int, device: torch.device) -> Iterator[dict[str, Any]]:
    """Train all of them in turns -> a row a configuration at each of `points` equally far apart."""
    first = next(iter(configs.values()))
    bridge = make_bridge(first, device)
    data, examiner = TrainingData(bridge, make_data(first)), Examiner(first, bridge, pictures)
    systems = {name: make_system(bridge, config) for name, config in configs.items()}
    loops = {
        name: train(systems[name], Optimizers(systems[name], config.train), data, config.train)
        for name, config in configs.items()
    }
    seconds = dict.fromkeys(configs, 0.0)
    steps = first.train.max_steps
    due = {round(steps * (point + 1) / points) for point in range(points)}
    for step in range(1, steps + 1):
        for name, loop in loops.items():
            measure.synchronise(device)
            started = measure.clock()
            next(loop)
            measure.synchronise(device)
            seconds[name] += measure.clock() - started
        for name in configs if step in due else ():
            row = {"configuration": name, "step": step, "seconds": round(seconds[name], 2), "floor": examiner.floor}
            yield row | examiner(systems[name].ema)


def draw(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Distance and caption accuracy against training seconds."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6))
    curves = list(dict.fromkeys((row["configuration"], row["seed"]) for row in rows))
    for name, seed in curves:
        own = [row for row in rows if (row["configuration"], row["seed"]) == (name, seed)]
        x = [row["seconds"] for row in own]
        accuracy = [statistics.mean(row["caption_accuracy"].values()) for row in own]
        label = f"{name}, {own[-1]['step']} steps" if seed == curves[0][1] else None
        for axis, y in zip(axes, ([row["floors"] for row in own], accuracy), strict=True):
            axis.plot(x, y, "o-", color=INK.get(name, "tab:blue"), label=label, alpha=0.8, markersize=4)
    axes[0].axhline(1, color="black", linestyle="--", linewidth=1)
    axes[0].text(axes[0].get_xlim()[0], 1.03, " real pictures", va="bottom", fontsize=9)
    axes[0].set(title="Fréchet distance over EfficientNet-Lite2, in floors", yscale="log")
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].yaxis.set_minor_formatter("")
    axes[0].set_yticks([one for one in (1, 2, 3, 5, 10, 20, 30, 50) if one < 1.3 * axes[0].get_ylim()[1]])
    axes[1].set(title="caption accuracy, mean of four", ylim=(0, 1.03))
    for axis in axes:
        axis.set_xlabel("seconds of training")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", bbox_to_anchor=(0.5, 0.04), frameon=False)
    figure.text(0.01, 0.01, title, fontsize=7, color="gray")
    figure.tight_layout(rect=(0, 0.15, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidate", nargs="+", default=list(CANDIDATE), metavar="KEY=VALUE", help="what it changes")
    parser.add_argument("--both", nargs="+", default=[], metavar="KEY=VALUE", help="what both of them change")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the training, one after another")
    parser.add_argument("--points", type=int, default=5, help="evaluations of each")
    parser.add_argument("--pictures", type=int, default=500, help="a side of each distance")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=measure.RESULTS, help="folder of quality.json and quality.png")
    args = parser.parse_args()
    device, both = torch.device(args.device), [*args.both, f"train.max_steps={args.steps}"]
    candidate = f"{BASE} + {', '.join(args.candidate)}"
    record = {"machine": measure.describe(device), "both": both, "pictures_a_side": args.pictures, "rows": []}
    args.out.mkdir(parents=True, exist_ok=True)
    title = f"{args.pictures} pictures a side, seeds {', '.join(map(str, args.seeds))}; {record['machine']}"
    for seed in args.seeds:
        seeded = [*both, f"train.seed={seed}"]
        configs = {BASE: load_config(BASE, seeded), candidate: load_config(BASE, [*seeded, *args.candidate])}
        for row in in_turns(configs, args.points, args.pictures, device):
            print(json.dumps(row), flush=True)
            record["rows"].append({"seed": seed, **row})  # written at once: a stopped benchmark keeps what it has found
            (args.out / "quality.json").write_text(json.dumps(record, indent=1) + "\n")
            draw(record["rows"], args.out / "quality.png", title)


if __name__ == "__main__":
    main()
