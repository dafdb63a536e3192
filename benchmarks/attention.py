"""Written-out against fused attention on the shapes that occur, forward and backward: python benchmarks/attention.py

The two alternate in one process, so that a noisy machine disturbs both alike; the ratio is what counts.
"""

import argparse
import statistics

import torch
import torch.nn.functional as F

import measure

SHAPES = {  # batch, heads, tokens, width of a head
    "small CLIP in mini's step": (32, 2, 50, 64),
    "small CLIP, pictures": (128, 2, 50, 64),
    "small CLIP, captions": (128, 4, 20, 32),
    "ViT-B/32, one picture": (1, 12, 50, 64),
    "ViT-B/32, batch 8": (8, 12, 50, 64),
}


def written_out(q, k, v):
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1) @ v


def call_of(attend, shape, dtype, backward):
    batch, heads, tokens, width = shape
    joint = torch.randn(batch, tokens, 3, heads, width, dtype=dtype, requires_grad=backward)

    def call():  # as the networks do: one product gives all three, in this order
        out = attend(*joint.permute(2, 0, 3, 1, 4)).transpose(1, 2).reshape(batch, tokens, heads * width)
        if backward:
            out.backward(torch.ones_like(out))

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=31)
    repeats = parser.parse_args().repeats
    device, rows = torch.device("cpu"), []
    for name, shape in SHAPES.items():
        for dtype in (torch.float32, torch.bfloat16):
            for backward in (False, True):
                attends = {"written": written_out, "fused": F.scaled_dot_product_attention}
                calls = {which: call_of(attend, shape, dtype, backward) for which, attend in attends.items()}
                times = measure.alternate(calls, device, repeats, warm_up=5)
                middle, low, high = measure.ratio(times, "fused", "written")
                rows.append(
                    {
                        "attention": name, "shape": "x".join(map(str, shape)), "dtype": str(dtype)[6:],
                        "passes": "both" if backward else "forward",
                        "written out, ms": f"{1e3 * statistics.median(times['written']):.2f}",
                        "fused, ms": f"{1e3 * statistics.median(times['fused']):.2f}",
                        "written out is faster by": f"{middle:.2f} ({low:.2f}-{high:.2f})",
                    }
                )  # fmt: skip
    measure.write_table("attention", rows, measure.describe(device))


if __name__ == "__main__":
    main()
