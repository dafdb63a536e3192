"""Written-out against fused attention on a small CLIP's shapes, forward and backward: python benchmarks/attention.py

The two alternate in one process, so that a noisy machine disturbs both alike; the ratio is what counts.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F


def written_out(q, k, v):
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1) @ v


def seconds(attend, shape) -> float:
    q, k, v = (torch.randn(shape, requires_grad=True) for _ in range(3))
    started = time.perf_counter()
    attend(q, k, v).sum().backward()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30)
    repeats = parser.parse_args().repeats
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, forward + backward, median of {repeats}")
    print("| batch, heads, length, width | written out, ms | fused, ms | fused / written out |")
    print("|---|---|---|---|")
    for shape in ((32, 2, 50, 64), (128, 2, 50, 64), (128, 4, 20, 32)):
        times = {attend: [] for attend in (written_out, F.scaled_dot_product_attention)}
        for turn in range(repeats + 3):
            for attend, measured in times.items():
                elapsed = seconds(attend, shape)
                if turn >= 3:  # warm-up
                    measured.append(elapsed)
        ours, fused = (1e3 * statistics.median(measured) for measured in times.values())
        print(f"| {shape} | {ours:.2f} | {fused:.2f} | {fused / ours:.2f} |")


if __name__ == "__main__":
    main()
