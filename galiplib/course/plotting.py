"""Figures of the course, all in one quiet style. Every function takes arrays or records and returns a Figure.

Figures are closed for pyplot, so that a notebook shows each once: as the value of its cell or by `display`.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Protocol

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import Tensor

from ..images import to_uint8

INK, GREY = "#2b2f36", "#8a9099"
BLUE, ORANGE, GREEN, PURPLE, RED = "#2f6fb0", "#e08a2c", "#3f9a5f", "#8458a6", "#c8463c"
STYLE = {
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "font.size": 10.5,
    "text.color": INK,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#b9bec6",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eceef1",
    "grid.linewidth": 0.9,
    "xtick.color": "#666c75",
    "ytick.color": "#666c75",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.8,
}
ATTRIBUTES = ("body", "wing", "belly", "background")  # of which the evaluation measures accuracies


def styled(draw):
    """Run a drawing function in the style above, and close its figure for pyplot."""

    @functools.wraps(draw)
    def wrapped(*args, **kwargs) -> Figure:
        with plt.rc_context(STYLE):
            figure = draw(*args, **kwargs)
            plt.close(figure)
            return figure

    return wrapped


def _bare(ax: Axes) -> Axes:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return ax


def _array(values) -> np.ndarray:
    return values.detach().float().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


# ---------------------------------------------------------------- pictures


@styled
def image_grid(
    images: Tensor | np.ndarray,
    titles: Sequence[str] | None = None,
    columns: int = 8,
    side: float | None = None,
) -> Figure:
    """Pictures in rows of `columns`.

    Args:
        images: (N, 3, H, W) in [-1, 1] or (N, H, W, 3) uint8.
        titles: a text above each picture, wrapped to its width.
        side: a picture's width in inches; by default the grid is 10.5 wide, a picture 1.9 at most.

    Raises:
        ValueError: for no pictures, or another number of titles.
    """
    pixels = to_uint8(images)
    number = len(pixels)
    if number == 0:
        raise ValueError("no pictures to show")
    if titles is not None and len(titles) != number:
        raise ValueError(f"{len(titles)} titles for {number} pictures")
    columns = max(1, min(columns, number))
    rows = -(-number // columns)
    gap = 0.07
    side = side or min(10.5 / columns - gap, 1.9)
    size = float(np.clip(4.6 * side, 6.5, 9))
    letters = max(6, int(side * 72 / size / 0.57))  # of this size on a line
    labels = [textwrap.fill(str(title), letters) for title in titles or []]
    lines = max((label.count("\n") + 1 for label in labels), default=0)
    tile = side * pixels.shape[1] / pixels.shape[2]
    head = (lines * size * 1.25 + 5) / 72 if lines else 0.0  # inches of text above a picture
    width, height = columns * (side + gap) + gap, rows * (tile + head + gap) + gap
    figure = plt.figure(figsize=(width, height))
    for index, picture in enumerate(pixels):
        row, column = divmod(index, columns)
        left, bottom = gap + column * (side + gap), height - (row + 1) * (tile + head + gap)
        ax = _bare(figure.add_axes((left / width, bottom / height, side / width, tile / height)))
        ax.imshow(picture, interpolation="nearest")
        if labels:
            ax.set_title(labels[index], size=size, weight="normal", pad=3, linespacing=1.15, parse_math=False)
    return figure


@styled
def feature_maps(
    pictures: Tensor | np.ndarray, features: Tensor | np.ndarray, layers: Sequence[int] | None = None
) -> Figure:
    """What the tapped CLIP layers respond to: a row per picture, beside it a heat map over it per layer.

    Args:
        pictures: (B, 3, H, W) in [-1, 1] or (B, H, W, 3) uint8.
        features: (B, taps, W, g, g) as `ClipBridge.encode_image` returns them; shown is how far each patch
            lies from the mean over the picture's patches. Or ready maps (B, taps, g, g), shown as they are.
        layers: numbers of the tapped blocks, for the titles.

    Raises:
        ValueError: if the shapes don't fit together.
    """
    pixels, values = to_uint8(pictures), _array(features)
    if values.ndim not in (4, 5) or len(values) != len(pixels):
        raise ValueError(f"features {values.shape} for {len(pixels)} pictures: expected (B, taps, W, g, g)")
    if values.ndim == 5:
        values = np.linalg.norm(values - values.mean(axis=(3, 4), keepdims=True), axis=2)  # (B, taps, g, g)
    rows, taps = values.shape[:2]
    figure, axes = plt.subplots(
        rows, taps + 1, figsize=(1.95 * (taps + 1), 1.95 * rows + 0.35), squeeze=False, layout="constrained"
    )
    height, width = pixels.shape[1:3]
    for row in range(rows):
        _bare(axes[row, 0]).imshow(pixels[row])
        for tap in range(taps):
            ax = _bare(axes[row, tap + 1])
            ax.imshow(pixels[row].mean(axis=2), cmap="gray", vmin=0, vmax=255, alpha=0.55)
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)  # patches where they lie in the picture
            ax.imshow(values[row, tap], cmap="inferno", alpha=0.62, extent=extent, interpolation="bilinear")
    axes[0, 0].set_title("picture")
    for tap in range(taps):
        axes[0, tap + 1].set_title(f"block {layers[tap]}" if layers is not None else f"tap {tap + 1}")
    return figure


@styled
def similarity_matrix(
    matrix: Tensor | np.ndarray, pictures: Tensor | np.ndarray | Sequence[str], captions: Sequence[str]
) -> Figure:
    """Similarities of pictures and captions: a column per picture, a row per caption.

    Args:
        matrix: (P, C), entry (p, c) for picture p and caption c.
        pictures: the P pictures (as `image_grid` takes them), or P names.
        captions: C captions.

    Raises:
        ValueError: if the shapes don't fit together.
    """
    values = _array(matrix)
    if values.shape != (len(pictures), len(captions)):
        raise ValueError(f"a matrix {values.shape} for {len(pictures)} pictures and {len(captions)} captions")
    columns, rows = values.shape
    side = min(0.85, 7.4 / columns)
    labels = [textwrap.shorten(str(text), 100, placeholder="…") for text in captions]
    labels = [textwrap.fill(text, 34) for text in labels]
    names = isinstance(pictures[0], str)
    tall = max(side if columns == rows else 0.5, 0.19 * max(label.count("\n") + 1 for label in labels))
    left, top, right, bottom = 3.0, side + 0.1 if not names else 0.9, 0.9, 0.1
    width, height = left + side * columns + right, top + tall * rows + bottom
    figure = plt.figure(figsize=(width, height))
    ax = figure.add_axes((left / width, bottom / height, side * columns / width, tall * rows / height))
    shown = ax.imshow(values.T, cmap="Blues", aspect="auto")
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.set_yticks(range(rows), labels, color=INK, parse_math=False)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    if names:
        ax.set_xticks(range(columns), pictures, rotation=40, ha="left", color=INK, parse_math=False)
    else:
        ax.set_xticks([])
        pixels = to_uint8(pictures)
        for column in range(columns):
            x, y = (left + column * side) / width, (height - top + 0.06) / height
            frame = (x + 0.03 / width, y, (side - 0.06) / width, (side - 0.06) / height)
            _bare(figure.add_axes(frame)).imshow(pixels[column])
    if side >= 0.42:
        middle = (np.nanmin(values) + np.nanmax(values)) / 2
        for (column, row), value in np.ndenumerate(values):
            colour = "white" if value > middle else INK
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=9, color=colour)
    bar = figure.add_axes(((width - 0.68) / width, bottom / height, 0.13 / width, tall * rows / height))
    figure.colorbar(shown, cax=bar).outline.set_visible(False)
    bar.grid(False)
    return figure


# ---------------------------------------------------------------- numbers

CURVES = {  # key of a training record -> its name and colour
    "loss_d": ("discriminator, all", INK),
    "loss_real": ("real", GREEN),
    "loss_fake": ("generated", RED),
    "loss_mismatch": ("mismatched", ORANGE),
    "penalty": ("gradient penalty", PURPLE),
    "loss_g": ("generator", BLUE),
    "logit_real": ("real", GREEN),
    "logit_fake": ("generated", RED),
    "logit_mismatch": ("mismatched", ORANGE),
    "similarity": ("picture and its caption", BLUE),
    "grad_norm_d": ("discriminator", INK),
    "grad_norm_g": ("generator", BLUE),
}
PANELS = {
    "Losses": ("loss_d", "loss_real", "loss_mismatch", "loss_fake", "penalty", "loss_g"),
    "Logits": ("logit_real", "logit_mismatch", "logit_fake"),
    "CLIP similarity": ("similarity",),
}
GRADIENT_PANEL = {"Gradient norms": ("grad_norm_d", "grad_norm_g")}  # drawn on a logarithmic scale


@styled
def training_curves(
    records: Sequence[Mapping], panels: Mapping[str, Sequence[str]] = PANELS, smooth: int | None = None
) -> Figure:
    """Curves of a training run, a panel beside the other: faint as measured, strong as a running mean.

    Args:
        records: a dict per step with `step` and any of the keys of `CURVES`; missing ones are skipped.
        panels: title -> keys; `PANELS | GRADIENT_PANEL` adds the gradients.
        smooth: steps in the running mean; by default a thirtieth of the run.

    Raises:
        ValueError: for no records, or none with a key of the panels.
    """
    if not any(key in record for record in records for keys in panels.values() for key in keys):
        raise ValueError("nothing to plot: no record has any of the keys of the panels")
    window = smooth or max(1, len(records) // 30)
    size = (3.7 * len(panels), 3.5)
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    for ax, (title, keys) in zip(axes[0], panels.items(), strict=True):
        for key in keys:
            points = [(r.get("step", i), r[key]) for i, r in enumerate(records) if r.get(key) is not None]
            if not points:
                continue
            steps, values = np.array(points, dtype=float).T
            name, colour = CURVES.get(key, (key, None))
            if window > 1:
                (faint,) = ax.plot(steps, values, color=colour, alpha=0.18, linewidth=0.8)
                colour = faint.get_color()
            marker = "o" if len(points) == 1 else None
            ax.plot(steps, running_mean(values, window), color=colour, label=name, marker=marker)
        ax.set_title(title)
        ax.set_xlabel("step")
        if title in GRADIENT_PANEL:
            ax.set_yscale("log")
        elif title == "Logits":
            ax.axhline(0, color=GREY, linewidth=0.8, zorder=1)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, columnspacing=1.2)
    return figure


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean over `window` values, (N,) -> (N,); shorter at the ends, and NaN counts for nothing."""
    known = np.isfinite(values)
    kernel = np.ones(2 * (window // 2) + 1)
    half = len(kernel) // 2

    def total(row: np.ndarray) -> np.ndarray:
        return np.convolve(row, kernel)[half : half + len(row)]

    counts = total(known.astype(float))
    return np.where(counts > 0.5, total(np.where(known, values, 0.0)) / np.maximum(counts, 1), np.nan)


@styled
def accuracy_bars(results: Mapping) -> Figure:
    """How often the judge reads from a picture what its caption names, per attribute, beside chance.

    Args:
        results: of the evaluation; `caption_accuracy`, `caption_accuracy_held_out`, `caption_accuracy_real`
            and `chance` map body, wing, belly, background to a share in [0, 1]. Absent ones are left out.

    Raises:
        ValueError: if none of the accuracies is there.
    """
    series = {
        "caption_accuracy_real": ("real pictures", "#b7bdc6"),
        "caption_accuracy": ("generated", BLUE),
        "caption_accuracy_held_out": ("generated, combinations never trained", ORANGE),
    }
    series = {key: value for key, value in series.items() if results.get(key)}
    if not series:
        raise ValueError("no caption accuracy among the results")
    names = [name for name in ATTRIBUTES if any(name in results[key] for key in series)]
    figure, ax = plt.subplots(figsize=(9, 3.7), layout="constrained")
    width = min(0.8 / len(series), 0.4)
    for index, (key, (label, colour)) in enumerate(series.items()):
        x = np.arange(len(names)) + (index - (len(series) - 1) / 2) * width
        heights = [float(np.nan if results[key].get(name) is None else results[key][name]) for name in names]
        errors = results.get("errors", {}).get(key, {})
        spread = [errors.get(name, 0) for name in names] if errors else None
        bars = ax.bar(x, heights, 0.92 * width, color=colour, label=label, yerr=spread, ecolor=INK)
        ax.bar_label(bars, ["" if np.isnan(h) else f"{h:.0%}" for h in heights], fontsize=9, padding=2)
    chance = results.get("chance") or {}
    marked = [(i, chance[name]) for i, name in enumerate(names) if name in chance]
    if marked:
        x, share = np.array(marked).T
        ax.hlines(share, x - 0.45, x + 0.45, color=INK, linestyle=(0, (3, 2)), linewidth=1.5, label="chance")
    ax.set_xticks(range(len(names)), names, color=INK, fontsize=11)
    ax.set_ylim(0, 1.1)
    ax.set_yticks(np.linspace(0, 1, 6), [f"{tick:.0%}" for tick in np.linspace(0, 1, 6)])
    ax.grid(axis="x", visible=False)
    ax.tick_params(axis="x", length=0)
    ax.set_title("What the caption names and the judge sees")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=4)
    return figure


class Compared(Protocol):
    """Of a comparison: values and standard errors, models x measures, and what they are called."""

    table: pd.DataFrame
    errors: pd.DataFrame
    measured: list[str]  # the models that were measured; the others are quoted
    real: str  # the row of the real pictures

    def titles(self) -> dict[str, str]: ...


@styled
def draw_comparison(found: Compared) -> Figure:
    """A panel a measure, a row a model: real pictures as a dashed line, quotes hollow."""
    table, errors, titles, real = found.table, found.errors, found.titles(), found.real
    keys = list(table)
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    models = [label for label in table.index if label != real]
    height = rows * (0.75 + 0.3 * len(models)) + 0.5
    size = (3.6 * columns + 1.2, height)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for index, (ax, key) in enumerate(zip(axes.flat, keys, strict=False)):
        for place, label in enumerate(models):
            value, error = table.loc[label, key], errors.loc[label, key]
            if pd.isna(value):
                continue
            own = label in found.measured
            style = {"color": BLUE} if own else {"color": GREY, "markerfacecolor": "white"}
            ax.errorbar(value, place, xerr=None if pd.isna(error) else error, fmt="o", capsize=3, **style)
        if real in table.index and not pd.isna(table.loc[real, key]):
            ax.axvline(table.loc[real, key], color=ORANGE, linestyle="--", linewidth=1.3)
        left = index % columns == 0
        names = ["\n".join(textwrap.wrap(label, 26)) for label in models] if left else [""] * len(models)
        ax.set_yticks(range(len(models)), names)
        ax.set_ylim(len(models) - 0.5, -0.5)
        ax.set_title(titles[key], fontsize=10)
        ax.margins(x=0.15)
    for ax in axes.flat[len(keys) :]:
        ax.axis("off")
    if real in table.index:
        figure.supxlabel("dashed: real pictures", fontsize=9.5, color=GREY)
    return figure


# ---------------------------------------------------------------- the whole system

PARTS = ("data", "clip", "generator", "discriminator", "training", "evaluation", "sampling")
BLOCKS = {  # name: (column, row) on the drawing, text, the parts of the course that light it
    "noise": (0, 2, "noise", "generator sampling"),
    "fusion": (1, 2, "fusion\nblocks", "generator sampling"),
    "mapper": (2, 2, "CLIP ViT\nwith prompts", "clip generator sampling"),
    "synthesis": (3, 2, "generator\nblocks", "generator sampling"),
    "picture": (4, 2, "generated\npicture", "generator discriminator evaluation sampling"),
    "scores": (5, 2, "judge,\nscores", "evaluation"),
    "caption": (0, 1, "caption", "data clip sampling"),
    "text": (1, 1, "CLIP text\nencoder", "clip sampling"),
    "sentence": (2, 1, "sentence\nembedding", "clip generator discriminator sampling"),
    "real": (5, 1, "real\npicture", "data discriminator evaluation"),
    "taps": (4, 0, "CLIP ViT,\ntapped layers", "clip discriminator"),
    "features": (3, 0, "feature\ndiscriminator", "discriminator"),
    "head": (2, 0, "conditional\nhead", "discriminator"),
    "logit": (1, 0, "logit: real\nand matching?", "discriminator training"),
    "losses": (0, 0, "losses", "training"),
}
FROZEN = ("mapper", "text", "taps")
ARROWS = (
    "noise fusion, fusion mapper, mapper synthesis, synthesis picture, caption text, text sentence, "
    "sentence fusion, sentence mapper, sentence synthesis, sentence head, picture taps, real taps, "
    "taps features, features head, head logit, logit losses, picture scores, real scores"
)
FRAMES = {  # left, bottom, right, top
    "generator": (0.5, 1.58, 3.5, 2.36),
    "discriminator": (1.5, -0.42, 4.5, 0.36),
}
UPDATES = (  # gradients run from the losses back to both
    [(-0.41, 0), (-0.56, 0), (-0.56, 2.54), (2, 2.54), (2, 2.36)],
    [(0, -0.21), (0, -0.58), (3, -0.58), (3, -0.42)],
)
_WIDE, _HIGH = 0.41, 0.21  # half a block, in columns and rows


def _corners(start: str, end: str) -> list[tuple[float, float]]:
    """The corners of the line from one block's edge to the other's."""
    (xa, ya), (xb, yb) = BLOCKS[start][:2], BLOCKS[end][:2]
    up, right = np.sign(yb - ya), np.sign(xb - xa)
    if ya == yb:
        return [(xa + right * _WIDE, ya), (xb - right * _WIDE, yb)]
    leaving, arriving = (xa, ya + up * _HIGH), (xb, yb - up * _HIGH)
    if xa == xb:
        return [leaving, arriving]
    if start == "real":
        return [leaving, (xa, yb), (xb - right * _WIDE, yb)]
    return [leaving, (xa, 1.4), (xb, 1.4), arriving]  # the line that carries the sentence to the generator


@styled
def pipeline(active: str) -> Figure:
    """GALIP as a whole, with the part that a notebook is about lit and the rest grey.

    Args:
        active: one of `PARTS`.

    Raises:
        ValueError: for another part.
    """
    if active not in PARTS:
        raise ValueError(f"unknown part {active!r}: one of {', '.join(PARTS)}")
    figure = plt.figure(figsize=(11, 4.7))
    ax = _bare(figure.add_axes((0, 0, 1, 1)))
    ax.set_xlim(-0.68, 5.5)
    ax.set_ylim(-0.66, 2.66)
    lit = {name for name, block in BLOCKS.items() if active in block[3].split()}

    def arrow(corners, colour: str, zorder: int, **style) -> None:
        ax.plot(*zip(*corners, strict=True), color=colour, zorder=zorder, **style)
        before = np.array(corners[-1]) - 0.01 * np.sign(np.subtract(corners[-1], corners[-2]))
        head = {"arrowstyle": "-|>", "color": colour, "linewidth": 0, "mutation_scale": 14, "shrinkB": 0}
        ax.annotate("", corners[-1], before, arrowprops=head, zorder=zorder)

    for title, (left, bottom, right, top) in FRAMES.items():
        on = active in (title, "training")
        fill, edge, ink = ("#fffaf2", ORANGE, "#b0650f") if on else ("#f6f7f9", "#dde0e5", GREY)
        ax.add_patch(_box(left, bottom, right, top, fill, edge, linewidth=1.0, zorder=0))
        ax.text(3, top + 0.03, title, fontsize=10.5, color=ink, ha="center", va="bottom")
    for corners in UPDATES:
        colour = ORANGE if active == "training" else "#d3d7dd"
        arrow(corners, colour, zorder=1, linestyle=(0, (4, 3)), linewidth=1.4)
    for start, end in (pair.split() for pair in ARROWS.split(", ")):
        if {start, end} <= lit:
            arrow(_corners(start, end), INK, zorder=3, linewidth=1.7)
        else:
            arrow(_corners(start, end), "#c3c8cf", zorder=2, linewidth=1.3)
    for name, (x, y, text, _) in BLOCKS.items():
        fill, edge, ink = ("#fff0d9", ORANGE, INK) if name in lit else ("white", "#c3c8cf", "#7b818b")
        ax.add_patch(_box(x - _WIDE, y - _HIGH, x + _WIDE, y + _HIGH, fill, edge, linewidth=1.5, zorder=4))
        ax.text(x, y, text, ha="center", va="center", fontsize=11, color=ink, zorder=5, linespacing=1.2)
        if name in FROZEN:
            note = {"fontsize": 9, "style": "italic", "color": ink, "ha": "right", "va": "top"}
            ax.text(x + _WIDE - 0.02, y - _HIGH - 0.02, "frozen", **note)
    return figure


def _box(left: float, bottom: float, right: float, top: float, fill: str, edge: str, **style) -> FancyBboxPatch:
    shape = "round,pad=0,rounding_size=0.05"
    place = (left, bottom), right - left, top - bottom
    return FancyBboxPatch(*place, boxstyle=shape, facecolor=fill, edgecolor=edge, **style)
