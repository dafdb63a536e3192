"""`galip`: the notebooks' code as thin commands, for scripts and other machines."""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import shlex
import signal
import sys
from contextlib import nullcontext, redirect_stdout
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import Config
    from .sampling.provenance import Origin
    from .system import TextToImage


@cache
def imported(name: str) -> ModuleType:
    """A module of the package."""
    gc.disable()  # nothing that is imported is garbage, and looking for some takes a seventh of a short command's time
    try:
        return import_module(name, __package__)
    finally:
        gc.freeze()
        gc.enable()


class Later:
    """A module that is imported when it is first used, so that a slip of the keyboard is answered at once."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(imported(self.name), name)


build, configs, evaluation, files, images = map(Later, (".build", ".config", ".evaluation", ".files", ".images"))
loading, clip_files, clip_training = map(Later, (".checkpoints.loading", ".clip.files", ".clip.training"))
engines = Later(".checkpoints.onnx")
bridges, damsm_files, damsm_training = map(Later, (".clip.bridge", ".clip.damsm_files", ".clip.damsm_training"))
distillation = Later(".clip.distillation")
datasets, shard_writing, plotting = map(Later, (".data.datasets", ".data.shard_writing", ".course.plotting"))
animation, folders, provenance = map(Later, (".sampling.animation", ".sampling.folder", ".sampling.provenance"))
sampling, bf16, precisions, runs = map(Later, (".sampling.sample", ".sampling.bf16", ".precision", ".runs.run"))

PROFILES = sorted(path.stem for path in (Path(__file__).parent / "profiles").glob("*.yaml"))
PROFILE_HELP = f"{', '.join(PROFILES)}, or a .yaml file; :ratlip behind it chooses a variant (see describe)"
WEIGHTS_HELP = "mini, birds64, flowers64 (shipped), a run folder, a .safetensors, .onnx or system's authors' .pth file"
CLIP_HELP = "the CLIP it was trained with, by name or file; the authors' .pth needs one to read captions: ViT-B/32"
MOVED = {"replay": "replay PNG", "to_seed": "walk CAPTION --to-seed N", "steps": "walk CAPTION --steps N"}
SPLITS = ("train", "test")
ABORTED = {"shards": "stopped; finished shards are kept, the same command goes on"}


# ---------------------------------------------------------------- training and measuring


def command_line() -> str:
    """What was typed, for provenance records."""
    return shlex.join(["galip", *sys.argv[1:]])


def configure(args: argparse.Namespace) -> Config:
    """The configuration of a command, its differences from the defaults printed."""
    config = configs.load_config(args.profile, args.set)
    build.dataset_of(config)  # an unknown name is refused before anything is done
    print(f"profile {config.profile}")
    for key, (before, now) in configs.changed(config).items():
        print(f"  {key}: {before!r} -> {now!r}")
    return config


def clip_of(args: argparse.Namespace) -> Any:
    """The CLIP that --clip names, if any, or the DAMSM in the folder --damsm."""
    model = clip_files.load_clip(args.clip) if args.clip else None
    if getattr(args, "damsm", None) is None:
        return model
    compares = args.command != "sample" or args.best is not None  # pictures with captions, or just draws them
    return damsm_files.load_damsm(args.damsm, model and (lambda: bridges.ClipBridge(model)), image=compares)


def load(args: argparse.Namespace, ema: bool = True) -> TextToImage:
    """The generator that --weights, --clip and --device name."""
    device = build.pick_device(args.device)
    loading.find(args.weights)  # before a CLIP is downloaded
    return loading.load_generator(args.weights, clip_of(args), device, ema)


def describe(args: argparse.Namespace) -> None:
    """Print every key with its value and meaning."""
    config = configs.load_config(args.profile, args.set)
    named = [f"{name}:{variant}" for name in PROFILES for variant in configs.variants(name)]
    print(f"profile {config.profile} (available: {', '.join(PROFILES + named)})")
    for key, meaning in configs.valid_keys(config.system).items():
        section, name = key.split(".")
        print(f"{key:24} {str(getattr(getattr(config, section), name)):14} {meaning}")


def train_clip(args: argparse.Namespace) -> None:
    """Train a small CLIP, measure it, write it with its record."""
    config, device, told = configure(args), build.pick_device(args.device), {"command": command_line()}
    files.check_target(args.out, ".safetensors", force=args.force)
    if args.teacher:
        sets = {config.data.name: config}
        for name, _, folder in (pair.partition("=") for pair in args.also):
            own = [f"data.name={name}", f"data.folder={folder or f'data/{name}'}"]
            sets[name] = configs.load_config(args.profile, [*args.set, *own])
        train, held_out = ({name: build.make_data(own, split) for name, own in sets.items()} for split in SPLITS)
        record = distillation.distil_clip(config, train, held_out, args.out, device, **told)
    elif args.also:
        raise ValueError("--also goes with --teacher: alone, a small CLIP learns from one data set")
    else:
        held_out = build.held_out_data(config)
        record = clip_training.learn_clip(config, build.make_data(config), held_out, args.out, device, **told)
    print(json.dumps(record["metrics"], indent=2))


def train_damsm(args: argparse.Namespace) -> None:
    """Pretrain a DAMSM, the text encoder of AttnGAN, DF-GAN and RAT-GAN, in a folder, or go on with the one there."""
    config = configure(args)
    train, device = build.make_data(config), build.pick_device(args.device)
    held_out = build.make_data(config, build.dataset_of(config).held_out[-1])
    bridge = build.make_bridge(config, device) if args.eyes == "clip" else None
    settings = {"epochs": args.epochs, "batch_size": args.batch_size, "seed": config.train.seed, "device": device}
    record = damsm_training.learn_damsm(train, held_out, args.out, bridge, **settings, command=command_line())
    print(json.dumps(record, indent=2))


def train(args: argparse.Namespace) -> None:
    """Train GALIP in a run folder, or go on with the one that is there; --export also writes its generator."""
    args.set = [*args.set, f"train.start={args.start}"] if args.start else args.set
    config = configure(args)
    out = args.out or Path("outputs") / config.folder / "train"
    if args.export:
        files.check_target(args.export, ".safetensors", force=args.force)
    run = runs.Run(out, config, args.device, allow_changes=args.allow_changes)
    if run.step:
        print(f"going on from step {run.step}" if not run.finished else f"complete: {run.step} steps")
    if not run.finished:
        try:
            for _ in run.train():
                pass
        except KeyboardInterrupt as stop:
            if stop.args:  # its own words
                raise
            kept = f"stopped after step {run.step} of {config.train.max_steps}"  # it came between two steps
            raise KeyboardInterrupt(f"{kept}; the same command or cell goes on from there") from None
    if args.export:
        try:
            metrics = evaluation.measure_generator(run.system.ema, run.bridge, config).record()
        except (images.TooFew, datasets.DataError) as error:
            metrics = {"left_out": {"all": str(error)}}
            print(f"not measured: {error}")
        if run.workers.leads:
            version = import_module("torch").__version__
            run.export(args.export, {"command": command_line(), "metrics": metrics, "torch": version})


def evaluate(args: argparse.Namespace) -> None:
    """Measure a generator on captions it has not seen, or pictures in a folder; print and write the numbers."""
    config, device = configure(args), build.pick_device(args.device)
    if args.out:
        files.check_target(args.out / "results.json", force=args.force)
    if args.pictures:
        evaluation.list_pictures(args.pictures)  # what is wrong with them is said at once
        found = evaluation.measure_folder(args.pictures, config, args.clip, device=device)
        results = {"pictures": str(args.pictures), **found}
    else:
        pictures = config.eval.images if config.eval.images != "all" else sys.maxsize
        generator = engines.by_engine(load(args), args.engine, pictures, tell)
        found = evaluation.measure_generator(generator, generator.bridge, config).record()
        results = {"weights": str(args.weights), "engine": engines.engine_of(generator), **found}
        if args.nearest:
            near = evaluation.nearest_training(generator, build.make_data(config), args.nearest, config.eval.seed)
            results["nearest_training"] = near
    print(json.dumps(results, indent=2))
    if args.out:
        files.write_json(args.out / "results.json", results)


def compare(args: argparse.Namespace) -> None:
    """Measure several generators by one protocol: a table as .csv, .md and .png, with published figures beside it."""
    config, device = configure(args), build.pick_device(args.device)
    note, table, drawing = (args.out / f"comparison.{ending}" for ending in ("md", "csv", "png"))
    ours = note.is_file() and files.is_ours(note)  # what stands beside our own table is ours
    for path in (note, table, drawing):
        files.check_target(path, force=args.force or ours)
    found = evaluation.compare(args.weights, config, folder=args.out, clip_model=clip_of(args), device=device)
    figure = plotting.draw_comparison(found)
    png = {"format": "png", "dpi": 150, "metadata": {"Software": "galiplib"}}
    files.write_atomically(drawing, lambda stream: figure.savefig(stream, **png))
    print(found.markdown())


def data(args: argparse.Namespace) -> None:
    """Say what a data set holds: counts, sizes, captions, what had to be left out; --sheet draws some of it."""
    if args.sheet:
        files.check_target(args.sheet, ".png", force=args.force)
    own = configs.load_config(args.profile or ("mini" if args.set else "birds_lite"), args.set)
    contexts = {build.context_of(own): f"the CLIP of profile {own.profile}"}
    if not (args.profile or args.set):
        contexts = {77: "OpenAI's CLIPs", **contexts}
    looks = {"sheet": args.sheet, "check": args.check, "contexts": contexts, "side": own.data.image_size}
    found = datasets.describe(args.name, args.folder, **looks)
    tested = found["splits"].get("test", {"pictures": 0, "captions": 0})
    if lacks := evaluation.beyond(tested["pictures"], tested["captions"]):
        print(f"\ntoo few for testing, {tested['pictures']:,} pictures, to measure {lacks}")


def shards(args: argparse.Namespace) -> None:
    """Write a data set as WebDataset shards for training from disk; called again, it goes on where it stopped."""
    if args.check:
        print(f"{shard_writing.check_shards(args.out)} shards are as they were written")
        return
    made = build.make_shards(configure(args), args.out, args.per_shard, not args.no_embeddings, args.device)
    for split, opened in made.items():
        print(f"{split}: {len(opened):,} pictures in {opened.folder}, shards: {len(opened.index.shards)}")
    print(f"train from them: galip train --profile {args.profile} --set data.name=shards --set data.folder={args.out}")


def download(args: argparse.Namespace) -> None:
    """Download the public files of a data set into data/<name>; called again, it goes on where it stopped."""
    print(datasets.download(args.name, args.folder))


def export(args: argparse.Namespace) -> None:
    """Write a generator for use elsewhere: a checkpoint for the code of GALIP's authors, or ONNX files."""
    if args.format == "onnx":
        files.check_target(args.out, ".onnx", force=args.force)
        half = args.fp16
        written, found = loading.export_onnx(args.source, args.out, clip_of(args), not args.raw, half)
        rounded = f"; with weights in fp16 {found.decibels:.0f} dB from those before" if half else ""
        print(f"pictures of 16 noises differ from torch's by {found.difference:.1e} at most{rounded}")
        print("\n".join(map(str, written)))
        if found.reads is None:
            print("captions can't be read, so no text side is written: give --clip or --damsm")
        return
    files.check_target(args.out, ".pth", force=args.force)
    loading.export_reference(args.source, args.out, clip_of(args), ema=not args.raw)
    print(args.out)


