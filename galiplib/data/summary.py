"""What a data set holds, in numbers, in print and on a sheet of pictures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..images import contact_sheet
from .embeddings import cut_captions
from .layouts import read_fields, without_suffix
from .pictures import Photos, some

SHEET_PICTURES = 24
STOP_WORDS = frozenset(
    "a an and are as at by for from has have he her his in into is it its of on or s she some that the their them "
    "there these they this to two up very was which while who with".split()
)


def numbers(photos: Photos) -> dict[str, Any]:
    """Counts and spreads of a split, what is left out not counted; fits JSON."""
    good = set(photos.good_rows)
    items = [item for row, item in enumerate(photos.items) if row in good]
    texts = [caption for item in items for caption in item.captions]
    words = Counter(word for text in texts for word in re.findall(r"[^\W\d_]+", text.lower()))
    sizes = np.array([item.size for item in items])  # (N, 2)
    areas = sizes.prod(1)
    listed = _listed_classes(photos)
    classes = {listed.get(without_suffix(item.key)) or item.key.rpartition("/")[0] for item in items} - {""}
    return {
        "pictures": len(items),
        "classes": len(classes),
        "captions": len(texts),
        "captions_per_picture": _spread([len(item.captions) for item in items]),
        "words_per_caption": _spread([len(text.split()) for text in texts]),
        "size": {
            "median": np.median(sizes, axis=0).astype(int).tolist(),
            "smallest": sizes[areas.argmin()].tolist(),
            "largest": sizes[areas.argmax()].tolist(),
        },
        "modes": dict(Counter(item.mode for item in items).most_common()),
        "left_out": {reason: len(names) for reason, names in photos.left_out.items()},
        "cut_captions": len(photos.cut),
        "frequent_words": [word for word, _ in words.most_common(100) if word not in STOP_WORDS][:10],
    }


def _listed_classes(photos: Photos) -> dict[str, str]:
    """Key -> class from the `image_class.txt` that lies beside flowers, whose keys don't tell; empty without one."""
    path = photos.folder / "image_class.txt"
    lines = read_fields(path, "key class") if photos.name == "flowers" and path.is_file() else []
    return {without_suffix(key): kind for _, (key, kind) in lines}


def _spread(values: Sequence[int]) -> dict[str, float]:
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)}


def print_numbers(photos: Photos, values: Mapping[str, Any], contexts: Mapping[int, str], side: int) -> None:
    """Print what `numbers` found, what is cut by contexts of so many tokens, with whose they are, what is too small."""
    texts = [text for row in photos.good_rows for text in photos.captions[row]]
    spread = "{min} to {max}, median {median:g}"
    size = {key: "x".join(map(str, value)) for key, value in values["size"].items()}
    classes = f" in {values['classes']:,} classes" if values["classes"] else ""
    lines = {
        "captions a picture": spread.format(**values["captions_per_picture"]),
        "words a caption": spread.format(**values["words_per_caption"]),
        "frequent words": ", ".join(values["frequent_words"]),
        **{f"longer than {n} tokens": f"{cut_captions(texts, n)} ({whose})" for n, whose in contexts.items()},
        "size of pictures": f"median {size['median']}, smallest {size['smallest']}, largest {size['largest']}",
        f"smaller than {side} px": f"{photos.smaller(side):,}, to be enlarged",
        "modes": ", ".join(f"{mode} {count:,}" for mode, count in values["modes"].items()),
        "left out": ", ".join(f"{len(n):,} {reason}{_named(n)}" for reason, n in photos.left_out.items()) or "none",
    }
    print(f"\n{photos.split}: {values['pictures']:,} pictures{classes}, {values['captions']:,} captions")
    for label, text in lines.items():
        print(f"  {label:24}{text}")


def _named(names: Sequence[str]) -> str:
    return f" ({some(names)})" if names else ""


def draw_sheet(photos: Photos) -> Image.Image:
    """Pictures drawn at random, always the same, each under its first caption."""
    drawn = np.random.default_rng(0).permutation(photos.good_rows)[:SHEET_PICTURES]
    pictures, rows = photos.pixels(np.sort(drawn))
    rows, places = np.unique(rows, return_index=True)  # what replaces an undecodable picture may be there already
    captions = [photos.items[row].captions[0] for row in rows]
    return contact_sheet(pictures[places], columns=6, captions=captions, gap=10)
