"""The picture of a study: how far each variant's small end is from the small ViT alone."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .drawing import INK, new_figure, write_png

__all__ = ["Gap", "gap_figure", "plot_gaps"]

# Okabe and Ito's palette.
_CHEAP, _DEAR = "#0072B2", "#D55E00"
_WIDTH_INCHES = 8.0
_ROW_INCHES = 0.3
_REST_INCHES = 1.3


@dataclass(frozen=True)
class Gap:
    """A variant.

    Attributes:
        name: Name of the variant.
        values: AP of its small end minus that of the small ViT alone, one value per seed.
        mean: Mean of the values.
        error: Standard error of the mean; NaN for a single value.
        cost: Arithmetic of its training relative to that of the recipe it is compared with.
    """

    name: str
    values: Sequence[float]
    mean: float
    error: float
    cost: float


def plot_gaps(gaps: Sequence[Gap], path: str | os.PathLike[str], dear: float) -> None:
    """Writes the picture as a PNG file of 1280 pixels width.

    Args:
        gaps: The variants, in any order.
        path: The file to write.
        dear: Cost above which a variant gets the other colour.

    Raises:
        InputError: If the file cannot be written.
    """
    write_png(gap_figure(gaps, dear), path)


def gap_figure(gaps: Sequence[Gap], dear: float) -> Figure:
    """Draws one row per variant, the best on top: a dot per seed, and the mean with its error."""
    gaps = sorted(gaps, key=lambda gap: gap.mean, reverse=True)
    figure = new_figure(_WIDTH_INCHES, _REST_INCHES + _ROW_INCHES * len(gaps))
    axes = figure.subplots()
    for row, gap in enumerate(gaps):
        colour = _DEAR if gap.cost > dear else _CHEAP
        axes.scatter(gap.values, [row] * len(gap.values), s=14, color=colour, alpha=0.4, zorder=2)
        axes.errorbar(
            gap.mean, row, xerr=gap.error, fmt="o", markersize=6, color=colour, capsize=3, zorder=3
        )
    axes.axvline(0.0, color=INK, linewidth=1.2, zorder=1)
    axes.set_yticks(range(len(gaps)), [f"{gap.name}  ({gap.cost:.2f}×)" for gap in gaps])
    axes.invert_yaxis()
    axes.set_xlabel("box AP of the small end less that of the small ViT alone", color=INK)
    axes.tick_params(labelsize=10, colors=INK)
    axes.grid(axis="x", color="#E3E3E3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles = [
        Line2D([], [], color=_CHEAP, marker="o", label=f"training costs at most {dear:g}×"),
        Line2D([], [], color=_DEAR, marker="o", label="more"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=10, frameon=False)
    return figure
