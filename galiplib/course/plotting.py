"""Figures of the course, all in one quiet style. Every function takes arrays or records and returns a Figure.

Figures are closed for pyplot, so that a notebook shows each once: as the value of its cell or by `display`.
The drawings of the systems are SVG files beside this one; `pipeline` shows them.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, ParamSpec, Protocol

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..images import to_uint8

if TYPE_CHECKING:
    from IPython.display import HTML

Pictures = Tensor | np.ndarray  # (N, 3, H, W) in [-1, 1] or (N, H, W, 3) uint8

INK, GREY = "#2b2f36", "#8a9099"
BLUE, ORANGE, GREEN, PURPLE, RED = "#2f6fb0", "#e08a2c", "#3f9a5f", "#8458a6", "#c8463c"
STYLE = matplotlib.rc_params_from_file(Path(__file__).with_name("course.mplstyle"), use_default_template=False)
ATTRIBUTES = ("body", "wing", "belly", "background")  # of which the evaluation measures accuracies


P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Run a drawing function in the style above, and close its figure for pyplot."""

    @functools.wraps(draw)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with plt.rc_context(STYLE):
            figure = draw(*args, **kwargs)
            plt.close(figure)
            return figure

    return wrapped


def _bare(ax: Axes) -> Axes:
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return ax


def _array(values: Tensor | np.ndarray) -> np.ndarray:
    return values.detach().float().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


# ---------------------------------------------------------------- the systems

PARTS = dict.fromkeys("data clip generator discriminator training evaluation sampling".split(), "galip.svg")
PARTS |= dict.fromkeys(("residual", "features"), "picture_input.svg")
PARTS |= dict.fromkeys("family attngan dfgan ratgan lafite galip ratlip".split(), "family.svg")


def pipeline(part: str) -> HTML:
    """A system as a whole, or six of them, with one of the `PARTS` lit; ink is that of the page around it.

    Raises ValueError for another part.
    """
    from IPython.display import HTML

    if part not in PARTS:
        raise ValueError(f"unknown part {part!r}: one of {', '.join(PARTS)}")
    drawing = Path(__file__).with_name(PARTS[part]).read_text(encoding="utf-8")
    return HTML(drawing.replace('-map"', f'-map show-{part}"', 1))


# ---------------------------------------------------------------- pictures

GAP = 0.07  # inches between pictures


@styled
def image_grid(
    images: Pictures, titles: Sequence[str] | None = None, columns: int = 8, side: float | None = None
) -> Figure:
    """Pictures in rows of `columns`, each below its title, which is wrapped to its width.

    `side` is a picture's width in inches; by default the grid is 10.5 wide, a picture 1.9 at most.
    Raises ValueError for no pictures, or another number of titles.
    """
    pixels = to_uint8(images)
    if len(pixels) == 0:
        raise ValueError("no pictures to show")
    if titles is not None and len(titles) != len(pixels):
        raise ValueError(f"{len(titles)} titles for {len(pixels)} pictures")
    columns = max(1, min(columns, len(pixels)))
    side = side or min(10.5 / columns - GAP, 1.9)
    return _tiles(pixels, titles or [""] * len(pixels), columns, side, float(np.clip(4.6 * side, 6.5, 9)))


@styled
def picture_table(
    pictures: Tensor, rows: Sequence[str], columns: Sequence[str], title: str = "", side: float = 1.25
) -> Figure:
    """Pictures (R, C, 3, H, W) in about [-1, 1], `side` inches wide, with names of the R rows and C columns.

    Raises ValueError for another number of names.
    """
    if pictures.shape[:2] != (len(rows), len(columns)):
        height, width = pictures.shape[:2]
        raise ValueError(f"{len(rows)} and {len(columns)} names for {height} rows and {width} columns")
    titles = [*columns, *[""] * (len(columns) * (len(rows) - 1))]
    return _tiles(to_uint8(pictures.flatten(0, 1)), titles, len(columns), side, 9, rows, title)


