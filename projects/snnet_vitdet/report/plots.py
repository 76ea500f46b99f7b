"""The pictures of one sweep and of several sweeps compared."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from snnet_vitdet.errors import InputError, first_line
from snnet_vitdet.evaluation import Candidate
from snnet_vitdet.evaluation.results import (
    TASKS,
    Row,
    comparable,
    has_value,
    on_frontier,
    stitches_alone,
)
from snnet_vitdet.files import replacing
from snnet_vitdet.text import plot_text

from .kinds import ANCHORS, is_anchor, kind_label, kind_styles

__all__ = ["comparison_figure", "drawing", "pareto_figure", "plot_comparison", "plot_pareto"]

_INK = "#333333"
_DPI = 160
_HEIGHT_INCHES = 4.375
_WIDTH_INCHES = {1: 6.25, 2: 10.0}
# More points are drawn smaller and paler, or they would be one cloud.
_CROWD = 1000
# Wide and pale, so that it is seen below the other line where both are the same.
_ALONE = {"color": "#c4c4c4", "linewidth": 6.0, "zorder": 4.4}

# Okabe and Ito's palette without its yellow, which is too pale for lines. More candidates than
# colours repeat colour and marker.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333")
_MARKERS = ("o", "^", "s", "D", "v", "P", "X")


@contextmanager
def drawing(what: str) -> Iterator[None]:
    """Turns any failure to make a picture or a page into an InputError.

    Drawing must not end a program whose results are complete.

    Args:
        what: The picture or page, such as the path of its file.

    Raises:
        InputError: If anything fails or calls ``sys.exit``. Ctrl-C still interrupts.
    """
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # from any library that draws
        raise InputError(
            f"{what} cannot be made ({type(error).__name__}: {first_line(error)}); the results "
            "are not touched by it"
        ) from error


def plot_pareto(
    rows: Sequence[Row], path: str | os.PathLike[str], *, title: str | None = None
) -> None:
    """Writes the picture as a PNG file, 1600×700 pixels (1000×700 if only one task has scores).

    Args:
        rows: The rows of a sweep, of a table or of ``stitches.json``.
        path: The file to write.
        title: A line above the panels.

    Raises:
        InputError: If there are no rows or the file cannot be written.
    """
    _write_png(pareto_figure(rows, title=title), path)


def pareto_figure(rows: Sequence[Row], *, title: str | None = None) -> Figure:
    """Draws a panel each for box AP and mask AP over GFLOPs.

    A task without any score gets no panel. In a panel, each kind of stitch is a scatter labelled
    with its kind, and the frontier by this panel's AP is a line labelled ``frontier``. With points
    at other sizes, a pale line ``stitches alone`` is the frontier of the stitches as trained.
    Only points scored on the most images are on a frontier; the others are pale. Points without a
    score are left out and counted in the panel's title.

    Args:
        rows: The rows of a sweep, of a table or of ``stitches.json``.
        title: A line above the panels.

    Returns:
        A new figure; pyplot and its global state are not used.

    Raises:
        InputError: If there are no rows.
    """
    if not rows:
        raise InputError("There is no result to plot. Sweep at least one stitch first.")
    # A detector that finds nothing has no score, and its sweep still gets a picture.
    tasks = [t for t in TASKS if any(has_value(row, f"{t}_AP") for row in rows)] or ["bbox"]
    kinds = kind_styles(row["kind"] for row in rows)

    figure = Figure((_WIDTH_INCHES[len(tasks)], _HEIGHT_INCHES), dpi=_DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08, wspace=0.03)
    if title:
        figure.suptitle(plot_text(title), fontsize=13, fontweight="bold", color=_INK)
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        _draw_panel(axes, rows, task, kinds)
    figure.legend(
        handles=_legend_handles(kinds, with_alone=bool(stitches_alone(rows))),
        loc="outside lower center",
        ncols=4 if len(tasks) == 2 else 3,
        fontsize=10,
        frameon=False,
        columnspacing=1.6,
        handletextpad=0.5,
    )
    return figure


def _draw_panel(
    axes: Axes, rows: Sequence[Row], task: str, kinds: Mapping[str, tuple[str, str]]
) -> None:
    label, score = TASKS[task], f"{task}_AP"
    compared = comparable(rows)
    points = [
        (row, on, row in compared)
        for row, on in zip(rows, on_frontier(rows, score), strict=True)
        if has_value(row, score)
    ]
    num_on = sum(on for _, on, _ in points)
    num_compared = sum(is_compared for *_, is_compared in points)

    heading = f"{label.capitalize()} AP: {num_on} of {num_compared} on the frontier"
    if num_compared < len(points):
        heading += f"\n({len(points) - num_compared} on a subset of the images, pale)"
    if missing := len(rows) - len(points):
        heading += f"\n({missing} without a score left out)"
    axes.set_title(heading, fontsize=12, color=_INK)
    _style_axes(axes, "GFLOPs (multiply–accumulates / 1e9)", f"{label} AP (COCO, 0–100)")
    axes.margins(x=0.08, y=0.14)
    if not points:
        axes.text(0.5, 0.5, "no stitch has a score", ha="center", transform=axes.transAxes)
        return

    _draw_frontier(axes, rows, score, label="frontier")
    if stitches := stitches_alone(rows):
        _draw_frontier(axes, stitches, score, label="stitches alone", **_ALONE)
    crowded = len(points) > _CROWD
    dot_size = 7 if crowded else 32 if len(points) > 40 else 70
    edges = (0.0, 0.8) if crowded else (0.6, 1.2)
    for kind, (colour, marker) in kinds.items():
        chosen = [point for point in points if point[0]["kind"] == kind]
        for role, size, opacity, zorder in (
            # Small groups above large ones, which would hide them; the line of the frontier at 4.5.
            ("other", dot_size, 0.4 if crowded else 1.0, 3 + 1 / max(1, len(chosen))),
            ("frontier", 20 if crowded else dot_size, 1.0, 4.6),
            ("anchor", 330, 1.0, 5),
        ):
            drawn = [point for point in chosen if role == _role(*point[:2])]
            if not drawn:
                continue
            axes.scatter(
                [row["gflops"] for row, _, _ in drawn],
                [row[score] for row, _, _ in drawn],
                s=size,
                marker=marker,
                c=colour,
                alpha=[opacity if is_compared else 0.3 * opacity for *_, is_compared in drawn],
                edgecolors=[_INK if on else "white" for _, on, _ in drawn],
                linewidths=[edges[on] for _, on, _ in drawn],
                zorder=zorder,
                label=kind,
            )
            if role == "anchor":
                place = (drawn[0][0]["gflops"], drawn[0][0][score])
                look = {"ha": "center", "va": "center", "fontsize": 7.5, "fontweight": "bold"}
                axes.text(*place, kind, color="white", zorder=6, **look)


def _draw_frontier(axes: Axes, rows: Sequence[Row], score: str, **look: object) -> None:
    """Draws a stepped line: between two points of the frontier, a budget buys the cheaper one."""
    on = on_frontier(rows, score)
    corners = sorted(
        (row["gflops"], row[score]) for row, is_on in zip(rows, on, strict=True) if is_on
    )
    axes.plot(
        [cost for cost, _ in corners],
        [ap for _, ap in corners],
        drawstyle="steps-post",
        **{"color": _INK, "linewidth": 1.4, "zorder": 4.5, **look},
    )


def _role(row: Row, on_front: bool) -> str:
    return "anchor" if is_anchor(row) else "frontier" if on_front else "other"


def _legend_handles(kinds: Mapping[str, tuple[str, str]], with_alone: bool) -> list[Line2D]:
    handles = [
        Line2D(
            *([], []),
            linestyle="none",
            marker=marker,
            markersize=14 if kind in ANCHORS else 8,
            markerfacecolor=colour,
            markeredgecolor="white",
            markeredgewidth=0.6,
            label=f"{kind}: {kind_label(kind)}",
        )
        for kind, (colour, marker) in kinds.items()
    ]
    frontier = Line2D(
        *([], []),
        color=_INK,
        linewidth=1.4,
        marker="o",
        markersize=7,
        markerfacecolor="white",
        markeredgewidth=1.2,
        label="frontier of all points" if with_alone else "on the frontier",
    )
    stitches = Line2D([], [], label="frontier of the stitches alone, as trained", **_ALONE)
    return [*handles, frontier, *[stitches] * with_alone]


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
    _write_png(comparison_figure(candidates, cost_label, score_label), path)


def comparison_figure(candidates: Sequence[Candidate], cost_label: str, score_label: str) -> Figure:
    """Draws each candidate's stitches as pale dots and its frontier as a stepped line.

    Runs that differ only in their seed share a colour and have one line each. All lines extend to
    the highest cost of any stitch: a larger budget buys at least as much as a smaller one.
    """
    figure = Figure((9.0, 5.625), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    _style_axes(axes, plot_text(cost_label), score_label)
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


def _style_axes(axes: Axes, x_label: str, y_label: str) -> None:
    """Gives a plot of scores over costs its labels, ticks and grid."""
    axes.set_xlabel(x_label, fontsize=11, color=_INK)
    axes.set_ylabel(y_label, fontsize=11, color=_INK)
    axes.tick_params(labelsize=10, colors=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    axes.grid(color="#E3E3E3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _write_png(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure as a PNG file, which is replaced as a whole or not at all.

    Raises:
        InputError: If the file cannot be written.
    """
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
