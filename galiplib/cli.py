"""`galip`: the notebooks' code as thin commands, for scripts and other machines."""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

# the rest is imported by the command that needs it, so that a slip of the keyboard is answered at once
if TYPE_CHECKING:
    from .config import Config
    from .sampling.provenance import Origin
    from .system import TextToImage

PROFILES = sorted(path.stem for path in (Path(__file__).parent / "profiles").glob("*.yaml"))
PROFILE_HELP = f"{', '.join(PROFILES)}, or a .yaml file; :ratlip behind it chooses a variant (see describe)"
WEIGHTS_HELP = "mini (shipped), a run folder, a .safetensors file or a state_epoch_*.pth of GALIP's or RATLIP's authors"
CLIP_HELP = "the CLIP it was trained with, by name or file; the authors' .pth needs one to read captions: ViT-B/32"
MOVED = {"replay": "replay PNG", "to_seed": "walk CAPTION --to-seed N", "steps": "walk CAPTION --steps N"}
ABORTED = {"shards": "stopped; finished shards are kept, the same command goes on"}
SHARED: dict[str, dict[str, Any]] = {  # options of several commands
    "profile": {"default": "mini", "help": PROFILE_HELP},
    "set": {"action": "append", "default": [], "metavar": "KEY=VALUE", "help": "override, repeatable"},
    "device": {"default": "auto", "help": "auto, cuda, mps or cpu; pictures are drawn on the cpu unless asked"},
    "weights": {"default": "mini", "help": WEIGHTS_HELP},
    "clip": {"help": CLIP_HELP},
    "raw": {"action": "store_true", "help": "a run's weights in training, not their average"},
    "seed": {"type": int, "default": 0, "help": "of the first picture; the next one has one more"},
    "truncation": {"type": float, "default": 1.0, "help": "factor of the noise, 0 to 2"},
    "precision": {
        "choices": ("fp32", "bf16", "auto"), "default": "fp32",
        "help": "bf16: twice as fast where the hardware has it (auto), and not quite the same pictures",
    },
    "scale": {"type": int, "default": 2, "help": "magnification of sheets and animations"},
}  # fmt: skip
Command = Callable[[argparse.Namespace], None]
DRAWING = ("weights", "clip", "device", "raw", "seed", "truncation", "precision", "scale")


def command_line() -> str:
    """What was typed, for provenance records."""
    return shlex.join(["galip", *sys.argv[1:]])


def configure(args: argparse.Namespace) -> Config:
    """The configuration of a command, its differences from the defaults printed."""
    from .build import dataset_of
    from .config import changed, load_config

    config = load_config(args.profile, args.set)
    dataset_of(config)  # an unknown name is refused before anything is done
    print(f"profile {config.profile}")
    for key, (before, now) in changed(config).items():
        print(f"  {key}: {before!r} -> {now!r}")
    return config


def describe(args: argparse.Namespace) -> None:
    """Print every key with its value and meaning."""
    from .config import load_config, valid_keys, variants

    config = load_config(args.profile, args.set)
    named = [f"{name}:{variant}" for name in PROFILES for variant in variants(name)]
    print(f"profile {config.profile} (available: {', '.join(PROFILES + named)})")
    for key, meaning in valid_keys(config.system).items():
        section, name = key.split(".")
        print(f"{key:24} {str(getattr(getattr(config, section), name)):14} {meaning}")


def train_clip(args: argparse.Namespace) -> None:
    """Train a small CLIP, measure it, write it with its record."""
    from .build import held_out_data, make_data, pick_device
    from .clip.training import learn_clip

    config = configure(args)
    held_out = held_out_data(config)
    train, device = make_data(config), pick_device(args.device)
    record = learn_clip(config, train, held_out, args.out, device, command=command_line())
    print(json.dumps(record["metrics"], indent=2))


def train(args: argparse.Namespace) -> None:
    """Train GALIP in a run folder, or go on with the one that is there; --export also writes its generator."""
    import torch

    from .runs.run import Run

    config = configure(args)
    out = args.out or Path("outputs") / config.folder / "train"
    run = Run(out, config, args.device, allow_changes=args.allow_changes)
    if run.step:
        print(f"going on from step {run.step}" if not run.finished else f"complete: {run.step} steps")
    if not run.finished:
        for _ in run.train():
            pass
    if args.export:
        from .evaluation import measure_generator

        metrics = measure_generator(run.system.ema, run.bridge, config).record()
        if run.workers.leads:
            run.export(args.export, {"command": command_line(), "metrics": metrics, "torch": torch.__version__})


