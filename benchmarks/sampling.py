"""Captions to pictures, the authors' way and ours in turns: time, peak memory, distance from the machine's limit.

python benchmarks/sampling.py                         # both sizes, batch 1 and 8
python benchmarks/sampling.py --sizes vit --batches 64 --compile
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import measure
import subjects
from galiplib.checkpoints.onnx import OnnxGenerator, export, opened
from galiplib.clip.bridge import ClipBridge
from galiplib.sampling.bf16 import to_bf16
from galiplib.sampling.recipe import noise_of_seeds
from galiplib.sampling.sample import sample
from galiplib.system import TextToImage
from galiplib.systems.galip import Generator
from reference import Reference


def trained_like(size: str, bridge: ClipBridge) -> Generator:
    """A generator whose every weight counts, as after a training: at the start, all affines are the identity."""
    torch.manual_seed(1)
    generator = Generator(bridge, subjects.config_of(size, "fp32").model)
    for parameter in generator.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
        parameter.data += torch.randn_like(parameter) * fan_in**-0.5 / 2
    generator.to_rgb.weight.data *= 4  # so that the pictures fill [-1, 1]
    return generator.to(device=bridge.pixel_mean.device, memory_format=torch.channels_last).eval()


def candidate(
    name: str, size: str, generator: Generator, batch: int, model: bytes | None = None
) -> Callable[[], Tensor]:
    """A call that draws a picture of each of `batch` captions -> (batch, 3, H, W); may change the generator.

    `model` is the generator as an ONNX file, by which it is to be drawn.
    """
    whose, precision = name.split()[:2]
    bridge, texts = generator.bridge, subjects.captions(batch)
    if model:
        return ours(OnnxGenerator(bridge, *opened(model, name)), texts, False)
    if whose == "ours":
        return ours(to_bf16(generator) if precision == "bf16" else generator, texts, name.endswith("compiled"))
    theirs = Reference(bridge, subjects.config_of(size, "fp32"), precision=precision, training=False)
    theirs.copy("netG", generator)
    noise = noise_of_seeds([0], generator.noise_dim).repeat(batch, 1).to(bridge.pixel_mean)  # as `sample` draws it
    return lambda: theirs.sample(bridge.tokenize(texts).to(noise.device), noise)


def ours(generator: TextToImage, texts: list[str], compiled: bool) -> Callable[[], Tensor]:
    if compiled:
        generator.compile(dynamic=False)
    return lambda: sample(generator, generator.bridge, texts, batch_size=len(texts)).images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=subjects.SIZES, default=list(subjects.SIZES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile as well; it takes minutes on a CPU")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out: a process each")
    parser.add_argument("--only", metavar="NAME", help="two calls of one kind, then print the peak memory in GB")
    args = parser.parse_args()
    device = torch.device(args.device)
    if args.only:
        bridge = subjects.bridge_of(args.sizes[0], device)
        call = candidate(args.only, args.sizes[0], trained_like(args.sizes[0], bridge), args.batches[0])
        del bridge
        call(), call()
        print(measure.own_peak(device))
        return

    fast = subjects.fast(device)
    names = ["reference fp32", *(["reference fp16"] if device.type == "cuda" else []), "ours fp32"]
    names += [f"ours {fast}"] if fast != "fp32" else []
    names += [f"ours {fast} compiled"] if args.compile else []
    machine = measure.machine(device, tuple(sorted({name.split()[1] for name in names})))
    names += ["ours fp32 onnx"] if device.type == "cpu" else []
    print(machine)
    rows = []
    for size in args.sizes:
        bridge = subjects.bridge_of(size, device)
        generator = trained_like(size, bridge)
        started = time.perf_counter()
        model = export(generator, {}, text=False).draws if names[-1].endswith("onnx") else None
        exporting = time.perf_counter() - started
        for batch in args.batches:
            calls = {
                name: candidate(name, size, copy.deepcopy(generator), batch, model if name.endswith("onnx") else None)
                for name in names
            }
            started = time.perf_counter()
            pictures = {name: call() for name, call in calls.items()}
            first = time.perf_counter() - started
            plain = [name for name in names if not name.endswith(("compiled", "onnx"))]
            work = {name: measure.count(calls[name]) for name in plain}
            times = measure.alternate(calls, device, args.repeats, warm_up=1)
            for name in names:
                middle, low, high = measure.ratio(times, names[0], name)
                seconds, precision = statistics.median(times[name]), name.split()[1]
                counted = work[name.removesuffix(" compiled").removesuffix(" onnx")]
                error = (pictures[name] - pictures[names[0]]).square().mean().item()
                row = {
                    "size": subjects.NAMES[size], "batch": batch, "sampling": name,
                    "ms a picture": f"{1e3 * seconds / batch:.1f}",
                    "times as fast": f"{middle:.2f} ({low:.2f}-{high:.2f})",
                    "GMAC": f"{counted.gmac:.1f}",
                    "share of the rate": f"{2e9 * counted.gmac / seconds / machine.rates[precision]:.0%}",
                    "floor, ms a picture": f"{1e3 * counted.floor(machine, precision) / batch:.1f}",
                    "PSNR, dB": f"{measure.psnr(error):.0f}",
                }  # fmt: skip
                if not args.no_memory and name in plain:
                    row["peak GB"] = f"{peak(size, batch, args.device, name):.2f}"
                if name.endswith("compiled"):
                    row["first call, s"] = f"{first:.0f}"
                if name.endswith("onnx"):
                    row["export, s"] = f"{exporting:.0f}"
                rows.append(row)
                print(row)
    measure.write_table(f"sampling_{device.type}", rows, machine.name)
    measure.draw_gap(f"sampling_{device.type}", rows, "sampling", "ms a picture", "floor, ms a picture", "ms a picture")


def peak(size: str, batch: int, device: str, name: str) -> float:
    return measure.peak_memory(
        __file__, "--sizes", size, "--batches", str(batch), "--device", device, "--only", name
    )  # fmt: skip


if __name__ == "__main__":
    main()
