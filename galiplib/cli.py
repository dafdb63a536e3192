"""`galip`: the notebooks' code as thin commands, for scripts and other machines."""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from . import cli_sampling
from .build import dataset_of, held_out_data, make_data, make_shards, pick_device
from .checkpoints.loading import export_reference, load_generator
from .clip import training as clip_training
from .clip.files import load_clip
from .config import Config, ConfigError, changed, load_config, profiles, valid_keys, variants
from .data import datasets
from .data.shard_writing import PER_SHARD, check_shards
from .distributed import ProcessLost
from .evaluation import compare, measure_folder, measure_generator
from .files import WeightsError, write_atomically, write_json
from .runs.guards import TrainingFailed
from .runs.interrupts import Stopped
from .runs.run import Run

WEIGHTS_HELP = "mini (shipped), a run folder, a .safetensors file or a state_epoch_*.pth of GALIP's or RATLIP's authors"
PROFILE_HELP = f"{', '.join(profiles())}, or a .yaml file; :ratlip behind it chooses a variant (see describe)"
CLIP_HELP = "the CLIP it was trained with, by name or file; the authors' .pth needs one to read captions: ViT-B/32"


def command_line() -> str:
    """What was typed, for provenance records."""
    return shlex.join(["galip", *sys.argv[1:]])


def configure(args: argparse.Namespace) -> Config:
    """The configuration of a command, its differences from the defaults printed."""
    config = load_config(args.profile, args.set)
    dataset_of(config)  # an unknown name is refused before anything is done
    print(f"profile {config.profile}")
    for key, (before, now) in changed(config).items():
        print(f"  {key}: {before!r} -> {now!r}")
    return config


def describe(args: argparse.Namespace) -> None:
    """Print every key with its value and meaning."""
    config = load_config(args.profile, args.set)
    named = [f"{name}:{variant}" for name in profiles() for variant in variants(name)]
    print(f"profile {config.profile} (available: {', '.join(profiles() + named)})")
    for key, meaning in valid_keys().items():
        section, name = key.split(".")
        print(f"{key:24} {str(getattr(getattr(config, section), name)):14} {meaning}")


def train_clip(args: argparse.Namespace) -> None:
    """Train a small CLIP, measure it, write it with its record."""
    config = configure(args)
    held_out = held_out_data(config)
    train = make_data(config)
    device = pick_device(args.device)
    record = clip_training.learn_clip(config, train, held_out, args.out, device, command=command_line())
    print(json.dumps(record["metrics"], indent=2))


def train(args: argparse.Namespace) -> None:
    """Train GALIP in a run folder, or go on with the one that is there; --export also writes its generator."""
    config = configure(args)
    out = args.out or Path("outputs") / config.folder / "train"
    run = Run(out, config, args.device, allow_changes=args.allow_changes)
    if run.step:
        print(f"going on from step {run.step}" if not run.finished else f"complete: {run.step} steps")
    try:
        if not run.finished:
            for _ in run.train():
                pass
    except Stopped as stop:
        print(f"galip: {stop}", file=sys.stderr)
        sys.exit(128 + stop.signal)
    if args.export:
        metrics = measure_generator(run.networks.ema, run.bridge, config).record()
        if run.team.leads:
            run.export(args.export, {"command": command_line(), "metrics": metrics, "torch": torch.__version__})


def evaluate(args: argparse.Namespace) -> None:
    """Measure a generator on captions it has not seen, or pictures in a folder; print and write the numbers."""
    config = configure(args)
    if args.pictures:
        results = {"pictures": str(args.pictures), **measure_folder(args.pictures, config, args.clip)}
    else:
        generator = load_generator(args.weights, load_clip(args.clip) if args.clip else None)
        results = {"weights": str(args.weights), **measure_generator(generator, generator.bridge, config).record()}
    print(json.dumps(results, indent=2))
    if args.out:
        write_json(Path(args.out) / "results.json", results)


def compare_checkpoints(args: argparse.Namespace) -> None:
    """Measure several generators by one protocol: a table as .csv, .md and .png, with published figures beside it."""
    from .course.plotting import draw_comparison

    config = configure(args)
    clip_model = load_clip(args.clip) if args.clip else None
    found = compare(args.weights, config, folder=args.out, clip_model=clip_model)
    figure = draw_comparison(found)
    write_atomically(args.out / "comparison.png", lambda stream: figure.savefig(stream, format="png", dpi=150))
    print(found.markdown())


def data(args: argparse.Namespace) -> None:
    """Say what a data set holds: counts, sizes, captions, what had to be left out; --sheet draws some of it."""
    datasets.describe(args.name, args.folder, sheet=args.sheet, check=args.check)


