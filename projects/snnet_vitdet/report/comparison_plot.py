"""The picture of several sweeps: the stitches of each, and their frontier."""

import os
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from snnet_vitdet.evaluation import Candidate
from snnet_vitdet.text import plot_text

from .drawing import new_figure, style_axes, write_png

__all__ = ["comparison_figure", "plot_comparison"]

# Okabe and Ito's palette without its yellow, which is too pale for lines. More candidates than
# colours repeat colour and marker.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333")
_MARKERS = ("o", "^", "s", "D", "v", "P", "X")


def plot_comparison(
    candidates: Sequence[Candidate], path: str | os.PathLike[str], cost_label: str, score_label: str
) -> None:
    """Writes the picture as a PNG file of 1440 x 900 pixels.

    Args:
        candidates: What is compared, in the order of the legend.
        path: The file to write.
        cost_label: Label of the horizontal axis.
        score_label: Label of the vertical axis.

    Raises:
        InputError: If the file cannot be written.
        ValueError: If a candidate has no point.
    """
    write_png(comparison_figure(candidates, cost_label, score_label), path)


def comparison_figure(candidates: Sequence[Candidate], cost_label: str, score_label: str) -> Figure:
    """Draws each candidate's stitches as pale dots and its frontier as a stepped line.

    Runs that differ only in their seed share a colour and have one line each. All lines extend to
    the highest cost of any stitch: a larger budget buys at least as much as a smaller one.
    """
    figure = new_figure(9.0, 5.625)
    axes = figure.subplots()
    style_axes(axes, plot_text(cost_label), score_label)
    highest = max(cost for candidate in candidates for cost in candidate.costs())
    handles = []
    for index, candidate in enumerate(candidates):
        colour = _COLOURS[index % len(_COLOURS)]
        marker = _MARKERS[index % len(_MARKERS)]
        for points, frontier in zip(candidate.points(), candidate.frontiers(), strict=True):
            axes.scatter(
                [row[candidate.cost] for row in points],
                [row[candidate.metric] for row in points],
                # Many large dots would hide the lines.
                s=14 if len(points) > 40 else 30,
                marker=marker,
                color=colour,
                alpha=0.3 if len(points) > 1 else 1.0,
                linewidths=0,
                zorder=2,
            )
            axes.plot(
                (*frontier.costs, highest),
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
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), 4),
        fontsize=10,
        frameon=False,
    )
    return figure
