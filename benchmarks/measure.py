"""What the benchmarks share: paired times, peak memory, operations and bytes counted, the machine's measured limits."""

from __future__ import annotations

import math
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

RESULTS = Path(__file__).parent / "results"
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock() -> float:
    """Seconds: the wall's; with one thread, as beside other work, this process's own."""
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.process_time() if alone else time.perf_counter()


def alternate(
    candidates: dict[str, Callable[[], object]], device: torch.device, repeats: int, warm_up: int = 2
) -> dict[str, list[float]]:
    """Seconds of `repeats` calls of each candidate, in turns, so that a noisy machine disturbs all alike."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warm_up + repeats):
        for name, call in candidates.items():
            synchronise(device)
            started = clock()
            call()
            synchronise(device)
            if turn >= warm_up:
                times[name].append(clock() - started)
    return times


def ratio(times: dict[str, list[float]], base: str, name: str) -> tuple[float, float, float]:
    """How many times faster `name` is than `base`: median of the paired turns' ratios, and its quartiles."""
    ratios = sorted(b / t for b, t in zip(times[base], times[name], strict=True))
    if len(ratios) < 4:
        return statistics.median(ratios), ratios[0], ratios[-1]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return middle, low, high


def psnr(error: float) -> float:
    """Mean square error of pictures in [-1, 1] -> dB."""
    return 10 * math.log10(4 / error) if error else math.inf


# ---------------------------------------------------------------- the machine


@dataclass(frozen=True)
class Machine:
    """What the hardware was seen to do, in this process: products a second per precision, bytes a second."""

    name: str
    rates: dict[str, float]  # precision -> operations a second (two a multiply-add)
    bandwidth: float  # bytes a second, read or written


def machine(device: torch.device, precisions: tuple[str, ...]) -> Machine:
    """Measure matrix products (of a size that fits the device) and a copy, the best of several."""
    side = 8192 if device.type == "cuda" else 1024
    rates = {}
    for precision in precisions:
        a, b = (torch.randn(side, side, device=device).to(DTYPES[precision]) for _ in range(2))
        rates[precision] = 2 * side**3 / _best(lambda a=a, b=b: a @ b, device)
    large = torch.empty(2**26 if device.type == "cpu" else 2**30, dtype=torch.uint8, device=device)
    other = torch.ones_like(large)
    return Machine(describe(device), rates, 2 * large.numel() / _best(lambda: large.copy_(other), device))


def _best(call: Callable[[], object], device: torch.device, repeats: int = 100) -> float:
    return min(alternate({"": call}, device, repeats)[""])


def describe(device: torch.device) -> str:
    """The device, its instructions that count here, threads, versions."""
    version = f"torch {torch.__version__}"
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {version}"
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    found = torch.cpu.get_capabilities()
    units = [name for name in ("avx512_f", "avx512_bf16", "amx_bf16") if found.get(name)]
    threads = torch.get_num_threads()
    timed = "1 thread, process time" if threads == 1 else f"{threads} threads, wall time"
    return f"{model} ({', '.join(units)}), {timed}, {version}"


# ---------------------------------------------------------------- operations and bytes


@dataclass
class Work:
    """What a computation must do, whoever runs it: its matrix products and convolutions, each with its operands.

    Everything pointwise is taken to be fused into them, so `floor` is a bound that no program reaches.
    """

    products: list[tuple[int, int]] = field(default_factory=list)  # (operations, elements read and written)
    weights: int = 0  # elements that an optimizer reads and writes beside them

    @property
    def gmac(self) -> float:
        return sum(operations for operations, _ in self.products) / 2e9

    def floor(self, machine: Machine, precision: str) -> float:
        """Seconds: of each product, what takes longer, its operations or its bytes; then the optimizers' bytes."""
        rate, size = machine.rates[precision], BYTES[precision]
        products = sum(max(n / rate, elements * size / machine.bandwidth) for n, elements in self.products)
        return products + self.weights * 4 / machine.bandwidth


