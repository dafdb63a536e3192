"""Every system's training step and picture, in turns in one run: seconds, counted operations, what the rest costs.

python benchmarks/systems.py                                   # mini, batch 32; table and CSV in benchmarks/results
python benchmarks/systems.py --size birds --batch 8            # the published sizes, random weights, a CLIP as ViT-B/32
python benchmarks/systems.py --systems lafite dfgan --repeats 9
python benchmarks/systems.py --size birds --batch 8 --once     # a step of each alone, its memory; no products: minutes

A step's seconds and operations are means over sixteen steps, of a lazy phase its share; of its seconds, the median of
the turns and their quartiles. "Products" are its convolutions and matrix products, each again by itself, on tensors of
the same shapes: the rate they reach here, and the least time of a step that computes the same in plain operations. What
a step takes beyond is pointwise work and overhead. Peak memory is that of a process that draws a batch, or that takes
one step (`--once`).
"""

from __future__ import annotations

import argparse
import gc
import statistics
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

import measure
import subjects
from galiplib import load_config
from galiplib.build import make_generator, make_system
from galiplib.clip.bridge import ClipBridge
from galiplib.config import MODELS, Config, ConfigError
from galiplib.system import Batch, Losses, Phase, Step, System, Text
from galiplib.training import Optimizers, random_of, train_step

CLIPS = {"mini": "mini", "birds": "vit"}  # size, a profile -> the CLIP of `subjects`
SIX = [name for name in MODELS if name not in ("residual", "features")]


def config_of(size: str, system: str, precision: str) -> Config:
    settings = {"train.precision": precision}
    try:
        return load_config(size if system == "galip" else f"{size}:{system}", settings)
    except ConfigError:  # a system without a variant of its own
        return load_config(size, {"system": system, **settings})


def text_of(bridge: ClipBridge, batch: int, words: int = 18) -> Text:
    """All that any system wants; captions of 18 words."""
    width = bridge.model.ln_final.weight.shape[0]
    mask, classes = torch.zeros(batch, words, dtype=torch.bool), torch.arange(batch)
    sentence, picture = torch.randn(batch, bridge.embed_dim), torch.randn(batch, bridge.embed_dim)
    return Text(sentence, torch.randn(batch, words, width), mask, picture, classes)


def calls_of(
    system: System, config: Config, bridge: ClipBridge, batch: int
) -> tuple[Callable[[int], object], Callable[[], object]]:
    """A training step by its number, and a picture."""
    side = config.data.image_size
    images, text = torch.rand(batch, 3, side, side) * 2 - 1, text_of(bridge, batch)
    optimizers = Optimizers(system, config.train)
    one, noise = text_of(bridge, 1), torch.randn(1, system.generator.noise_dim)

    def step(number: int) -> None:
        noise = system.draw(batch, partial(random_of, 0, step=number))
        train_step(system, optimizers, Batch(images, text, noise), config.train, number)

    @torch.inference_mode()
    def picture() -> None:
        system.ema.picture_of(noise, one)

    return step, picture


def learned(system: System) -> str:
    """How many parameters the generator's and the discriminator's phases update."""
    counts = (subjects.count(system.learners(role)) for role in ("generator", "discriminator"))
    return " + ".join(f"{count / 1e6:.2f} M" for count in counts)