# ---------------------------------------------------------------- pictures


def tell(message: str) -> None:
    """Say something beside the results."""
    print(message, file=sys.stderr)


def load_drawing(args: argparse.Namespace, pictures: int) -> tuple[TextToImage, Origin]:
    """The generator in the precision and by the engine that are asked for, and what its pictures' files say of it."""
    onnx = args.engine == "onnx" or str(args.weights).endswith(".onnx")
    for refused, why in (
        (args.precision == "bf16", "--precision bf16 is torch's: ONNX Runtime draws in fp32"),
        (getattr(args, "late", ""), "--late is torch's: an ONNX file has no late blocks"),
    ):
        if onnx and refused:
            raise ValueError(why)
    generator = load(args, ema=not args.raw)
    device = generator.bridge.pixel_mean.device
    precision = "fp32" if onnx else precisions.resolve_precision(args.precision, device)
    if precision == "fp32" and not getattr(args, "late", ""):
        generator = engines.by_engine(generator, args.engine, pictures, tell)
    origin = provenance.Origin.of(generator, args.weights, not args.raw, precision)
    return bf16.to_bf16(generator) if precision == "bf16" else generator, origin


def check_sample(args: argparse.Namespace) -> None:
    """Raises ValueError for options of `sample` that don't go together, or belong to another command."""
    for name, command in MOVED.items():
        if getattr(args, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} is of a command of its own: galip {command}")
    mixing, ranking = args.towards or args.late, args.best is not None
    elsewhere = "--towards without --share is of a command of its own: galip walk CAPTION --towards CAPTION"
    for refused, why in (
        (bool(args.captions) == bool(args.file), "give either one or more captions, or --file"),
        (args.file and (mixing or ranking), "--towards, --late and --best go with captions, not --file"),
        (args.towards and args.share is None, elsewhere),
        (args.share is not None and not args.towards, "--share is that of a second caption: give --towards, too"),
        (ranking and len(args.captions) > 1, "--best ranks the pictures of one caption"),
    ):
        if refused:
            raise ValueError(why)


