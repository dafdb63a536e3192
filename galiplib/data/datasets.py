"""The data sets: mini birds, CUB birds, Oxford flowers, CelebA faces, COCO, CC3M, CC12M, your own, shards.

Each is an entry of `DATASETS`, which answers all that a run asks of it. Photographs are read from the layout that the
authors' code expects; what can't be used is left out and named.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from tqdm import tqdm

from ..images import save_png
from . import SPLITS, BadRow, DataError, EmptySplit, minibirds
from . import summary as data_summary
from .batches import Source
from .captions import kept, read_captions
from .decoding import Box, read_header, square_around
from .download import download
from .embeddings import cut_captions
from .index import Item, passing_index
from .layouts import LAYOUTS, NAMES, Row, expected, list_rows, read_boxes, without_suffix
from .pictures import Photos
from .shard_writing import DrawnBirds, ResizedPhotos, Samples
from .shards import open_shards

__all__ = ["DATASETS", "NAMES", "DataError", "Item", "Photos", "dataset", "describe", "download", "open_dataset"]
SAMPLE_CAPTIONS = (
    "a red bird with black wings and a white belly in the snow",
    "a blue bird with yellow wings and an orange belly in a meadow",
    "a yellow bird with green wings and a purple belly in the sky",
    "a white bird with pink wings and a brown belly at sunset",
)


class Settings(Protocol):
    """What a data set is opened by: the section `data` of a configuration."""

    @property
    def folder(self) -> str | None: ...
    @property
    def index(self) -> str | None: ...
    @property
    def image_size(self) -> int: ...
    @property
    def train_size(self) -> int: ...
    @property
    def test_size(self) -> int: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class Dataset:
    """Photographs in a folder laid out as `layouts` says; the other entries differ from them in what they override."""

    name: str  # as `data.name` has it
    held_out: tuple[str, ...] = ("test",)  # splits to measure on; the first is compared with the real pictures
    captions: tuple[str, ...] = ()  # to draw on the way; without any, held-out ones are drawn
    judged: bool = False  # whether the judge knows what its pictures show
    terms: str = "of the publishers of its photographs and captions: research and teaching (data/README.md)"

    def open(self, settings: Settings, split: str = "train", progress: Callable = iter) -> Source:
        """The pictures of a split; raises DataError if they can't be had.

        `progress` wraps the drawing of mini birds (a tqdm, say); photographs have their own bar, if it isn't `iter`.
        """
        return open_dataset(self.name, settings.folder, split, settings.image_size, progress is not iter, None)

    def samples(self, settings: Settings, split: str, progress: bool) -> tuple[Samples, dict[str, Any]]:
        """What shards of a split are written from, and what that is made of."""
        samples = ResizedPhotos(open_dataset(self.name, settings.folder, split, settings.image_size, progress))
        return samples, {"data": self.name, "count": len(samples)}

    def note(self, settings: Settings) -> dict[str, Any]:
        """What the real pictures of an evaluation are, for files of their statistics."""
        return {"data": self.name, "split": self.held_out[0], "size": settings.image_size, **self._shown(settings)}

    def _shown(self, settings: Settings) -> dict[str, Any]:
        box = "square of 1.5 times the bounding box, then " if self.name in LAYOUTS and LAYOUTS[self.name].boxes else ""
        crop = f"{box}short side to {settings.image_size * 76 // 64}, centre"
        return {"crop": crop, "folder": str(settings.folder or "")}

    def cache_name(self, settings: Settings, split: str = "train") -> str | None:
        """What the captions' embeddings of a split are stored under; None: they are made anew every time."""
        folder = settings.folder
        place = "" if folder is None else hashlib.sha256(str(Path(folder).resolve()).encode()).hexdigest()[:8]
        return "-".join(filter(None, (self.name, place, split)))


class Drawn(Dataset):
    """Mini birds: rendered when opened, of known truth."""

    def open(self, settings: Settings, split: str = "train", progress: Callable = iter) -> Source:
        count = settings.train_size if split == "train" else settings.test_size
        return minibirds.build(split, count, settings.image_size, settings.seed, progress)

    def samples(self, settings: Settings, split: str, progress: bool) -> tuple[Samples, dict[str, Any]]:
        count = settings.train_size if split == "train" else settings.test_size
        made = {"data": self.name, "count": count, "seed": settings.seed}
        return DrawnBirds(split, count, settings.image_size, settings.seed), made

    def _shown(self, settings: Settings) -> dict[str, Any]:
        return {"crop": "none", "count": settings.test_size, "seed": settings.seed}

    def cache_name(self, settings: Settings, split: str = "train") -> None:
        return None


class InShards(Dataset):
    """Pictures with captions in .tar files."""

    def open(self, settings: Settings, split: str = "train", progress: Callable = iter) -> Source:
        if settings.folder is None:
            raise DataError("data.name = 'shards' needs data.folder: the folder of the shards, or a pattern of them")
        return open_shards(settings.folder, split, settings.image_size, settings.index, progress is not iter)

    def samples(self, settings: Settings, split: str, progress: bool) -> tuple[Samples, dict[str, Any]]:
        raise DataError("data.name = 'shards' is in shards already: choose another data set or profile")


DRAWN = "MIT, as galiplib, which draws them"
MINIBIRDS = Drawn("minibirds", held_out=("seen", "test"), captions=SAMPLE_CAPTIONS, judged=True, terms=DRAWN)
DATASETS = {one.name: one for one in (MINIBIRDS, *map(Dataset, NAMES), InShards("shards"))}


def dataset(name: str) -> Dataset:
    """The data set of a name; raises DataError for an unknown one, naming all."""
    if name not in DATASETS:
        raise DataError(f"unknown data set {name!r}: one of {', '.join(DATASETS)}")
    return DATASETS[name]