class Watch:
    """Sees which phase of a system's step is at work, and since when; what is none has the name ""."""

    def __init__(self, system: System) -> None:
        self.marks: list[tuple[str, float]] = []
        self.share = 1.0  # of a mean step that the step at work is
        phases, averaged = system.phases(), system.averaged
        self.every = {"": 1} | {phase.name: phase.every for phase in phases}
        lazy, penalty = any(phase.every > 1 for phase in phases), system.config.penalty_every
        # steps in which all is due that ever is -> how many of sixteen are like it, lazy phases apart
        self.kinds = {16: 16} if lazy else {1: 16 - 16 // penalty, penalty: 16 // penalty}
        watched = [phase._replace(losses=partial(self.begin, phase)) for phase in phases]
        system.phases = lambda: watched
        system.averaged = lambda: (self.mark(""), averaged())[1]  # asked for before and behind the phases

    def mark(self, name: str) -> None:
        self.marks.append((name, measure.clock()))

    def begin(self, phase: Phase, batch: Batch, step: Step) -> Losses:
        self.mark(phase.name)
        return phase.losses(batch, step)

    def seconds(self, step: Callable[[int], object]) -> float:
        """A step's, the mean over sixteen."""
        total = 0.0
        for number, times in self.kinds.items():
            self.marks.clear()
            self.share = times / 16
            self.mark("")
            step(number)
            self.mark("")
            for (name, since), (_, until) in pairwise(self.marks):
                total += self.share * (until - since) / self.every[name]
        return total


class Recorder(TorchDispatchMode):
    """The products of a step: which, on what shapes, how often in a mean step; and their operations."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch, self.gmac = watch, 0.0
        self.found: Counter = Counter()
        self.arguments: dict[str, tuple] = {}

    def record(self, step: Callable[[int], object]) -> float:
        """Take the steps -> their seconds, as the watch has them."""
        with self:
            return self.watch.seconds(step)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if count := flop_registry.get(function._overloadpacket):
            share = self.watch.share / self.watch.every[self.watch.marks[-1][0]]
            kept = tree_map(lambda a: a.to("meta") if isinstance(a, Tensor) else a, (args, kwargs or {}))
            shapes = tree_map(lambda a: (a.shape, a.stride(), a.dtype) if isinstance(a, Tensor) else a, kept)
            self.found[f"{function} {shapes}"] += share
            self.arguments[f"{function} {shapes}"] = (function, *kept)
            self.gmac += share * count(*args, **(kwargs or {}), out_val=out) / 2e9
        return out

    def seconds(self) -> float:
        """The time of all of them, each by itself, the best of two times its count."""
        total = 0.0
        for key, times in self.found.items():
            function, *given = self.arguments[key]
            args, kwargs = tree_map(lambda a: torch.randn_like(a, device="cpu") if isinstance(a, Tensor) else a, given)
            again = partial(function, *args, **kwargs)
            total += times * min(measure.alternate({"": again}, torch.device("cpu"), 2, warm_up=1)[""])
        return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=CLIPS, default="mini")
    parser.add_argument("--systems", nargs="+", choices=MODELS, default=SIX)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=1, help="steps before the one of a turn that is timed")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out: a process each")
    parser.add_argument("--once", action="store_true", help="one step of each, in a process of its own, no products")
    only = "draw a batch, then print the peak memory in GB; with --once take a step, and print what it took before that"
    parser.add_argument("--only", metavar="SYSTEM", help=only)
    args = parser.parse_args()
    torch.set_num_threads(1)
    device, bridge = torch.device("cpu"), subjects.bridge_of(CLIPS[args.size], torch.device("cpu"))
    if args.only:
        config = config_of(args.size, args.only, args.precision)
        if args.once:
            system = make_system(bridge, config)
            step, _ = calls_of(system, config, bridge, args.batch)
            recorder = Recorder(Watch(system))
            print(learned(system), f"{recorder.record(step):.1f}", f"{recorder.gmac:.0f}", sep=";", end=";")
        else:
            generator = make_generator(bridge, config).eval()
            with torch.inference_mode():
                generator.picture_of(torch.randn(args.batch, generator.noise_dim), text_of(bridge, args.batch))
        print(f"{measure.own_peak(device):.2f}")
        return
    note = measure.describe(device)
    if args.once:
        rows = []
        for name in args.systems:
            asked = ("--size", args.size, "--only", name, "--batch", str(args.batch), "--precision", args.precision)
            numbers = measure.alone(__file__, *asked, "--once").split(";")
            titles = "parameters G, D", "s a step", "GMAC", "peak GB, a step"
            row = {"system": name, "batch": args.batch} | dict(zip(titles, numbers, strict=True))
            rows.append(row | {f"peak GB, {args.batch} pictures": measure.alone(__file__, *asked)})
            measure.write_table(f"systems_{args.size}_{args.precision}_once", rows, note)  # with what there is so far
        return
    configs = {name: config_of(args.size, name, args.precision) for name in args.systems}
    times: dict[str, list[float]] = {name: [] for name in configs}
    pictures: dict[str, list[float]] = {name: [] for name in configs}
    for turn in range(args.repeats):
        for name, config in configs.items():  # each made anew, for six at once would not fit into the memory
            system = make_system(bridge, config)
            step, picture = calls_of(system, config, bridge, args.batch)
            watch = Watch(system)
            for _ in range(args.warm_up):
                watch.seconds(step)
            times[name].append(watch.seconds(step))
            pictures[name] += measure.alternate({"": picture}, device, 1, 1)[""]
            print(f"turn {turn + 1}: {name} {times[name][-1]:.3f} s", flush=True)
            del system, step, picture, watch
            gc.collect()
    rows = []
    for name, config in configs.items():
        low, seconds, high = statistics.quantiles(times[name], n=4, method="inclusive")
        system = make_system(bridge, config)
        step, picture = calls_of(system, config, bridge, args.batch)
        recorder = Recorder(Watch(system))
        recorder.record(step)
        drawn = measure.count(picture).gmac
        parameters = learned(system)
        del system, step, picture
        gc.collect()
        gmac, products = recorder.gmac, recorder.seconds()
        row = {
            "system": name, "batch": args.batch,
            "parameters G, D": parameters,
            "s a step": f"{seconds:.3f} ({low:.3f}-{high:.3f})",
            "GMAC": f"{gmac:.1f}", "products, s": f"{products:.3f}",
            "times its products": f"{seconds / products:.2f}", "products, GFLOP/s": f"{2 * gmac / products:.0f}",
            "ms a picture": f"{1000 * statistics.median(pictures[name]):.1f}",
            "GMAC a picture": f"{drawn:.2f}",
        }  # fmt: skip
        if not args.no_memory:
            arguments = ("--size", args.size, "--only", name, "--batch", str(args.batch))
            row[f"peak GB, {args.batch} pictures"] = measure.alone(__file__, *arguments)
        rows.append(row)
        print(row, flush=True)
    measure.write_table(f"systems_{args.size}_{args.precision}", rows, note)


if __name__ == "__main__":
    main()
