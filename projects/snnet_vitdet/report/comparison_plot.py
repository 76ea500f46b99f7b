"""The picture of several sweeps: each one's stitches and the frontier that they make."""

import io
import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from snnet_vitdet.evaluation.comparison import Candidate
from snnet_vitdet.files import write_atomically
from snnet_vitdet.text import plot_text

__all__ = ["comparison_figure", "plot_comparison"]

# Okabe and Ito's palette without its yellow, which is too pale for lines; then once more, with
# other markers.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333")
_MARKERS = ("o", "^", "s", "D", "v", "P", "X")
_INK = "#333333"
_DPI = 160


def plot_comparison(
    candidates: Sequence[Candidate], path: str | os.PathLike[str], cost_label: str, score_label: str
) -> None:
    """Writes the picture as a PNG file of 1440 x 900 pixels.

    Args:
        candidates: What is compared, in the order of the legend.
        path: The file to write; it is replaced as a whole or not at all.
        cost_label: Under the horizontal axis.
        score_label: Beside the vertical one.

    Raises:
        InputError: If the file cannot be written.
        ValueError: If a candidate has nothing to draw.
    """
    png = io.BytesIO()
    comparison_figure(candidates, cost_label, score_label).savefig(png, format="png", dpi=_DPI)
    write_atomically(Path(path), png.getvalue())


def comparison_figure(candidates: Sequence[Candidate], cost_label: str, score_label: str) -> Figure:
    """Draws each candidate's stitches as pale dots and its frontier as a stepped line.

    Runs that differ by their seed alone have one colour and a line each. All lines go on to the
    dearest stitch of all: a larger budget buys at least what a smaller one does.
    """
    figure = Figure(figsize=(9.0, 5.625), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    dearest = max(cost for c in candidates for points in c.points() for _, cost, _ in points)
    handles = []
    for index, candidate in enumerate(candidates):
        colour = _COLOURS[index % len(_COLOURS)]
        marker = _MARKERS[index % len(_MARKERS)]
        for points, frontier in zip(candidate.points(), candidate.frontiers(), strict=True):
            axes.scatter(
                [cost for _, cost, _ in points],
                [score for *_, score in points],
                # Dots of many would hide all lines; of few, they are what there is to see.
                s=14 if len(points) > 40 else 30,
                marker=marker,
                color=colour,
                alpha=0.3 if len(points) > 1 else 1.0,
                linewidths=0,
                zorder=2,
            )
            axes.plot(
                (*frontier.costs, dearest),
                (*frontier.scores, frontier.scores[-1]),
                drawstyle="steps-post",
                color=colour,
                linewidth=1.8,
                zorder=3,
            )
            axes.plot(
                frontier.costs,
                frontier.scores,
                linestyle="none",
                marker=marker,
                markersize=6,
                color=colour,
                markeredgecolor="white",
                markeredgewidth=0.6,
                zorder=4,
            )
        runs = f" ({len(candidate.runs)} runs)" if len(candidate.runs) > 1 else ""
        label = plot_text(candidate.name + runs)
        handles.append(Line2D([], [], color=colour, marker=marker, linewidth=1.8, label=label))
    axes.set_xlabel(plot_text(cost_label), fontsize=11, color=_INK)
    axes.set_ylabel(score_label, fontsize=11, color=_INK)
    axes.tick_params(labelsize=10, colors=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    axes.grid(color="#E3E3E3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), 4),
        fontsize=10,
        frameon=False,
    )
    return figure