def _tiles(
    pixels: np.ndarray, titles: Sequence[str], columns: int, side: float, size: float,
    names: Sequence[str] = (), heading: str = "",
) -> Figure:  # fmt: skip
    """Pictures (N, H, W, 3) with titles in letters of `size` above them, and names of the rows at the left."""
    letters = max(6, int(side * 72 / size / 0.57))  # on a line of a picture's width
    labels = [textwrap.fill(str(title), letters) for title in titles]
    rows = -(-len(pixels) // columns)
    lines = [max(text.count("\n") + bool(text) for text in labels[r * columns :][:columns]) for r in range(rows)]
    heads = [(count * size * 1.25 + 5) / 72 if count else 0.0 for count in lines]  # inches of text above a row
    tile, left = side * pixels.shape[1] / pixels.shape[2], 1.75 if names else GAP
    top = 0.34 if heading else GAP
    width, height = left + columns * (side + GAP), top + sum(heads) + rows * (tile + GAP)
    figure = plt.figure(figsize=(width, height))
    figure.text(GAP / width, 1 - GAP / height, heading, va="top", weight="bold", fontsize=11)
    for index, picture in enumerate(pixels):
        row, column = divmod(index, columns)
        x, y = left + column * (side + GAP), height - top - sum(heads[: row + 1]) - row * (tile + GAP) - tile
        ax = _bare(figure.add_axes((x / width, y / height, side / width, tile / height)))
        ax.imshow(picture, interpolation="nearest")
        ax.set_title(labels[index], size=size, weight="normal", pad=3, linespacing=1.15, parse_math=False)
        if names and column == 0:
            name = "\n".join(textwrap.fill(line, 22) for line in names[row].split("\n"))
            figure.text((left - 0.1) / width, (y + tile / 2) / height, name, ha="right", va="center", fontsize=9)
    return figure


@styled
def feature_maps(pictures: Pictures, features: Tensor | np.ndarray, layers: Sequence[int] | None = None) -> Figure:
    """What the tapped CLIP layers respond to: a row per picture, beside it a heat map over it per layer.

    Of features (B, taps, W, g, g), as `ClipBridge.encode_image` returns them, it shows how far each patch lies from
    the mean over the picture's patches; maps (B, taps, g, g) as they are. `layers` are the tapped blocks' numbers.
    Raises ValueError if the shapes don't fit together.
    """
    pixels, values = to_uint8(pictures), _array(features)
    if values.ndim not in (4, 5) or len(values) != len(pixels):
        raise ValueError(f"features {values.shape} for {len(pixels)} pictures: expected (B, taps, W, g, g)")
    if values.ndim == 5:
        values = np.linalg.norm(values - values.mean(axis=(3, 4), keepdims=True), axis=2)  # (B, taps, g, g)
    rows, taps = values.shape[:2]
    titles = ["picture", *([f"block {i}" for i in layers] if layers else [f"tap {i + 1}" for i in range(taps)])]
    size = (1.95 * (taps + 1), 1.95 * rows + 0.35)
    figure, axes = plt.subplots(rows, taps + 1, figsize=size, squeeze=False, layout="constrained")
    height, width = pixels.shape[1:3]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)  # patches where they lie in the picture
    for (row, column), ax in np.ndenumerate(axes):
        _bare(ax).set_title(titles[column] if row == 0 else "")
        if column == 0:
            ax.imshow(pixels[row])
            continue
        ax.imshow(pixels[row].mean(axis=2), cmap="gray", vmin=0, vmax=255, alpha=0.55)
        ax.imshow(values[row, column - 1], cmap="inferno", alpha=0.62, extent=extent, interpolation="bilinear")
    return figure