# ---------------------------------------------------------------- photographs in a folder


def open_dataset(
    name: str, folder: str | Path | None = None, split: str = "train", image_size: int = 256, progress: bool = True,
    context_length: int | None = 77, warn: bool = True,
) -> Photos:  # fmt: skip
    """Open a split: every file is looked at once, pictures are decoded later.

    The split is the data set's own (`<split>/filenames.pickle`, or the `split` of your own table). Without one it is
    made, always the same, from the names alone: a tenth of the pictures is for testing, of birds a quarter of the
    classes, so that they are unseen as in the literature.

    Args:
        name: one of `NAMES`; "folder" is your own data (`captions.csv`, `captions.jsonl`, or a .txt a picture).
        folder: by default data/<name>.
        image_size: side of the pictures that `Photos.pixels` makes, pixels.
        context_length: tokens that CLIP reads; longer captions are counted. None: whose, is known later.
        warn: once, if anything is left out or cut by CLIP; it warns in any case if the split had to be made.

    Raises DataError for an unknown name or split, a folder that is missing or laid out otherwise, a damaged list or
    table; EmptySplit for a split with no usable picture.
    """
    if name not in NAMES:
        raise DataError(f"unknown data set {name!r}: one of {', '.join(NAMES)}")
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r} of {name}: one of {', '.join(SPLITS)}")
    if image_size < 1:
        raise DataError(f"image_size must be at least 1, not {image_size}")
    folder = Path("data") / name if folder is None else Path(folder)
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}. {expected(name)}")
    boxes = read_boxes(folder / "CUB_200_2011") if name in LAYOUTS and LAYOUTS[name].boxes else None
    bad, cut = list[BadRow](), list[str]()
    listed = list_rows(name, folder, split, bad)
    rows = tqdm(listed, desc=f"{name} {split}", disable=not progress)

    def usable() -> Iterator[Item]:
        for row in rows:
            try:
                item = _open_row(row, boxes, bad)
            except BadRow as error:
                bad.append(error)
                continue
            if context_length:
                cut.extend(item.key for caption in item.captions if _is_cut(caption, context_length))
            yield item

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such pictures are left out and counted
        photos = Photos(name, split, folder, image_size, passing_index(usable()))
    for error in bad:
        photos.leave_out(error)
    photos.cut = cut
    if not len(photos):
        other = SPLITS[1 - SPLITS.index(split)]
        if not listed and (others := len(list_rows(name, folder, other, []))):
            raise EmptySplit(f"the split {split} of {folder} is empty: its pictures, {others:,}, are for {other}")
        raise EmptySplit(f"nothing usable in {folder}: {photos.summary()}. {expected(name)}")
    if warn and (photos.left_out or photos.cut):
        warnings.warn(photos.summary(), stacklevel=2)
    return photos


def _open_row(row: Row, boxes: dict[str, Box] | None, left_out: list[BadRow]) -> Item:
    path, texts, box = row.image, row.captions, None
    if isinstance(path, BadRow):
        raise path
    captions = kept(texts, row.key, left_out) if isinstance(texts, tuple) else read_captions(texts, left_out)
    size, mode, moving = read_header(path)
    if moving:
        left_out.append(BadRow("animation, its first frame read", path))
    if boxes is not None:
        if (box := boxes.get(without_suffix(row.key))) is None:
            raise BadRow("no bounding box", path)
        square_around(box, size, path)  # only to see that it can be cut out
    return Item(row.key, path, captions, box, size=size, mode=mode)


def _is_cut(caption: str, context_length: int) -> bool:
    return cut_captions([caption], context_length).longer > 0


def describe(
    name: str, folder: str | Path | None = None, splits: Sequence[str] = SPLITS, image_size: int = 128,
    sheet: str | Path | None = None, check: bool = False, progress: bool = True, context_length: int = 77,
    contexts: Mapping[int, str] | None = None, side: int = 64,
) -> dict[str, Any]:  # fmt: skip
    """Print what a data set holds, and draw a sheet of its pictures with a caption each.

    Args:
        name, folder, progress, context_length: as `open_dataset` takes them.
        splits: which to look at; the sheet shows the first.
        image_size: side of the pictures on the sheet, pixels; they are cropped as for training.
        sheet: the .png to write the sheet to; by default none is written.
        check: also decode every picture, which takes a while.
        contexts: tokens that CLIPs read -> which these are; by default `context_length`.
        side: of pictures to draw, pixels; how many are smaller is said.

    Returns {"name", "folder", "splits": {split: numbers}, "sheet": the picture}; all but the sheet fits JSON.
    """
    opened, empty = list[Photos](), list[EmptySplit]()
    for split in splits:
        try:
            opened.append(open_dataset(name, folder, split, image_size, progress, context_length, warn=False))
        except EmptySplit as error:
            empty.append(error)
    if not opened:
        raise empty[0]
    if check:
        for photos in opened:
            photos.check(progress)
    picture = data_summary.draw_sheet(opened[0])  # before the counting: it may find pictures that can't be decoded
    print(f"{name} in {opened[0].folder}")
    numbers = {photos.split: data_summary.numbers(photos) for photos in opened}
    for photos in opened:
        whose = contexts or {context_length: "what CLIP reads"}
        data_summary.print_numbers(photos, numbers[photos.split], whose, side)
    for none in empty:
        print(f"\n{none}")
    if sheet is not None:
        print(f"sheet: {save_png(picture, sheet)}")
    return {"name": name, "folder": str(opened[0].folder), "splits": numbers, "sheet": picture}
