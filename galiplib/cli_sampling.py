"""`galip sample`: pictures from captions, in all the ways of `sampling`, `batches` and `animation`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from .checkpoints.loading import load_generator
from .clip.files import load_clip
from .images import contact_sheet, save_png
from .precision import resolve_precision
from .sampling.animation import save_animation
from .sampling.bf16 import to_bf16
from .sampling.folder import read_captions, sample_file
from .sampling.provenance import Origin, read_png
from .sampling.sample import Samples, interpolate, rank, replay, sample
from .systems.galip import Generator

ANIMATIONS = (".gif", ".mp4")


def add_arguments(one: argparse.ArgumentParser, weights_help: str, clip_help: str) -> None:
    """The options of `galip sample`."""
    one.add_argument("captions", nargs="*", metavar="caption", help="what to draw; several make a row each")
    one.add_argument("--weights", help=weights_help)
    one.add_argument("--clip", help=clip_help)
    one.add_argument("--raw", action="store_true", help="a run's weights in training, not their average")
    one.add_argument("--count", type=int, help="pictures of each caption; by default 8, of a file's lines 1")
    one.add_argument("--seed", type=int, default=0, help="of the first picture; the next one has one more")
    one.add_argument("--truncation", type=float, default=1.0, help="factor of the noise, 0 to 2")
    one.add_argument("--towards", metavar="CAPTION", help="a second caption, to mix with or walk to")
    one.add_argument("--share", type=float, help="of the second caption: above 1 goes beyond it (guidance)")
    one.add_argument("--late", default="", metavar="CAPTION", help="what the late blocks get in place of the caption")
    one.add_argument("--late-from", type=int, default=0, metavar="N", help="the first of the late blocks")
    one.add_argument("--to-seed", type=int, help="a second seed to walk to")
    one.add_argument("--steps", type=int, help="pictures of the walk; by default 8, in a .gif or .mp4 48")
    one.add_argument("--best", type=int, metavar="K", help="of COUNT pictures the K that CLIP finds nearest")
    one.add_argument("--file", type=Path, help="captions, one a line or a .csv; into the folder --out")
    one.add_argument("--replay", type=Path, metavar="PNG", help="make a picture again from what its file says")
    one.add_argument(
        "--precision", choices=("fp32", "bf16", "auto"), default="fp32",
        help="bf16: twice as fast where the hardware has it (auto), and not quite the same pictures",
    )  # fmt: skip
    one.add_argument("--scale", type=int, default=2, help="magnification of sheets and animations")
    one.add_argument("--out", type=Path, help="the .png, .gif, .mp4 or folder; by default named after the caption")


def run(args: argparse.Namespace) -> None:
    """Make pictures of captions: one, a sheet, the best, a walk, a whole file, or one made before again."""
    ways = {"a caption": bool(args.captions), "--file": args.file, "--replay": args.replay}
    if sum(map(bool, ways.values())) != 1:
        raise ValueError("give either one or more captions, or --file, or --replay")
    walking = args.steps is not None or args.to_seed is not None or (args.towards and args.share is None)
    best = args.best is not None
    if (args.file or args.replay) and (walking or best or args.towards or args.late):
        raise ValueError("--towards, --late, --to-seed, --steps and --best go with captions, not --file or --replay")
    if walking and len(args.captions) > 1:
        raise ValueError("a walk starts at one caption")
    if walking and (best or args.share is not None or args.count is not None or args.late):
        raise ValueError(
            "a walk (--towards without --share, --to-seed, --steps) takes no --count, --share, --late or --best"
        )
    if best and len(args.captions) > 1:
        raise ValueError("--best ranks the pictures of one caption")
    clip_model = load_clip(args.clip) if args.clip else None
    if args.replay:
        _replay(args, clip_model)
        return
    weights = args.weights or "mini"
    generator = load_generator(weights, clip_model, ema=not args.raw)
    precision = resolve_precision(args.precision, generator.bridge.pixel_mean.device)
    origin = Origin.of(generator, weights, ema=not args.raw, precision=precision)
    if precision == "bf16":
        to_bf16(generator)
    if args.file:
        count = 1 if args.count is None else args.count
        recipes = read_captions(args.file, count, args.seed, truncation=args.truncation)
        folder = args.out or args.file.with_suffix("")
        print(sample_file(generator, generator.bridge, recipes, folder, origin))
    elif walking:
        _walk(args, generator, origin)
    else:
        _sheet(args, generator, origin)


def _replay(args: argparse.Namespace, clip_model: object) -> None:
    made = replay(args.replay, args.weights, clip_model)
    if args.out is None:
        print(f"made {args.replay} again: {made.captions[0]!r}, seed {made.seeds[0]}; --out FILE writes it")
    else:
        _, origin = read_png(args.replay)
        print(save_png(made.images[0], args.out, origin.metadata(made.recipes[0])))


def _walk(args: argparse.Namespace, generator: Generator, origin: Origin) -> None:
    out = args.out or Path(_slug(args.captions[0]) + "_walk.gif")
    moving = out.suffix.lower() in ANIMATIONS
    steps = args.steps if args.steps is not None else 48 if moving else 8
    made = interpolate(
        generator, generator.bridge, args.captions[0], args.towards, steps, args.seed, args.to_seed, args.truncation
    )
    if moving:
        comment = f"{made.captions[0]} -> {made.captions[-1]}; seed {args.seed}; {origin.checkpoint} {origin.weights}"
        print(save_animation(made.images, out, scale=args.scale, comment=comment))
    else:
        print(_save_sheet(made, out, origin, steps, args.scale))


def _sheet(args: argparse.Namespace, generator: Generator, origin: Origin) -> None:
    count = 8 if args.count is None else args.count
    settings = {"truncation": args.truncation, "late": args.late, "late_from": args.late_from}
    if args.towards:
        settings |= {"towards": args.towards, "share": args.share}
    elif args.share is not None:
        raise ValueError("--share is that of a second caption: give --towards, too")
    out = args.out or Path(_slug(args.captions[0]) + ".png")
    if args.best is not None:
        made = rank(generator, generator.bridge, args.captions[0], count, args.best, args.seed, True, **settings)
        for recipe, score in zip(made.recipes, made.scores, strict=True):
            print(f"seed {recipe.seed}: CLIP similarity {score:.3f}")
    else:
        made = sample(generator, generator.bridge, args.captions, count, args.seed, progress=True, **settings)
    if len(made) == 1:
        print(save_png(made.images[0], out, origin.metadata(made.recipes[0])))
    else:
        print(_save_sheet(made, out, origin, min(len(made) // len(args.captions), 8), args.scale, args.captions))


def _save_sheet(
    made: Samples, out: Path, origin: Origin, columns: int, scale: int, captions: list[str] | None = None
) -> Path:
    rows = captions if captions and len(captions) > 1 and len(captions) * columns == len(made) else None
    sheet = contact_sheet(made.images, columns, rows, scale)
    seeds = ", ".join(map(str, dict.fromkeys(made.seeds)))
    settings = {"caption": " | ".join(dict.fromkeys(r.caption for r in made.recipes)), "seed": seeds}
    settings |= {"checkpoint": origin.checkpoint, "weights": origin.weights, "made": str(made.recipes[0].settings)}
    return save_png(sheet, out, settings)


def _slug(caption: str) -> str:
    return re.sub(r"\W+", "_", caption.lower()).strip("_")[:60] or "pictures"
