"""The figure of a comparison."""

from __future__ import annotations

import textwrap

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from .plotting import BLUE, GREY, ORANGE, styled

COLUMNS = 3


@styled
def draw_comparison(
    table: pd.DataFrame, errors: pd.DataFrame, titles: dict[str, str], measured: list[str], real: str
) -> Figure:
    """A panel a measure, a row a model.

    Args:
        table, errors: values and standard errors, models x measures.
        titles: of the measures.
        measured: the models that were measured; the others, quoted, are drawn hollow.
        real: the row of the real pictures, drawn as a line.
    """
    keys = list(table)
    columns = min(COLUMNS, len(keys))
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
            own = label in measured
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