@styled
def similarity_matrix(
    matrix: Tensor | np.ndarray, pictures: Pictures | Sequence[str], captions: Sequence[str]
) -> Figure:
    """Similarities (P, C) of pictures, or what has these names, and captions: a column a picture, a row a caption.

    Raises ValueError if the shapes don't fit together.
    """
    values = _array(matrix)
    if values.shape != (len(pictures), len(captions)):
        raise ValueError(f"a matrix {values.shape} for {len(pictures)} pictures and {len(captions)} captions")
    columns, rows = values.shape
    side = min(0.85, 7.4 / columns)
    labels = [textwrap.fill(textwrap.shorten(str(text), 100, placeholder="…"), 34) for text in captions]
    pixels = to_uint8(pictures) if isinstance(pictures, Tensor | np.ndarray) else None
    tall = max(side if columns == rows else 0.5, 0.19 * max(label.count("\n") + 1 for label in labels))
    left, top, right, bottom = 3.0, 0.9 if pixels is None else side + 0.1, 0.9, 0.1  # inches
    width, height = left + side * columns + right, top + tall * rows + bottom
    figure = plt.figure(figsize=(width, height))

    def axes(x: float, y: float, w: float, h: float) -> Axes:
        return _bare(figure.add_axes((x / width, y / height, w / width, h / height)))

    ax = axes(left, bottom, side * columns, tall * rows)
    shown = ax.imshow(values.T, cmap="Blues", aspect="auto")
    ax.set_yticks(range(rows), labels, color=INK, parse_math=False)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    if pixels is None:
        ax.set_xticks(range(columns), pictures, rotation=40, ha="left", color=INK, parse_math=False)
    else:
        for column, picture in enumerate(pixels):
            axes(left + column * side + 0.03, height - top + 0.06, side - 0.06, side - 0.06).imshow(picture)
    if side >= 0.42:
        middle = (np.nanmin(values) + np.nanmax(values)) / 2
        for (column, row), value in np.ndenumerate(values):
            colour = "white" if value > middle else INK
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=9, color=colour)
    bar = axes(width - 0.68, bottom, 0.13, tall * rows)
    figure.colorbar(shown, cax=bar).outline.set_visible(False)
    return figure


# ---------------------------------------------------------------- numbers

PANELS = {  # title -> key of a training record -> the curve's name and colour
    "Losses": {
        "loss_d": ("discriminator, all", INK),
        "loss_real": ("real", GREEN),
        "loss_mismatch": ("mismatched", ORANGE),
        "loss_fake": ("generated", RED),
        "penalty": ("gradient penalty", PURPLE),
        "loss_g": ("generator", BLUE),
    },
    "Logits": {
        "logit_real": ("real", GREEN),
        "logit_mismatch": ("mismatched", ORANGE),
        "logit_fake": ("generated", RED),
    },
    "CLIP similarity": {"similarity": ("picture and its caption", BLUE)},
}
# drawn on a logarithmic scale
GRADIENT_PANEL = {"Gradient norms": {"grad_norm_d": ("discriminator", INK), "grad_norm_g": ("generator", BLUE)}}


@styled
def training_curves(records: Sequence[Mapping], panels: Mapping[str, Mapping] = PANELS) -> Figure:
    """Curves of a training run, a panel beside the other: faint as measured, strong as a running mean.

    A record is a dict with `step` and any of the keys of the panels; `PANELS | GRADIENT_PANEL` adds the gradients.
    Raises ValueError for no records, or none with a key of the panels.
    """
    table = pd.DataFrame(records).dropna(axis=1, how="all")
    if not any(key in table for curves in panels.values() for key in curves):
        raise ValueError("nothing to plot: no record has any of the keys of the panels")
    table = table.set_index("step") if "step" in table else table
    window = max(1, len(table) // 30)
    size = (3.7 * len(panels), 3.5)
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, layout="constrained")
    for ax, (title, curves) in zip(axes[0], panels.items(), strict=True):
        for key in [key for key in curves if key in table]:
            values = table[key].dropna().astype(float)
            name, colour = curves[key]
            if window > 1:
                ax.plot(values, color=colour, alpha=0.18, linewidth=0.8)
            marker = "o" if len(values) == 1 else None
            ax.plot(values.index, running_mean(values, window), color=colour, label=name, marker=marker)
        ax.set(title=title, xlabel="step", yscale="log" if title in GRADIENT_PANEL else "linear")
        if title == "Logits":
            ax.axhline(0, color=GREY, linewidth=0.8, zorder=1)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, columnspacing=1.2)
    return figure


