"""What CC12M at 224 px costs on one, 8 and 64 GPUs: a formula on measured pieces. The text is docs/scaling.md.

    python benchmarks/scaling.py                   # prints the tables and writes them into docs/scaling.md
    python benchmarks/scaling.py measure --birds data/birds    # measures the pieces anew, writes scaling.json

The pieces are counts (operations of a training step, parameters) and processor times of this machine; the step time on
a GPU is assumed from its data sheet, for none was at hand.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PIECES = Path(__file__).with_name("scaling.json")
TEXT = Path(__file__).parents[1] / "docs" / "scaling.md"

# ---------------------------------------------------------------- quoted and assumed; docs/scaling.md gives the sources

CC12M = 12_423_374  # pairs listed
CAPTION_BYTES = 110  # assumed
CC12M_BYTES = 331e9  # as img2dataset leaves them at 256 px
CLIP_EMBED = 512  # ViT-B/32
UTILISATION = 0.25  # assumed: share of the peak that this training reaches
LINK_SHARE = 0.7  # assumed: share of a link's speed that an all-reduce reaches
LATENCY = 5e-6  # assumed: seconds that each hop of a bucket takes beside its bytes
BUCKET = 25 * 2**20  # bytes; `distributed.BUCKET`, and DDP's default
NODE = 8  # GPUs of a machine


@dataclass(frozen=True)
class Gpu:
    """A GPU's dense bf16 peak, operations a second (a multiplication and an addition are two)."""

    name: str
    peak: float


@dataclass(frozen=True)
class Links:
    """Bytes a second and direction that each GPU has, to the others of its machine and to other machines."""

    name: str
    inside: float
    outside: float


GPUS = (Gpu("A100", 312e12), Gpu("H200", 989e12))
LINKS = (
    Links("NVLink, 400 Gb/s InfiniBand a GPU", 450e9, 50e9),
    Links("NVLink, 100 Gb/s Ethernet a machine", 450e9, 12.5e9 / NODE),
    Links("PCIe 4.0, 100 Gb/s Ethernet a machine", 32e9, 12.5e9 / NODE),
)


# ---------------------------------------------------------------- the formula


