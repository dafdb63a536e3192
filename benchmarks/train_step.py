"""A training step, the authors' and ours in turns: time, peak memory, operations, distance from the machine's limit.

python benchmarks/train_step.py                       # both sizes; table, CSV and figure in benchmarks/results
python benchmarks/train_step.py --sizes mini --repeats 20
"""

from __future__ import annotations

import argparse
import statistics

import torch

import measure
import subjects


def subjects_of(size: str, device: torch.device) -> list[str]:
    fast = subjects.fast(device)
    found = ["reference fp32", "ours fp32"]
    if device.type == "cuda":
        found.insert(1, "reference fp16")
    if fast != "fp32":
        found.append(f"ours {fast}")
    # compiling takes minutes at ViT-B/32's size
    return [*found, f"compiled {fast}", f"profile {fast}"] if size == "mini" else found


def rows_of(
    size: str, steps: list[str], batch: int, repeats: int, device: torch.device, machine: measure.Machine
) -> list[dict]:
    bridge = subjects.bridge_of(size, device)
    made = {name: subjects.step_of(name, size, bridge, batch) for name in steps}
    first = {name: measure.alternate({"": call}, device, 1, warm_up=0)[""][0] for name, (call, _, _) in made.items()}
    plain = {name: name.replace("compiled", "ours") for name in steps}
    work = {name: measure.count(*made[name][::2]) for name in plain.values() if name in made}
    times = measure.alternate({name: call for name, (call, _, _) in made.items()}, device, repeats)
    rows = []
    for name, (_, precision, _) in made.items():
        middle, low, high = measure.ratio(times, steps[0], name)
        seconds = statistics.median(times[name])
        rows.append(
            {
                "size": subjects.NAMES[size], "batch": batch, "step": name,
                "seconds": f"{seconds:.3f}", "times as fast": f"{middle:.2f} ({low:.2f}-{high:.2f})",
                "GMAC": f"{work[plain[name]].gmac:.0f}",
                "share of the rate": f"{2e9 * work[plain[name]].gmac / seconds / machine.rates[precision]:.0%}",
                "floor, s": f"{work[plain[name]].floor(machine, precision):.3f}",
                "first step, s": f"{first[name]:.1f}",
            }
        )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=subjects.SIZES, default=list(subjects.SIZES))
    parser.add_argument("--batch", type=int, help="by default 32 at mini's size, 8 at ViT-B/32's")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", nargs="+", help="such as 'ours fp32'; by default all that fit the device")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out: a process each")
    parser.add_argument("--only", metavar="STEP", help="two steps of one kind, then print the peak memory in GB")
    args = parser.parse_args()
    device = torch.device(args.device)
    if args.only:
        (size,) = args.sizes
        call, _, _ = subjects.step_of(
            args.only, size, subjects.bridge_of(size, device), args.batch or subjects.BATCH[size]
        )
        call(), call()
        print(measure.own_peak(device))
        return
    chosen = {size: args.steps or subjects_of(size, device) for size in args.sizes}
    precisions = {step.split()[1] for steps in chosen.values() for step in steps}
    machine = measure.machine(device, tuple(sorted(precisions)))
    print(machine)
    rows = []
    for size, steps in chosen.items():
        batch = args.batch or subjects.BATCH[size]
        for row in rows_of(size, steps, batch, args.repeats, device, machine):
            if not args.no_memory:
                arguments = ("--sizes", size, "--batch", str(batch), "--device", args.device, "--only", row["step"])
                row["peak GB"] = f"{measure.peak_memory(__file__, *arguments):.2f}"
            rows.append(row)
            print(row)
    measure.write_table(f"train_step_{device.type}", rows, machine.name)
    measure.draw_gap(f"train_step_{device.type}", rows, "step", "seconds", "floor, s", "seconds a step")


if __name__ == "__main__":
    main()