def running_mean(values: np.ndarray | pd.Series, window: int) -> np.ndarray:
    """Centred mean over `window` values, (N,) -> (N,); shorter at the ends, and NaN counts for nothing."""
    return pd.Series(values).rolling(2 * (window // 2) + 1, center=True, min_periods=1).mean().to_numpy()


@styled
def accuracy_bars(results: Mapping) -> Figure:
    """How often the judge reads from a picture what its caption names, per attribute, beside chance.

    In the evaluation's results `caption_accuracy`, `caption_accuracy_held_out`, `caption_accuracy_real` and `chance`
    map attributes to shares in [0, 1]; absent ones are left out. Raises ValueError if no accuracy is there.
    """
    series = {
        "caption_accuracy_real": ("real pictures", "#b7bdc6"),
        "caption_accuracy": ("generated", BLUE),
        "caption_accuracy_held_out": ("generated, combinations never trained", ORANGE),
    }
    keys = [key for key in series if results.get(key)]
    if not keys:
        raise ValueError("no caption accuracy among the results")
    names = [name for name in ATTRIBUTES if any(name in results[key] for key in keys)]
    shares = pd.DataFrame({key: results[key] for key in keys}, index=names, dtype=float)
    errors = pd.DataFrame({key: results.get("errors", {}).get(key) or {} for key in keys}, index=names, dtype=float)
    figure, ax = plt.subplots(figsize=(9, 3.7), layout="constrained")
    width = min(0.8 / len(keys), 0.4)
    for place, key in enumerate(keys):
        label, colour = series[key]
        x = np.arange(len(names)) + (place - (len(keys) - 1) / 2) * width
        bars = ax.bar(x, shares[key], 0.92 * width, color=colour, label=label, yerr=errors[key].fillna(0), ecolor=INK)
        ax.bar_label(bars, ["" if np.isnan(share) else f"{share:.0%}" for share in shares[key]], fontsize=9, padding=2)
    if chance := results.get("chance"):
        levels = [chance.get(name, np.nan) for name in names]
        left, right = (np.arange(len(names)) + end for end in (-0.45, 0.45))
        ax.hlines(levels, left, right, color=INK, linestyle=(0, (3, 2)), linewidth=1.5, label="chance")
    ax.set(title="What the caption names and the judge sees", ylim=(0, 1.1))
    ax.set_xticks(range(len(names)), names, color=INK, fontsize=11)
    ax.yaxis.set_major_formatter("{x:.0%}")
    ax.grid(axis="x", visible=False)
    ax.tick_params(axis="x", length=0)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=4)
    return figure


class Compared(Protocol):
    """Of a comparison: values and standard errors, models x measures, and what they are called."""

    real: ClassVar[str]  # the row of the real pictures

    @property
    def table(self) -> pd.DataFrame: ...
    @property
    def errors(self) -> pd.DataFrame: ...
    @property
    def measured(self) -> list[str]: ...  # the models that were measured; the others are quoted
    def titles(self) -> dict[str, str]: ...


@styled
def draw_comparison(found: Compared) -> Figure:
    """A panel a measure, a row a model: real pictures as a dashed line, quotes hollow."""
    table, titles = found.table, found.titles()
    columns = min(3, len(titles))
    rows = -(-len(titles) // columns)
    models = [label for label in table.index if label != found.real]
    names = [textwrap.fill(label, 26) for label in models]
    size = (3.6 * columns + 1.2, rows * (0.75 + 0.3 * len(models)) + 0.5)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for index, (ax, key) in enumerate(zip(axes.flat, titles, strict=False)):
        for place, label in enumerate(models):
            style = {"color": BLUE} if label in found.measured else {"color": GREY, "markerfacecolor": "white"}
            ax.errorbar(table.at[label, key], place, xerr=found.errors.at[label, key], fmt="o", capsize=3, **style)
        if found.real in table.index:
            ax.axvline(table.at[found.real, key], color=ORANGE, linestyle="--", linewidth=1.3)
        ax.set_yticks(range(len(models)), names if index % columns == 0 else [""] * len(models))
        ax.set_ylim(len(models) - 0.5, -0.5)
        ax.set_title(titles[key], fontsize=10)
        ax.margins(x=0.15)
    for ax in axes.flat[len(titles) :]:
        ax.axis("off")
    if found.real in table.index:
        figure.supxlabel("dashed: real pictures", fontsize=9.5, color=GREY)
    return figure