class _Counter(TorchDispatchMode):
    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work = work

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        count = flop_registry.get(function._overloadpacket)
        if count is None:
            with self:  # such as a linear in inference mode, which is a product inside
                out = function.decompose(*args, **(kwargs or {}))
            if out is not NotImplemented:
                return out
        out = function(*args, **(kwargs or {}))
        if count is not None:
            operations = count(*args, **(kwargs or {}), out_val=out)
            outputs = out if isinstance(out, (tuple, list)) else (out,)
            elements = sum(t.numel() for t in (*args, *outputs) if isinstance(t, Tensor))
            self.work.products.append((operations, elements))
        return out


def count(call: Callable[[], object], parameters: int = 0) -> Work:
    """The work of a call; `parameters` are updated by Adam in it (7 values each: weight, two moments, gradient)."""
    work = Work(weights=7 * parameters)
    with _Counter(work):
        call()
    return work


def own_peak(device: torch.device) -> float:
    """Peak memory of this process in GB: on a GPU of its tensors, else resident (Linux), libraries included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    status = Path("/proc/self/status").read_text()  # getrusage's maximum may be the parent's
    return int(re.search(r"VmHWM:\s*(\d+) kB", status).group(1)) / 2**20


def alone(script: str, *arguments: str) -> str:
    """The last line that a benchmark script prints in a process of its own."""
    made = subprocess.run([sys.executable, script, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return made.stdout.splitlines()[-1]


def peak_memory(script: str, *arguments: str) -> float:
    """Peak memory in GB of another process that runs a benchmark script, which prints its `own_peak` last."""
    return float(alone(script, *arguments).split()[-1])


# ---------------------------------------------------------------- tables


def write_table(name: str, rows: list[dict], note: str) -> None:
    """Print rows as a table and write them to `results/<name>.md` and `.csv`."""
    RESULTS.mkdir(exist_ok=True)
    frame = pd.DataFrame(rows)
    frame.to_csv(RESULTS / f"{name}.csv", index=False)
    lines = ["| " + " | ".join(map(str, line)) + " |" for line in (frame.columns, ["---"] * len(frame.columns))]
    for row in frame.itertuples(index=False):
        lines.append("| " + " | ".join("" if pd.isna(value) else str(value) for value in row) + " |")
    text = "\n".join(lines) + f"\n\n{note}\n"
    (RESULTS / f"{name}.md").write_text(text)
    print(text)


def draw_gap(name: str, rows: list[dict], label: str, taken: str, floor: str, unit: str) -> None:
    """Draw a table's `results/<name>.png`: a panel a size and batch, each row's time as a bar, its floor as a mark.

    Args:
        label, taken, floor: the columns with the rows' names, times and floors.
    """
    panels: dict[str, list[tuple[str, float, float]]] = {}
    for row in rows:
        bar = row[label], float(row[taken]), float(row[floor])
        panels.setdefault(f"{row['size']}, batch {row['batch']}", []).append(bar)
    most = max(map(len, panels.values()))
    figure, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 1.2 + 0.45 * most), squeeze=False)
    for axis, (title, bars) in zip(axes[0], panels.items(), strict=True):
        labels, taken, floors = zip(*bars, strict=True)
        places = range(len(bars))
        axis.barh(places, taken, color="#9fc0e0", label="measured")
        axis.plot(floors, places, "D", color="#c23b22", label="floor: operations or bytes")
        for place, (_, time_taken, floor) in zip(places, bars, strict=True):
            axis.text(time_taken, place, f" {time_taken / floor:.1f} x its floor", va="center", fontsize=8)
        axis.set(title=title, xlabel=unit, xlim=(0, 1.35 * max(taken)))
        axis.set_yticks(places, labels)
        axis.invert_yaxis()
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=2, frameon=False)
    figure.tight_layout(rect=(0, 0.3 / (1.2 + 0.45 * most), 1, 1))
    figure.savefig(RESULTS / f"{name}.png", dpi=110)
    plt.close(figure)
