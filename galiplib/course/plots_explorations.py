"""Figures of notebooks 09 and 11: the two structures, and tables of pictures. In the style of `plotting`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ..images import to_uint8
from .plotting import INK, ORANGE, styled

STRUCTURES = {  # name -> boxes (key: x, y, text; in inches), arrows
    "residual": (
        {
            "given": (1.0, 1.6, "given picture"),
            "block": (3.6, 1.6, "residual block\n(two convolutions)"),
            "noise": (1.0, 0.4, "noise, caption"),
            "generator": (3.6, 0.4, "generator"),
            "sum": (5.7, 1.0, "+"),
            "made": (7.4, 1.0, "made picture"),
        },
        "given block, noise generator, block sum, generator sum, sum made",
    ),
    "features": (
        {
            "given": (0.85, 1.6, "given picture"),
            "extract": (2.75, 1.6, "features\n(frozen)"),
            "project": (4.5, 1.6, "linear,\nnorm"),
            "noise": (4.5, 0.4, "noise x scale"),
            "sum": (6.0, 1.6, "+"),
            "norm": (7.1, 1.6, "norm"),
            "generator": (8.6, 1.6, "generator"),
            "caption": (8.6, 0.4, "caption"),
            "made": (10.4, 1.6, "made picture"),
        },
        "given extract, extract project, project sum, noise sum, sum norm, norm generator, caption generator, "
        "generator made",
    ),
}


@styled
def structure(name: str) -> Figure:
    """The structure that a notebook is about, as boxes and arrows; what it adds to GALIP is lit.

    Args:
        name: one of `STRUCTURES`.
    """
    boxes, arrows = STRUCTURES[name]
    lit = {"given", "block", "extract", "project", "norm", "sum"}
    width = max(x for x, _, _ in boxes.values()) + 1.0
    figure = plt.figure(figsize=(width, 2.1))
    ax = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, 2.1))
    ax.axis("off")
    drawn = {}
    for key, (x, y, text) in boxes.items():
        fill, edge = ("#fff0d9", ORANGE) if key in lit else ("white", "#c3c8cf")
        frame = {"boxstyle": "circle,pad=0.25" if text == "+" else "round,pad=0.55", "fc": fill, "ec": edge, "lw": 1.5}
        drawn[key] = ax.text(x, y, text, ha="center", va="center", fontsize=11, bbox=frame, linespacing=1.2, zorder=2)
    for start, end in (pair.split() for pair in arrows.split(", ")):
        style = {"arrowstyle": "-|>", "color": INK, "lw": 1.5, "mutation_scale": 14}
        style |= {"patchA": drawn[start].get_bbox_patch(), "patchB": drawn[end].get_bbox_patch()}
        # drawn after the boxes, which get their size when they are drawn
        ax.annotate("", boxes[end][:2], boxes[start][:2], arrowprops=style, zorder=3)
    return figure


@styled
def picture_table(
    pictures: Tensor | np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str = "", side: float = 1.25
) -> Figure:
    """Pictures in a table with names of rows and columns.

    Args:
        pictures: (R, C, 3, H, W) in about [-1, 1].
        rows, columns: R and C names.
        side: a picture's width in inches.

    Raises:
        ValueError: for another number of names.
    """
    height, width = pictures.shape[:2]
    if (len(rows), len(columns)) != (height, width):
        raise ValueError(f"{len(rows)} and {len(columns)} names for {height} rows and {width} columns")
    pixels = to_uint8(pictures.flatten(0, 1))
    left, gap = 1.75, 0.06
    labels = [textwrap.fill(text, int(side / 0.085)) for text in columns]
    top = 0.08 + 0.17 * max(label.count("\n") + 1 for label in labels) + (0.32 if title else 0)
    size = (left + width * (side + gap), top + height * (side + gap))
    figure = plt.figure(figsize=size)
    if title:
        figure.text(0.06 / size[0], 1 - 0.06 / size[1], title, va="top", weight="bold", fontsize=11)
    for index, picture in enumerate(pixels):
        row, column = divmod(index, width)
        x, y = left + column * (side + gap), size[1] - top - (row + 1) * side - row * gap
        ax = figure.add_axes((x / size[0], y / size[1], side / size[0], side / size[1]))
        ax.imshow(picture, interpolation="nearest")
        ax.axis("off")
        if row == 0:
            ax.set_title(labels[column], fontsize=9, weight="normal", pad=3, loc="center", linespacing=1.15)
        if column == 0:
            text = "\n".join(textwrap.fill(line, 22) for line in rows[row].split("\n"))
            figure.text((left - 0.1) / size[0], (y + side / 2) / size[1], text, ha="right", va="center", fontsize=9)
    return figure
