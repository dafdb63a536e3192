"""A training step of the small CLIP: OpenAI's own forward passes and ours in turns.

    python benchmarks/small_clip.py

Both take the same loss and optimizer; the plain one runs `clip.model.CLIP` as it comes (captions at full length,
PyTorch's multi-head attention), ours the bridge's blocks.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch

import measure
from galiplib import load_config
from galiplib.clip.bridge import ClipBridge
from galiplib.clip.training import ClipTraining, clip_geometry, new_clip, vocabulary_of
from galiplib.data import minibirds
from galiplib.precision import resolve_precision


class Plain(ClipBridge):
    """The bridge's two encoders as `clip.model.CLIP` computes them."""

    def encode_image(self, images):
        return None, self.model.encode_image(self.preprocess(images))

    def encode_text(self, tokens):
        return self.model.encode_text(tokens)


def trainings(batch: int, pictures: int, device: torch.device) -> dict[str, Callable[[], object]]:
    config = load_config("mini", {"clip.batch_size": batch})
    fast = resolve_precision("auto", device)
    data = minibirds.build("train", pictures, config.data.image_size)
    vocabulary = vocabulary_of([text for texts in data.captions for text in texts])
    made = {}
    for name, bridge_class in {"plain fp32": Plain, "ours fp32": ClipBridge, f"ours {fast}": ClipBridge}.items():
        torch.manual_seed(0)
        bridge = bridge_class(new_clip(clip_geometry(config.clip, config.data), vocabulary), trainable=True).to(device)
        settings = config.clip.model_copy(update={"precision": name.split()[1]})
        made[name] = ClipTraining(bridge, data, settings).advance
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    machine = measure.machine(device, tuple({"fp32", resolve_precision("auto", device)}))
    calls = trainings(args.batch, max(500, args.batch), device)
    work = {name: measure.count(call) for name, call in calls.items()}
    times = measure.alternate(calls, device, args.repeats)
    rows = []
    for name in calls:
        middle, low, high = measure.ratio(times, "plain fp32", name)
        seconds, counted = statistics.median(times[name]), work[name]
        rows.append(
            {
                "small CLIP": name, "batch": args.batch, "seconds a step": f"{seconds:.3f}",
                "times as fast": f"{middle:.2f} ({low:.2f}-{high:.2f})", "GMAC": f"{counted.gmac:.1f}",
                "share of the rate": f"{2e9 * counted.gmac / seconds / machine.rates[name.split()[1]]:.0%}",
            }
        )  # fmt: skip
    measure.write_table(f"small_clip_{device.type}", rows, machine.name)


if __name__ == "__main__":
    main()