def all_reduce(size: float, gpus: int, links: Links) -> float:
    """Seconds to add up `size` bytes over all GPUs, rings inside the machines, then between them.

    A ring of n sends 2 (n-1)/n of the bytes over each link (Patarasuk and Yuan, 2009). Over several machines: reduced
    and scattered inside each, every GPU's eighth added up between them, gathered inside.
    """
    inside, machines = min(gpus, NODE), -(-gpus // NODE)
    seconds = 2 * (inside - 1) / inside * size / (links.inside * LINK_SHARE)
    seconds += 2 * (machines - 1) / machines * size / inside / (links.outside * LINK_SHARE)
    hops = 2 * (inside - 1) + 2 * (machines - 1)
    return seconds + hops * LATENCY * -(-size // BUCKET)


def step_seconds(pieces: dict[str, Any], gpu: Gpu, links: Links, gpus: int, batch: int, overlap: bool) -> float:
    """Seconds of a step with `batch` pictures a GPU: computing, and as much of the two all-reduces as shows.

    With overlap, as DDP has it, a gradient travels while those of earlier layers are computed: what is longer than its
    backward pass shows, and always the last bucket. Without, as here, all of it shows.
    """
    speed = gpu.peak * UTILISATION
    seconds = batch * pieces["flops"]["step"] / speed
    if gpus == 1:
        return seconds
    for network in ("discriminator", "generator"):
        size = 4 * pieces["parameters"][network]
        travel = all_reduce(size, gpus, links)
        if overlap:
            backward = batch * pieces["flops"][f"{network}_backward"] / speed
            travel = max(travel - backward, travel * min(1, BUCKET / size))
        seconds += travel
    return seconds


def efficiency(pieces: dict[str, Any], gpu: Gpu, links: Links, gpus: int, batch: int, overlap: bool) -> float:
    """Pictures a second and GPU, as a share of those of one GPU alone with the same batch."""
    alone = step_seconds(pieces, gpu, links, 1, batch, overlap)
    return alone / step_seconds(pieces, gpu, links, gpus, batch, overlap)


# ---------------------------------------------------------------- the tables


def table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def pieces_table(p: dict[str, Any]) -> str:
    flops, parameters = p["flops"], p["parameters"]
    return table(["piece", "value"], [
        ["operations of a training step, a picture", f"{flops['step'] / 1e9:.0f} GFLOP"],
        ["- of these in the discriminator's backward pass", f"{flops['discriminator_backward'] / 1e9:.0f} GFLOP"],
        ["- of these in the generator's backward pass", f"{flops['generator_backward'] / 1e9:.0f} GFLOP"],
        ["learnable parameters, generator", f"{parameters['generator'] / 1e6:.2f} M"],
        ["learnable parameters, discriminator and head", f"{parameters['discriminator'] / 1e6:.2f} M"],
        ["gradients to add up a step, fp32", f"{4 * sum(parameters.values()) / 1e6:.0f} MB"],
        ["a stored picture for 256 px (short side 304, JPEG 95)", f"{p['picture_bytes'] / 1e3:.1f} kB"],
        ["- and in the tar, with captions and headers", f"{p['shard_bytes'] / 1e3:.1f} kB"],
        ["processor time to load it (read, decode, crop)", f"{1e3 * p['load_seconds']:.1f} ms"],
        ["processor time to index it, once", f"{1e3 * p['index_seconds']:.2f} ms"],
        ["processor time a sentence of the whole batch", f"{1e6 * p['sentence_seconds']:.0f} µs"],
    ])  # fmt: skip


def storage_table(p: dict[str, Any]) -> str:
    index = CC12M * (5 + 2) * 8
    rows = [
        ["pictures, as img2dataset leaves them at 256 px", f"{CC12M_BYTES / 1e9:.0f} GB", "quoted"],
        ["pictures, as `galip shards` stores them", f"{CC12M * p['shard_bytes'] / 1e9:.0f} GB", "measured x count"],
        ["captions as text", f"{CC12M * CAPTION_BYTES / 1e9:.1f} GB", "assumed length x count"],
        ["index", f"{index / 1e9:.1f} GB", "56 bytes x count"],
        ["embeddings, ViT-B/32, fp32", f"{CC12M * CLIP_EMBED * 4 / 1e9:.1f} GB", "2,048 bytes x count"],
        ["making the index, one core", f"{CC12M * p['index_seconds'] / 60:.0f} min", "measured x count"],
    ]
    return table(["what", "how much", "from"], rows)


def speed_table(p: dict[str, Any]) -> str:
    rows = []
    for gpu in GPUS:
        rate = gpu.peak * UTILISATION / p["flops"]["step"]
        rows.append([
            gpu.name, f"{32 / rate * 1e3:.0f} ms", f"{rate:.0f}", f"{CC12M / rate / 3600:.1f}",
            f"{rate * p['load_seconds']:.1f}", f"{rate * p['shard_bytes'] / 1e6:.0f} MB/s",
        ])  # fmt: skip
    head = ["GPU", "step of 32", "pictures a second", "hours an epoch of CC12M", "cores that load", "read from disk"]
    return table(head, rows)


def efficiency_table(p: dict[str, Any]) -> str:
    rows = []
    for gpu in GPUS:
        for links in LINKS:
            for batch in (32, 64):
                cells = [f"{100 * efficiency(p, gpu, links, gpus, batch, overlap):.0f}%"
                         for gpus in (8, 64) for overlap in (False, True)]  # fmt: skip
                rows.append([gpu.name, links.name, batch, *cells])
    head = ["GPU", "links", "batch a GPU", "8 GPUs", "8, overlapped", "64 GPUs", "64, overlapped"]
    return table(head, rows)


def parts_table(p: dict[str, Any]) -> str:
    rows = []
    gpu, batch = GPUS[1], 32
    for links in LINKS:
        for gpus in (8, 64):
            sizes = [4 * p["parameters"][name] for name in ("discriminator", "generator")]
            travel = sum(all_reduce(size, gpus, links) for size in sizes)
            compute = step_seconds(p, gpu, links, 1, batch, False)
            own = batch * p["load_seconds"]
            sentences = batch * gpus * p["sentence_seconds"]
            rows.append([links.name, gpus, f"{1e3 * compute:.0f} ms", f"{1e3 * travel:.1f} ms",
                         f"{own / compute:.1f} cores", f"{1e3 * sentences:.1f} ms"])  # fmt: skip
    head = ["links", "GPUs", "computing", "all-reduce", "loading needs, a GPU", "sentences of the batch"]
    return table(head, rows)


TABLES = {
    "pieces": pieces_table, "storage": storage_table, "speed": speed_table, "efficiency": efficiency_table,
    "parts": parts_table,
}  # fmt: skip


def with_tables(text: str, pieces: dict[str, Any]) -> str:
    """The text with each table between its marks, `<!-- name -->` and `<!-- end -->`, made anew."""
    for name, make in TABLES.items():
        text, found = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m, make=make: m[1] + make(pieces) + "\n" + m[2], text,
            flags=re.DOTALL,
        )  # fmt: skip
        if found != 1:
            raise ValueError(f"{TEXT} needs the mark <!-- {name} --> once, not {found} times")
    return text


# ---------------------------------------------------------------- the pieces


def count_operations() -> dict[str, Any]:
    """Operations and parameters of a step of profile cc12m, a picture, by torch's counter; weights don't matter."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    from galiplib import load_config
    from galiplib.build import make_bridge, make_system
    from galiplib.clip.bridge import CLIP
    from galiplib.system import Batch, Text
    from galiplib.training import Optimizers, train_step

    class Counter(TorchDispatchMode):  # torch's FlopCounterMode has no way through the penalty's inner gradient
        total = 0

        def __torch_dispatch__(self, function, types, arguments=(), named=None):
            found = function(*arguments, **(named or {}))
            if count := flop_registry.get(function._overloadpacket):
                self.total += count(*arguments, **(named or {}), out_val=found)
            return found

    config = load_config("cc12m", {"train.precision": "fp32"})
    clip_model = CLIP(CLIP_EMBED, 224, 12, 768, 32, 77, 49408, 512, 8, 12).float()
    bridge = make_bridge(config, clip_model=clip_model)
    networks = make_system(bridge, config)
    optimizers = Optimizers(networks, config.train)
    batch = 2
    text, noise = Text(torch.randn(batch, CLIP_EMBED)), {"z": torch.randn(batch, 100)}
    drawn = Batch(torch.rand(batch, 3, 256, 256) * 2 - 1, text, noise)
    backwards, backward = [], torch.Tensor.backward
    with Counter() as counter:

        def counted(tensor, *arguments, **named):
            before = counter.total
            backward(tensor, *arguments, **named)
            backwards.append(counter.total - before)

        torch.Tensor.backward = counted
        try:
            train_step(networks, optimizers, drawn, config.train, 1)
        finally:
            torch.Tensor.backward = backward
    return {
        "flops": {
            "step": counter.total / batch, "discriminator_backward": backwards[0] / batch,
            "generator_backward": backwards[1] / batch,
        },
        "parameters": {
            "generator": sum(p.numel() for p in optimizers.weights["generator"]),
            "discriminator": sum(p.numel() for p in optimizers.weights["discriminator"]),
        },
    }  # fmt: skip


def measure_loading(birds: str, pictures: int = 600) -> dict[str, float]:
    """Sizes and processor times a picture, on real photographs stored for 256 px."""
    import numpy as np

    from galiplib.data.batches import BatchReader
    from galiplib.data.datasets import open_dataset
    from galiplib.data.embeddings import Table
    from galiplib.data.index import passing_index
    from galiplib.data.pictures import Photos
    from galiplib.data.shard_writing import ResizedPhotos, write_shards
    from galiplib.data.shards import open_shards, scan

    class WholePhotos(ResizedPhotos):
        """The first ones."""

        def __len__(self) -> int:
            return min(pictures, len(self.photos))

    photos = open_dataset("birds", birds, "train", 256)
    # not cut to the bird, one caption each: CC12M has no boxes
    items = (dataclasses.replace(item, captions=item.captions[:1], box=None) for item in photos.items)
    photos = Photos("birds", "train", photos.folder, 256, passing_index(items))
    with tempfile.TemporaryDirectory() as folder:
        write_shards(WholePhotos(photos), Path(folder) / "train", {}, 200)
        shards = open_shards(folder)
        files = [shards.folder / name for name in shards.index.shards]
        started = time.process_time()
        for path in files:
            list(scan(path, []))
        index = (time.process_time() - started) / len(shards)
        np.zeros((100_000, CLIP_EMBED), np.float32).tofile(Path(folder) / "sentences.f32")
        sentences = Table(Path(folder) / "sentences.f32", CLIP_EMBED, 100_000)
        reader, times = BatchReader(shards, shards, sentences, 32, 0, slice(0, 32)), []
        for step in range(1, 16):
            started = time.process_time()
            reader.read(step)
            times.append((time.process_time() - started) / 32)
        rows, random = np.random.default_rng(0).integers(0, len(shards), 2048), np.random.default_rng(0)
        started = time.process_time()
        for _ in range(5):
            sentences[shards.draw(rows, random)]
        sentence = (time.process_time() - started) / 5 / len(rows)
        stored = statistics.mean(item.span[1] for item in shards.items)
        return {
            "picture_bytes": float(stored), "shard_bytes": sum(path.stat().st_size for path in files) / len(shards),
            "load_seconds": statistics.median(times), "index_seconds": index, "sentence_seconds": sentence,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("tables", "measure"), default="tables")
    parser.add_argument("--birds", default="data/birds", help="CUB's photographs, to measure sizes and loading on")
    args = parser.parse_args()
    if args.what == "measure":
        PIECES.write_text(json.dumps({**count_operations(), **measure_loading(args.birds)}, indent=2) + "\n")
    pieces = json.loads(PIECES.read_text())
    for name, make in TABLES.items():
        print(f"\n{name}\n{make(pieces)}")
    TEXT.write_text(with_tables(TEXT.read_text(), pieces))


if __name__ == "__main__":
    main()
