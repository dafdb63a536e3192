"""Every system's training step and picture, in turns in one run: seconds, counted operations, what the rest costs.

python benchmarks/systems.py                                   # mini, batch 32; table and CSV in benchmarks/results
python benchmarks/systems.py --size birds --batch 8            # the published sizes, random weights, a CLIP as ViT-B/32
python benchmarks/systems.py --systems lafite dfgan --repeats 9

A step's seconds and operations are means over sixteen steps, lazy phases in their turn. "Products" are its convolutions
and matrix products, each again by itself, on tensors of the same shapes: the rate they reach here, and the least time
of a step that computes the same in plain operations. What a step takes beyond is pointwise work and overhead.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

import measure
import subjects
from galiplib import load_config
from galiplib.build import make_system
from galiplib.clip.bridge import ClipBridge
from galiplib.config import MODELS, Config, ConfigError
from galiplib.system import Batch, System, Text
from galiplib.training import Optimizers, random_of, train_step

CLIPS = {"mini": "mini", "birds": "vit"}  # size, a profile -> the CLIP of `subjects`
TURNS = {1: 12, 4: 3, 16: 1}  # a step of each kind -> how many of sixteen are like it


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


class Recorder(TorchDispatchMode):
    """The products of a computation: which, on what shapes, how often."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter = Counter()
        self.arguments: dict[str, tuple] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function._overloadpacket in flop_registry:
            kept = tree_map(lambda a: a.to("meta") if isinstance(a, Tensor) else a, (args, kwargs or {}))
            key = (
                f"{function} {tree_map(lambda a: (a.shape, a.stride(), a.dtype) if isinstance(a, Tensor) else a, kept)}"
            )
            self.found[key] += 1
            self.arguments[key] = (function, *kept)
        return out


def seconds_of_products(call: Callable[[], object]) -> float:
    """The time of all products of a call, each by itself, the best of three times its count."""
    with Recorder() as recorder:
        call()
    total = 0.0
    for key, times in recorder.found.items():
        function, *given = recorder.arguments[key]
        args, kwargs = tree_map(lambda a: torch.randn_like(a, device="cpu") if isinstance(a, Tensor) else a, given)
        again = partial(function, *args, **kwargs)
        total += times * min(measure.alternate({"": again}, torch.device("cpu"), 3, warm_up=1)[""])
    return total


def mean(of: Callable[[int], float]) -> float:
    """The mean of what steps take, over sixteen of them."""
    return sum(times * of(number) for number, times in TURNS.items()) / sum(TURNS.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=CLIPS, default="mini")
    parser.add_argument("--systems", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out: a process each")
    parser.add_argument("--only", metavar="SYSTEM", help="draw a picture, then print the peak memory in GB")
    args = parser.parse_args()
    torch.set_num_threads(1)
    device, bridge = torch.device("cpu"), subjects.bridge_of(CLIPS[args.size], torch.device("cpu"))
    if args.only:
        config = config_of(args.size, args.only, args.precision)
        generator = make_system(bridge, config).ema
        with torch.inference_mode():
            generator.picture_of(torch.randn(1, generator.noise_dim), text_of(bridge, 1))
        print(measure.own_peak(device))
        return
    made, configs = {}, {name: config_of(args.size, name, args.precision) for name in args.systems}
    for name, config in configs.items():
        system = make_system(bridge, config)
        made[name] = system, *calls_of(system, config, bridge, args.batch)
    candidates = {f"{name} {number}": partial(step, number) for name, (_, step, _) in made.items() for number in TURNS}
    candidates |= {f"{name} picture": picture for name, (_, _, picture) in made.items()}
    times = {
        name: statistics.median(found) for name, found in measure.alternate(candidates, device, args.repeats).items()
    }
    rows = []
    for name, (system, step, picture) in made.items():
        seconds = mean(lambda number, name=name: times[f"{name} {number}"])
        gmac = mean(lambda number, step=step: measure.count(partial(step, number)).gmac)
        products = mean(lambda number, step=step: seconds_of_products(partial(step, number)))
        learned = subjects.count(system.learners("generator")), subjects.count(system.learners("discriminator"))
        row = {
            "system": name, "batch": args.batch,
            "parameters G, D": " + ".join(f"{count / 1e6:.2f} M" for count in learned),
            "s a step": f"{seconds:.3f}", "GMAC": f"{gmac:.1f}", "products, s": f"{products:.3f}",
            "times its products": f"{seconds / products:.2f}", "products, GFLOP/s": f"{2 * gmac / products:.0f}",
            "ms a picture": f"{1000 * times[f'{name} picture']:.1f}",
            "GMAC a picture": f"{measure.count(picture).gmac:.2f}",
        }  # fmt: skip
        if not args.no_memory:
            arguments = ("--size", args.size, "--only", name, "--precision", args.precision)
            row["peak GB of a picture"] = f"{measure.peak_memory(__file__, *arguments):.2f}"
        rows.append(row)
        print(row, flush=True)
    measure.write_table(f"systems_{args.size}_{args.precision}", rows, measure.describe(device))


if __name__ == "__main__":
    main()