def evaluate(args: argparse.Namespace) -> None:
    """Measure a generator on captions it has not seen, or pictures in a folder; print and write the numbers."""
    from .build import pick_device
    from .evaluation import measure_folder, measure_generator
    from .files import write_json

    config = configure(args)
    if args.pictures:
        found = measure_folder(args.pictures, config, args.clip, device=pick_device(args.device))
        results = {"pictures": str(args.pictures), **found}
    else:
        generator = load(args)
        results = {"weights": str(args.weights), **measure_generator(generator, generator.bridge, config).record()}
    print(json.dumps(results, indent=2))
    if args.out:
        write_json(Path(args.out) / "results.json", results)


def compare(args: argparse.Namespace) -> None:
    """Measure several generators by one protocol: a table as .csv, .md and .png, with published figures beside it."""
    from .build import pick_device
    from .clip.files import load_clip
    from .course.plotting import draw_comparison
    from .evaluation import compare
    from .files import write_atomically

    config, clip_model = configure(args), load_clip(args.clip) if args.clip else None
    found = compare(args.weights, config, folder=args.out, clip_model=clip_model, device=pick_device(args.device))
    figure = draw_comparison(found)
    write_atomically(args.out / "comparison.png", lambda stream: figure.savefig(stream, format="png", dpi=150))
    print(found.markdown())


def data(args: argparse.Namespace) -> None:
    """Say what a data set holds: counts, sizes, captions, what had to be left out; --sheet draws some of it."""
    from .data.datasets import describe

    describe(args.name, args.folder, sheet=args.sheet, check=args.check)


def shards(args: argparse.Namespace) -> None:
    """Write a data set as WebDataset shards for training from disk; called again, it goes on where it stopped."""
    from .build import make_shards
    from .data.shard_writing import check_shards

    if args.check:
        print(f"{check_shards(args.out)} shards are as they were written")
        return
    config = configure(args)
    made = make_shards(config, args.out, args.per_shard, not args.no_embeddings, args.device)
    for split, opened in made.items():
        print(f"{split}: {len(opened):,} pictures in {opened.folder}, shards: {len(opened.index.shards)}")
    print(f"train from them: galip train --profile {args.profile} --set data.name=shards --set data.folder={args.out}")


def fetch(args: argparse.Namespace) -> None:
    """Download the public files of a data set into data/<name>; called again, it goes on where it stopped."""
    from .data.datasets import download

    print(download(args.name, args.folder))


def export(args: argparse.Namespace) -> None:
    """Write a run as a checkpoint that the code of GALIP's authors loads (state_epoch_*.pth)."""
    from .checkpoints.loading import export_reference
    from .clip.files import load_clip

    export_reference(args.source, args.out, load_clip(args.clip) if args.clip else None, ema=not args.raw)
    print(args.out)


# ---------------------------------------------------------------- pictures


def load(args: argparse.Namespace, ema: bool = True) -> TextToImage:
    """The generator that --weights, --clip and --device name."""
    from .build import pick_device
    from .checkpoints.loading import load_generator
    from .clip.files import load_clip

    clip_model = load_clip(args.clip) if args.clip else None
    return load_generator(args.weights, clip_model, pick_device(args.device), ema)


def load_drawing(args: argparse.Namespace) -> tuple[TextToImage, Origin]:
    """The generator in the precision that is asked for, and what its pictures' files say of it."""
    from .precision import resolve_precision
    from .sampling.bf16 import to_bf16
    from .sampling.provenance import Origin

    generator = load(args, ema=not args.raw)
    precision = resolve_precision(args.precision, generator.bridge.pixel_mean.device)
    origin = Origin.of(generator, args.weights, not args.raw, precision)
    return to_bf16(generator) if precision == "bf16" else generator, origin


