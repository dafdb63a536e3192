"""Pictures a second from files to batches: the authors' loader and ours in turns, cold and kept in memory.

python benchmarks/loading.py                        # drawn birds of CUB's size, written as JPEG
python benchmarks/loading.py --folder data/birds    # CUB itself
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import measure
from galiplib.data import minibirds
from galiplib.data.datasets import Photos, open_dataset
from galiplib.images import to_images

BATCH = 32


class Plain(Dataset):
    """As the authors load: Pillow, torchvision's transforms, a picture at a time."""

    def __init__(self, photos: Photos) -> None:
        size = photos.image_size
        self.photos = photos
        self.transform = transforms.Compose(
            [
                transforms.Resize(photos.short_side), transforms.RandomCrop(size), transforms.RandomHorizontalFlip(),
                transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3),
            ]
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.transform(self.photos.picture(row))


def one_epoch(photos: Photos) -> None:
    random = np.random.default_rng(0)
    for start in range(0, len(photos) - BATCH + 1, BATCH):
        to_images(photos.pixels(range(start, start + BATCH), random)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="a data set in CUB's layout")
    parser.add_argument("--pictures", type=int, default=256, help="that are drawn, without --folder")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if args.folder is None:
            args.folder = Path(scratch)
            minibirds.write_cub(args.folder, {"train": args.pictures}, size=420)
        measured(args)


def measured(args: argparse.Namespace) -> None:
    device = torch.device("cpu")

    def opened() -> Photos:
        return open_dataset("birds", args.folder, "train", args.image_size, progress=False)

    plain = DataLoader(Plain(opened()), BATCH, shuffle=True, drop_last=True)
    warm, cold = opened(), [opened() for _ in range(args.repeats)]
    one_epoch(warm)
    calls = {
        "authors' way": lambda: [None for _ in plain],
        "ours, first epoch": lambda: one_epoch(cold.pop()),
        "ours, later epochs": lambda: one_epoch(warm),
    }
    times = measure.alternate(calls, device, args.repeats, warm_up=0)
    pictures = len(warm) // BATCH * BATCH
    rows = []
    for name in calls:
        middle, low, high = measure.ratio(times, "authors' way", name)
        rows.append(
            {
                "loading": name, "side": args.image_size, "pictures": len(warm),
                "pictures a second": f"{pictures / statistics.median(times[name]):.0f}",
                "times as fast": f"{middle:.2f} ({low:.2f}-{high:.2f})",
            }
        )  # fmt: skip
    measure.write_table("loading", rows, measure.describe(device))


if __name__ == "__main__":
    main()
