"""`galip`: the notebooks' code as thin commands, for scripts and other machines."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from . import clip_files, clip_training, evaluation
from .clip_bridge import ClipBridge
from .config import Config, ConfigError, changed, load_config, profiles, valid_keys
from .files import WeightsError, write_json
from .judge import load_judge
from .loading import load_generator
from .runs import Run, make_data
from .sampling import contact_sheet, sample, save_png


def command_line() -> str:
    """What was typed, for provenance records."""
    return shlex.join(["galip", *sys.argv[1:]])


def configure(args: argparse.Namespace) -> Config:
    """The configuration of a command, its differences from the defaults printed."""
    config = load_config(args.profile, args.set)
    print(f"profile {config.profile}")
    for key, (before, now) in changed(config).items():
        print(f"  {key}: {before!r} -> {now!r}")
    return config


def describe(args: argparse.Namespace) -> None:
    """Print every key with its value and meaning."""
    config = load_config(args.profile, args.set)
    print(f"profile {config.profile} (available: {', '.join(profiles())})")
    for key, meaning in valid_keys().items():
        section, name = key.split(".")
        print(f"{key:24} {str(getattr(getattr(config, section), name)):14} {meaning}")


def train_clip(args: argparse.Namespace) -> None:
    """Train a small CLIP, measure it, write it with its record."""
    config = configure(args)
    data = config.data
    torch.manual_seed(config.train.seed)
    started = time.perf_counter()
    train = make_data(config)
    geometry = clip_training.clip_geometry(config.clip, data)
    vocabulary = clip_training.vocabulary_of([text for texts in train.captions for text in texts])
    bridge = ClipBridge(clip_training.new_clip(geometry, vocabulary), trainable=True)
    reports = clip_training.train_clip(bridge, train, config.clip, config.train.seed)
    for report in (bar := tqdm(reports, total=config.clip.max_steps, desc="CLIP")):
        bar.set_postfix(contrastive=f"{report.contrastive:.2f}", word_pairs=f"{report.word_pairs:.2f}", refresh=False)
    seconds = time.perf_counter() - started
    bridge = ClipBridge(bridge.model.half().float())  # measured as it is written, in fp16
    record = {
        "command": command_line(),
        "seed": config.train.seed,
        "data": data.model_dump(),
        "clip": config.clip.model_dump(),
        "steps": config.clip.max_steps,
        "seconds": round(seconds),
        "metrics": {split: clip_training.measure(bridge, make_data(config, split)) for split in ("seen", "test")},
        "torch": torch.__version__,
    }
    clip_files.save_clip(args.out, bridge.model, geometry, record)
    print(json.dumps(record["metrics"], indent=2))


def train(args: argparse.Namespace) -> None:
    """Train GALIP in a run folder, or go on with the one that is there; --export also writes its generator."""
    config = configure(args)
    run = Run(args.out, config, args.device)
    if run.step:
        print(f"going on from step {run.step}" if not run.finished else f"complete: {run.step} steps")
    try:
        if not run.finished:
            for _ in run.train():
                pass
    except KeyboardInterrupt:
        sys.exit(f"stopped after step {run.step}; the same command goes on from there")
    if args.export:
        splits = {split: make_data(config, split) for split in ("seen", "test")}
        metrics = evaluation.evaluate(run.networks.ema, run.bridge, load_judge(), splits, config.eval)
        run.export(args.export, {"command": command_line(), "metrics": metrics, "torch": torch.__version__})


def evaluate(args: argparse.Namespace) -> None:
    """Measure a generator on captions it has not seen, print and write the numbers."""
    config = configure(args)
    generator = load_generator(args.weights)
    splits = {split: make_data(config, split) for split in ("seen", "test")}
    results = evaluation.evaluate(generator, generator.bridge, load_judge(), splits, config.eval)
    results = {"weights": str(args.weights), **results}
    print(json.dumps(results, indent=2))
    if args.out:
        write_json(Path(args.out) / "results.json", results)


def draw(args: argparse.Namespace) -> None:
    """Make pictures of a caption; several become one sheet."""
    generator = load_generator(args.weights)
    made = sample(generator, generator.bridge, args.caption, args.count, args.seed)
    sheet = contact_sheet(made.images, columns=min(args.count, 8), scale=args.scale)
    out = args.out or Path(re.sub(r"\W+", "_", args.caption.lower()).strip("_")[:60] + ".png")
    settings = {"caption": args.caption, "seed": args.seed, "count": args.count, "weights": args.weights}
    print(save_png(sheet, out, settings))


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(prog="galip", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)

    def command(name: str, run: Any, profile: bool = True) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=run.__doc__.splitlines()[0], description=run.__doc__)
        one.set_defaults(run=run)
        if profile:
            one.add_argument("--profile", default="mini", help=f"{', '.join(profiles())}, or a .yaml file")
            one.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override, repeatable")
        return one

    one = command("train", train)
    one.add_argument("--out", type=Path, help="run folder; by default outputs/<profile>/train")
    one.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")
    one.add_argument("--export", type=Path, help="also write the measured generator here, as safetensors")
    one = command("train-clip", train_clip)
    one.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    one = command("evaluate", evaluate)
    one.add_argument("--weights", default="mini", help="mini (shipped), a .safetensors file or a run folder")
    one.add_argument("--out", type=Path, help="folder for results.json")
    command("describe", describe)
    one = command("sample", draw, profile=False)
    one.add_argument("caption")
    one.add_argument("--weights", default="mini", help="mini (shipped), a .safetensors file or a run folder")
    one.add_argument("--count", type=int, default=8)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--scale", type=int, default=2, help="magnification of the sheet")
    one.add_argument("--out", type=Path, help="the .png to write; by default named after the caption")
    return top


def main() -> None:
    """Run a command; what a user can mend ends in one line and exit status 2."""
    args = parser().parse_args()
    if args.command == "train" and args.out is None:
        args.out = Path("outputs") / Path(args.profile).stem / "train"
    try:
        args.run(args)
    except (ConfigError, WeightsError, ValueError, OSError) as error:
        print(f"galip: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