def sample(args: argparse.Namespace) -> None:
    """Make pictures of captions: one, a sheet, the best of many, or those of a whole file."""
    from .images import save_png
    from .sampling.folder import read_captions, sample_file
    from .sampling.provenance import save_sheet, stem_of
    from .sampling.sample import rank, sample

    for name, command in MOVED.items():
        if getattr(args, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} is of a command of its own: galip {command}")
    if bool(args.captions) == bool(args.file):
        raise ValueError("give either one or more captions, or --file")
    if args.file and (args.best is not None or args.towards or args.late):
        raise ValueError("--towards, --late and --best go with captions, not --file")
    if args.towards and args.share is None:
        raise ValueError("--towards without --share is of a command of its own: galip walk CAPTION --towards CAPTION")
    if args.share is not None and not args.towards:
        raise ValueError("--share is that of a second caption: give --towards, too")
    if args.best is not None and len(args.captions) > 1:
        raise ValueError("--best ranks the pictures of one caption")
    generator, origin = load_drawing(args)
    if args.file:
        count, folder = 1 if args.count is None else args.count, args.out or args.file.with_suffix("")
        recipes = read_captions(args.file, count, args.seed, truncation=args.truncation)
        print(sample_file(generator, generator.bridge, recipes, folder, origin))
        return
    count = 8 if args.count is None else args.count
    settings = {"truncation": args.truncation, "late": args.late, "late_from": args.late_from}
    settings |= {"towards": args.towards, "share": args.share} if args.towards else {}
    if args.best is not None:
        made = rank(generator, generator.bridge, args.captions[0], count, args.best, args.seed, True, **settings)
        for recipe, score in zip(made.recipes, made.scores or [], strict=True):
            print(f"seed {recipe.seed}: CLIP similarity {score:.3f}")
    else:
        made = sample(generator, generator.bridge, args.captions, count, args.seed, progress=True, **settings)
    out = args.out or Path(f"{stem_of(args.captions[0])}.png")
    if len(made) == 1:
        print(save_png(made.images[0], out, origin.metadata(made.recipes[0])))
        return
    columns = min(len(made) // len(args.captions), 8)
    rows = args.captions if len(args.captions) > 1 and len(args.captions) * columns == len(made) else None
    print(save_sheet(made.images, made.recipes, out, origin, columns=columns, captions=rows, scale=args.scale))


def walk(args: argparse.Namespace) -> None:
    """Walk from a caption to another one, from a seed to another, or both: a .gif, .mp4, or a .png of all steps."""
    from .sampling.animation import ENCODERS, save_animation
    from .sampling.provenance import save_sheet, stem_of
    from .sampling.sample import interpolate

    if len(args.captions) > 1:
        raise ValueError("a walk starts at one caption; --towards says where it goes")
    caption = args.captions[0]
    out = args.out or Path(f"{stem_of(caption)}_walk.gif")
    moving = out.suffix.lower().removeprefix(".") in ENCODERS
    steps = args.steps if args.steps is not None else 48 if moving else 8
    generator, origin = load_drawing(args)
    ends = caption, args.towards, steps, args.seed, args.to_seed, args.truncation
    made = interpolate(generator, generator.bridge, *ends)
    if moving:
        comment = f"{made.captions[0]} -> {made.captions[-1]}; seed {args.seed}; {origin.checkpoint} {origin.weights}"
        print(save_animation(made.images, out, scale=args.scale, comment=comment))
    else:
        print(save_sheet(made.images, made.recipes, out, origin, columns=steps, scale=args.scale))


def replay(args: argparse.Namespace) -> None:
    """Make a picture again from what its file says, compare the two, and write it where --out says."""
    from .build import pick_device
    from .clip.files import load_clip
    from .images import save_png
    from .sampling.provenance import read_png
    from .sampling.sample import replay

    made = replay(args.png, args.weights, load_clip(args.clip) if args.clip else None, pick_device(args.device))
    if args.out is None:
        print(f"made {args.png} again: {made.captions[0]!r}, seed {made.seeds[0]}; --out FILE writes it")
    else:
        print(save_png(made.images[0], args.out, read_png(args.png)[1].metadata(made.recipes[0])))


# ---------------------------------------------------------------- options


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(prog="galip", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)

    def command(name: str, run: Command, *shared: str, **defaults: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        for option in shared:
            one.add_argument(f"--{option}", **SHARED[option])
        one.set_defaults(run=run, **defaults)
        return one

    one = command("train", train, "profile", "set", "device")
    one.add_argument("--out", type=Path, help="run folder; by default outputs/<profile>/train")
    one.add_argument("--allow-changes", action="store_true", help="go on with another configuration than before")
    one.add_argument("--export", type=Path, help="also write the measured generator here, as safetensors")
    one = command("train-clip", train_clip, "profile", "set", "device")
    one.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    one = command("sample", sample, *DRAWING, device="cpu")
    one.add_argument("captions", nargs="*", metavar="caption", help="what to draw; several make a row each")
    one.add_argument("--count", type=int, help="pictures of each caption; by default 8, of a file's lines 1")
    one.add_argument("--towards", metavar="CAPTION", help="a second caption to mix with")
    one.add_argument("--share", type=float, help="of the second caption: above 1 goes beyond it (guidance)")
    one.add_argument("--late", default="", metavar="CAPTION", help="what the late blocks get in place of the caption")
    one.add_argument("--late-from", type=int, default=0, metavar="N", help="the first of the late blocks")
    one.add_argument("--best", type=int, metavar="K", help="of COUNT pictures the K that CLIP finds nearest")
    one.add_argument("--file", type=Path, help="captions, one a line or a .csv; into the folder --out")
    one.add_argument("--out", type=Path, help="the .png or folder; by default named after the caption or file")
    for name in MOVED:
        one.add_argument(f"--{name.replace('_', '-')}", help=argparse.SUPPRESS)
    one = command("walk", walk, *DRAWING, device="cpu")
    one.add_argument("captions", nargs="+", metavar="caption", help="where it starts")
    one.add_argument("--towards", metavar="CAPTION", help="where it goes")
    one.add_argument("--to-seed", type=int, help="the seed it goes to")
    one.add_argument("--steps", type=int, help="pictures; by default 8, in a .gif or .mp4 48")
    one.add_argument("--out", type=Path, help="the .gif, .mp4 or .png; by default a .gif named after the caption")
    one = command("replay", replay, "clip", "device", device="cpu")
    one.add_argument("png", type=Path, help="a picture of galip, the panel or a notebook")
    one.add_argument("--weights", help="where the weights lie now, if they were moved")
    one.add_argument("--out", type=Path, help="the .png to write")
    one = command("evaluate", evaluate, "profile", "set", "weights", "clip", "device")
    one.add_argument("--pictures", type=Path, help="a folder of pictures instead, with manifest.jsonl for captions")
    one.add_argument("--out", type=Path, help="folder for results.json")
    one = command("compare", compare, "profile", "set", "clip", "device")
    one.add_argument("weights", nargs="+", help=WEIGHTS_HELP)
    one.add_argument("--out", type=Path, required=True, help="folder for comparison.csv, .md and .png")
    command("describe", describe, "profile", "set")
    one = command("data", data)
    one.add_argument("name", help="birds, flowers, ... as `galip describe` lists them under data.name")
    one.add_argument("--folder", type=Path, help="where it lies; by default data/<name>")
    one.add_argument("--sheet", type=Path, help="a .png of 24 pictures with captions to write")
    one.add_argument("--check", action="store_true", help="decode every picture, to find broken ones")
    one = command("shards", shards, "profile", "set", "device")
    one.add_argument("--out", type=Path, required=True, help="the folder to write train/*.tar and test/*.tar to")
    one.add_argument("--per-shard", type=int, default=10_000, help="pictures in a shard")
    one.add_argument("--no-embeddings", action="store_true", help="leave the captions' embeddings to the first run")
    one.add_argument("--check", action="store_true", help="only compare the shards in --out with their checksums")
    one = command("download", fetch)
    one.add_argument("name", help="birds, flowers, faces, coco, ...")
    one.add_argument("--folder", type=Path, help="where to put it; by default data/<name>")
    one = command("export", export, "clip", "raw")
    one.add_argument("source", type=Path, help="run folder or one of its checkpoints")
    one.add_argument("--out", type=Path, required=True, help="the .pth to write, such as state_epoch_100.pth")
    return top


def main() -> None:
    """Run a command; what a user can mend ends in one line and exit status 2."""
    args = parser().parse_args()
    # of several processes of one training, the first one talks
    told = nullcontext() if os.environ.get("RANK", "0") == "0" else redirect_stdout(io.StringIO())
    try:
        with told:
            args.run(args)
    except (RuntimeError, FloatingPointError, ValueError, OSError, ImportError) as error:
        if isinstance(error, RuntimeError) and not type(error).__module__.startswith("galiplib."):
            raise  # ours are TrainingFailed and ProcessLost
        print(f"galip: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:  # a training's says what is saved
        print(f"galip: {stop if stop.args else ABORTED.get(args.command, 'interrupted')}", file=sys.stderr)
        sys.exit(128 + getattr(stop, "signal", signal.SIGINT))


if __name__ == "__main__":
    main()