def sample(args: argparse.Namespace) -> None:
    """Make pictures of captions: one, a sheet, the best of many, or those of a whole file."""
    check_sample(args)
    if args.file:
        count, folder = 1 if args.count is None else args.count, args.out or args.file.with_suffix("")
        recipes = folders.read_captions(args.file, count, args.seed, truncation=args.truncation)
        files.check_folder(folder)
        folders.plan(recipes, folder)
        generator, origin = load_drawing(args, len(recipes))
        print(folders.sample_file(generator, generator.bridge, recipes, folder, origin))
        return
    own = files.free_name(Path(f"{provenance.stem_of(args.captions[0])}.png"))
    out = files.check_target(args.out or own, ".png", force=args.force)
    count = 8 if args.count is None else args.count
    generator, origin = load_drawing(args, count * len(args.captions))
    settings = {"truncation": args.truncation, "late": args.late, "late_from": args.late_from}
    settings |= {"towards": args.towards, "share": args.share} if args.towards else {}
    if args.best is not None:
        ranked = args.captions[0], count, args.best, args.seed
        made = sampling.rank(generator, generator.bridge, *ranked, progress=True, **settings)
        for recipe, score in zip(made.recipes, made.scores, strict=True):
            print(f"seed {recipe.seed}: CLIP similarity {score:.3f}")
    else:
        drawn = args.captions, count, args.seed
        made = sampling.sample(generator, generator.bridge, *drawn, progress=True, **settings)
    if len(made) == 1:
        print(images.save_png(made.images[0], out, origin.metadata(made.recipes[0])))
        return
    columns = min(len(made) // len(args.captions), 8)
    rows = args.captions if len(args.captions) > 1 and len(args.captions) * columns == len(made) else None
    layout = {"columns": columns, "captions": rows, "scale": args.scale}
    print(provenance.save_sheet(made.images, made.recipes, out, origin, **layout))


def walk(args: argparse.Namespace) -> None:
    """Walk from a caption to another one, from a seed to another, or both: a .gif, .mp4, or a .png of all steps."""
    if len(args.captions) > 1:
        raise ValueError("a walk starts at one caption; --towards says where it goes")
    caption = args.captions[0]
    own = files.free_name(Path(f"{provenance.stem_of(caption)}_walk.gif"))
    out = files.check_target(args.out or own, ".gif", ".mp4", ".png", force=args.force)
    moving = animation.encodes(out.suffix.lower().removeprefix("."))
    steps = args.steps if args.steps is not None else 48 if moving else 8
    generator, origin = load_drawing(args, steps)
    ends = caption, args.towards, steps, args.seed, args.to_seed, args.truncation
    made = sampling.interpolate(generator, generator.bridge, *ends)
    if moving:
        comment = f"{made.captions[0]} -> {made.captions[-1]}; seed {args.seed}; {origin.checkpoint} {origin.weights}"
        print(animation.save_animation(made.images, out, scale=args.scale, comment=f"galiplib: {comment}"))
    else:
        print(provenance.save_sheet(made.images, made.recipes, out, origin, columns=steps, scale=args.scale))


def replay(args: argparse.Namespace) -> None:
    """Make a picture again from what its file says, compare the two, and write it where --out says."""
    device = build.pick_device(args.device)
    if args.out:
        files.check_target(args.out, ".png", force=args.force)
    made = sampling.replay(args.png, args.weights, clip_of(args), device, args.engine)
    if args.out is None:
        print(f"made {args.png} again: {made.captions[0]!r}, seed {made.seeds[0]}; --out FILE writes it")
    else:
        recipe, origin = made.recipes[0], provenance.read_png(args.png)[1]
        print(images.save_png(made.images[0], args.out, {**origin.metadata(recipe), "engine": made.engine}))


# ---------------------------------------------------------------- options

# an option: its name, type (bool: a switch) and help, and what else argparse takes
Option = tuple[str, type, str] | tuple[str, type, str, dict[str, Any]]
CAPTION, MUST = {"metavar": "CAPTION"}, {"required": True}
CONFIG: list[Option] = [
    ("--profile", str, PROFILE_HELP, {"default": "mini"}),
    ("--set", str, "override, repeatable", {"action": "append", "default": [], "metavar": "KEY=VALUE"}),
]
CLIP, RAW = ("--clip", str, CLIP_HELP), ("--raw", bool, "a run's weights in training, not their average")
WEIGHTS = ("--weights", str, WEIGHTS_HELP, {"default": "mini"})
DAMSM = ("--damsm", Path, "folder of the DAMSM that it was trained with: text_encoder*.pth, captions.pickle")
DEVICE = ("--device", str, "auto, cuda, mps or cpu; pictures are drawn on the cpu unless asked", {"default": "auto"})
ON_CPU = (*DEVICE[:3], {"default": "cpu"})
ENGINE = ("--engine", str, "on a CPU: torch, onnx (ONNX Runtime, exported once for its weights), or what is quicker",
          {"choices": ("auto", "torch", "onnx"), "default": "auto"})  # fmt: skip
FORCE = ("--force", bool, "overwrite a file that galip didn't write")
DRAWING: list[Option] = [
    WEIGHTS, CLIP, DAMSM, ON_CPU, ENGINE, RAW, FORCE,
    ("--seed", int, "of the first picture; the next one has one more", {"default": 0}),
    ("--truncation", float, "factor of the noise, 0 to 2", {"default": 1.0}),
    ("--precision", str, "bf16: twice as fast where the hardware has it (auto), and not quite the same pictures",
     {"choices": ("fp32", "bf16", "auto"), "default": "fp32"}),
    ("--scale", int, "magnification of sheets and animations", {"default": 2}),
]  # fmt: skip
COMMANDS: dict[str, tuple[Any, list[Option]]] = {
    "train": (train, [
        *CONFIG, DEVICE, ("--out", Path, "run folder; by default outputs/<profile>/train"),
        ("--from", str, "the generator to begin with, as train.start", {"dest": "start", "metavar": "WEIGHTS"}),
        ("--allow-changes", bool, "go on with another configuration than before"),
        ("--export", Path, "also write the measured generator here, as .safetensors"), FORCE,
    ]),
    "train-clip": (train_clip, [
        *CONFIG, DEVICE, ("--out", Path, "the .safetensors file to write", MUST), FORCE,
        ("--teacher", str, "a network to learn to see from, of photographs", {"choices": ("imagenet",)}),
        ("--also", str, "with --teacher: a data set to learn from as well, repeatable",
         {"action": "append", "default": [], "metavar": "NAME=FOLDER"}),
    ]),
    "train-damsm": (train_damsm, [
        *CONFIG, DEVICE, ("--out", Path, "the folder to write to", MUST),
        ("--eyes", str, "what looks at pictures: InceptionV3, as published, or the profile's CLIP",
         {"choices": ("inception", "clip"), "default": "inception"}),
        ("--epochs", int, "passes over the data", {"default": 200}),
        ("--batch-size", int, "pairs a step", {"default": 48}),
    ]),
    "sample": (sample, [
        *DRAWING, ("captions", str, "what to draw; several make a row each", {"nargs": "*", "metavar": "caption"}),
        ("--count", int, "pictures of each caption; by default 8, of a file's lines 1"),
        ("--towards", str, "a second caption to mix with", CAPTION),
        ("--share", float, "of the second caption: above 1 goes beyond it (guidance)"),
        ("--late", str, "what the late blocks get in place of the caption", {"default": "", **CAPTION}),
        ("--late-from", int, "the first of the late blocks", {"default": 0, "metavar": "N"}),
        ("--best", int, "of COUNT pictures the K that CLIP finds nearest", {"metavar": "K"}),
        ("--file", Path, "captions, one a line or a .csv; into the folder --out"),
        ("--out", Path, "the .png or folder; by default named after the caption or file"),
        *((f"--{name.replace('_', '-')}", str, argparse.SUPPRESS) for name in MOVED),
    ]),
    "walk": (walk, [
        *DRAWING, ("captions", str, "where it starts", {"nargs": "+", "metavar": "caption"}),
        ("--towards", str, "where it goes", CAPTION), ("--to-seed", int, "the seed it goes to"),
        ("--steps", int, "pictures; by default 8, in a .gif or .mp4 48"),
        ("--out", Path, "the .gif, .mp4 or .png; by default a .gif named after the caption"),
    ]),
    "replay": (replay, [
        CLIP, DAMSM, ON_CPU, ENGINE, FORCE, ("png", Path, "a picture of galip, the panel or a notebook"),
        ("--weights", str, "where the weights lie now, if they were moved"), ("--out", Path, "the .png to write"),
    ]),
    "evaluate": (evaluate, [
        *CONFIG, WEIGHTS, CLIP, DAMSM, DEVICE, ENGINE, FORCE, ("--out", Path, "folder for results.json"),
        ("--pictures", Path, "a folder of pictures instead, with manifest.jsonl for captions"),
        ("--nearest", int, "pictures to compare with all photographs of the training", {"default": 0, "metavar": "N"}),
    ]),
    "compare": (compare, [
        *CONFIG, CLIP, DAMSM, DEVICE, FORCE, ("weights", str, WEIGHTS_HELP, {"nargs": "+"}),
        ("--out", Path, "folder for comparison.csv, .md and .png", MUST),
    ]),
    "describe": (describe, CONFIG),
    "data": (data, [
        ("name", str, "birds, flowers, ... as `galip describe` lists them under data.name"),
        ("--folder", Path, "where it lies; by default data/<name>"),
        ("--profile", str, "whose CLIP is to read the captions; by default OpenAI's and a small one"), CONFIG[1],
        ("--sheet", Path, "a .png of 24 pictures with captions to write"), FORCE,
        ("--check", bool, "decode every picture, to find broken ones"),
    ]),
    "shards": (shards, [
        *CONFIG, DEVICE, ("--out", Path, "the folder to write train/*.tar and test/*.tar to", MUST),
        ("--per-shard", int, "pictures in a shard", {"default": 10_000}),
        ("--no-embeddings", bool, "leave the captions' embeddings to the first run"),
        ("--check", bool, "only compare the shards in --out with their checksums"),
    ]),
    "download": (download, [
        ("name", str, "birds, flowers, faces, coco, ..."),
        ("--folder", Path, "where to put it; by default data/<name>"),
    ]),
    "export": (export, [
        CLIP, DAMSM, RAW, FORCE, ("source", Path, "run folder or one of its checkpoints; for ONNX any weights"),
        ("--format", str, "authors: a .pth; onnx: a .onnx that draws and a .text.onnx that reads captions",
         {"choices": ("authors", "onnx"), "default": "authors"}),
        ("--fp16", bool, "ONNX weights in half the space; all is still computed in fp32"),
        ("--out", Path, "the file to write, such as state_epoch_100.pth or generator.onnx", MUST),
    ]),
}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(prog="galip", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    for name, (run, options) in COMMANDS.items():
        one = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        one.set_defaults(run=run)
        for flag, kind, told, *others in options:
            how: dict[str, Any] = {"action": "store_true"} if kind is bool else {"type": kind}
            one.add_argument(flag, help=told, **how, **(others[0] if others else {}))
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