def shards(args: argparse.Namespace) -> None:
    """Write a data set as WebDataset shards for training from disk; called again, it goes on where it stopped."""
    if args.check:
        print(f"{check_shards(args.out)} shards are as they were written")
        return
    config = configure(args)
    try:
        made = make_shards(config, args.out, args.per_shard, not args.no_embeddings, args.device)
    except KeyboardInterrupt:
        print("galip: stopped; finished shards are kept, the same command goes on", file=sys.stderr)
        sys.exit(130)
    for split, opened in made.items():
        print(f"{split}: {len(opened):,} pictures in {opened.folder}, shards: {len(opened.index.shards)}")
    print(f"train from them: galip train --profile {args.profile} --set data.name=shards --set data.folder={args.out}")


def fetch(args: argparse.Namespace) -> None:
    """Download the public files of a data set into data/<name>; called again, it goes on where it stopped."""
    print(datasets.download(args.name, args.folder))


def export(args: argparse.Namespace) -> None:
    """Write a run as a checkpoint that the code of GALIP's authors loads (state_epoch_*.pth)."""
    export_reference(args.source, args.out, load_clip(args.clip) if args.clip else None, ema=not args.raw)
    print(args.out)


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(prog="galip", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)

    def command(name: str, run: Any, profile: bool = True) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=run.__doc__.splitlines()[0], description=run.__doc__)
        one.set_defaults(run=run)
        if profile:
            one.add_argument("--profile", default="mini", help=PROFILE_HELP)
            one.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override, repeatable")
        return one

    one = command("train", train)
    one.add_argument("--out", type=Path, help="run folder; by default outputs/<profile>/train")
    one.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")
    one.add_argument("--allow-changes", action="store_true", help="go on with another configuration than before")
    one.add_argument("--export", type=Path, help="also write the measured generator here, as safetensors")
    one = command("train-clip", train_clip)
    one.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    one.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")
    one = command("evaluate", evaluate)
    one.add_argument("--weights", default="mini", help=WEIGHTS_HELP)
    one.add_argument("--clip", help=CLIP_HELP)
    one.add_argument("--pictures", type=Path, help="a folder of pictures instead, with manifest.jsonl for captions")
    one.add_argument("--out", type=Path, help="folder for results.json")
    one = command("compare", compare_checkpoints)
    one.add_argument("weights", nargs="+", help=WEIGHTS_HELP)
    one.add_argument("--clip", help=CLIP_HELP)
    one.add_argument("--out", type=Path, required=True, help="folder for comparison.csv, .md and .png")
    command("describe", describe)
    one = command("data", data, profile=False)
    one.add_argument("name", choices=datasets.NAMES)
    one.add_argument("--folder", type=Path, help="where it lies; by default data/<name>")
    one.add_argument("--sheet", type=Path, help="a .png of 24 pictures with captions to write")
    one.add_argument("--check", action="store_true", help="decode every picture, to find broken ones")
    one = command("shards", shards)
    one.add_argument("--out", type=Path, required=True, help="the folder to write train/*.tar and test/*.tar to")
    one.add_argument("--per-shard", type=int, default=PER_SHARD, help="pictures in a shard")
    one.add_argument("--device", default="auto", help="auto, cuda, mps or cpu, for the embeddings")
    one.add_argument("--no-embeddings", action="store_true", help="leave the captions' embeddings to the first run")
    one.add_argument("--check", action="store_true", help="only compare the shards in --out with their checksums")
    one = command("download", fetch, profile=False)
    one.add_argument("name", choices=[name for name in datasets.NAMES if name != "folder"])
    one.add_argument("--folder", type=Path, help="where to put it; by default data/<name>")
    one = command("export", export, profile=False)
    one.add_argument("source", type=Path, help="run folder or one of its checkpoints")
    one.add_argument("--out", type=Path, required=True, help="the .pth to write, such as state_epoch_100.pth")
    one.add_argument("--clip", help=CLIP_HELP)
    one.add_argument("--raw", action="store_true", help="the generator in training, not its average")
    one = command("sample", cli_sampling.run, profile=False)
    cli_sampling.add_arguments(one, WEIGHTS_HELP, CLIP_HELP)
    return top


def main() -> None:
    """Run a command; what a user can mend ends in one line and exit status 2."""
    args = parser().parse_args()
    # of several processes of one training, the first one talks
    told = nullcontext() if os.environ.get("RANK", "0") == "0" else redirect_stdout(io.StringIO())
    try:
        with told:
            args.run(args)
    except (
        ConfigError, WeightsError, TrainingFailed, ProcessLost, FloatingPointError, ValueError, OSError, ImportError,
    ) as error:  # fmt: skip
        print(f"galip: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("galip: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
