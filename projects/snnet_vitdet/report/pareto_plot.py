"""The picture of a sweep: the cost and the AP of each stitch."""

import os
from collections.abc import Iterator, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation.results import TASKS, Row, comparable, has_value, on_frontier
from snnet_vitdet.text import plot_text

from .drawing import INK, new_figure, style_axes, write_png
from .kinds import ANCHORS, kind_label, kind_styles

__all__ = ["pareto_figure", "plot_pareto"]

_HEIGHT_INCHES = 4.375
_WIDTH_INCHES = {1: 6.25, 2: 10.0}
_DOT_RADIUS_PIXELS = 9
_LABEL_GAPS_PIXELS = (24, 44, 70, 100)


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
    write_png(pareto_figure(rows, title=title), path)


def pareto_figure(rows: Sequence[Row], *, title: str | None = None) -> Figure:
    """Draws a panel each for box AP and mask AP over GFLOPs.

    A task without any score gets no panel. In a panel, each kind of stitch is a scatter labelled
    with its kind, and the frontier by this panel's AP is a line labelled ``frontier``. Only
    stitches scored on the most images are on the frontier; the others are pale. Stitches without a
    score are left out and counted in the panel's title.

    Args:
        rows: The rows of a sweep, of a table or of ``stitches.json``.
        title: A line above the panels.

    Returns:
        A figure with its own Agg canvas; pyplot and its global state are not used.

    Raises:
        InputError: If there are no rows.
    """
    if not rows:
        raise InputError("There is no result to plot. Sweep at least one stitch first.")
    # A detector that finds nothing has no score, and its sweep still gets a picture.
    tasks = [t for t in TASKS if any(has_value(row, f"{t}_AP") for row in rows)] or ["bbox"]
    kinds = kind_styles(row["kind"] for row in rows)

    figure = new_figure(_WIDTH_INCHES[len(tasks)], _HEIGHT_INCHES)
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08, wspace=0.03)
    if title:
        figure.suptitle(plot_text(title), fontsize=13, fontweight="bold", color=INK)
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        _draw_panel(axes, rows, task, kinds)
    figure.legend(
        handles=_legend_handles(kinds),
        loc="outside lower center",
        ncols=4 if len(tasks) == 2 else 3,
        fontsize=10,
        frameon=False,
        columnspacing=1.6,
        handletextpad=0.5,
    )
    # The labels avoid the dots, whose places are known only once the layout is done.
    figure.draw_without_rendering()
    for axes in panels:
        _label_anchors(axes)
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
    frontier = sorted((row["gflops"], row[score]) for row, on, _ in points if on)
    num_compared = sum(is_compared for *_, is_compared in points)

    heading = f"{label.capitalize()} AP: {len(frontier)} of {num_compared} on the frontier"
    if num_compared < len(points):
        heading += f"\n({len(points) - num_compared} on a subset of the images, pale)"
    if missing := len(rows) - len(points):
        heading += f"\n({missing} without a score left out)"
    axes.set_title(heading, fontsize=12, color=INK)
    style_axes(axes, "GFLOPs (multiply–accumulates / 1e9)", f"{label} AP (COCO, 0–100)")
    axes.margins(x=0.08, y=0.14)
    if not points:
        axes.text(0.5, 0.5, "no stitch has a score", ha="center", transform=axes.transAxes)
        return

    # Stepped: between two points of the frontier, a budget buys the cheaper one.
    axes.plot(
        [cost for cost, _ in frontier],
        [ap for _, ap in frontier],
        drawstyle="steps-post",
        color=INK,
        linewidth=1.4,
        zorder=2,
        label="frontier",
    )
    dot_size = 32 if len(points) > 40 else 70
    for kind, (colour, marker) in kinds.items():
        chosen = [point for point in points if point[0]["kind"] == kind]
        if not chosen:
            continue
        anchor = kind in ANCHORS
        axes.scatter(
            [row["gflops"] for row, _, _ in chosen],
            [row[score] for row, _, _ in chosen],
            s=330 if anchor else dot_size,
            marker=marker,
            c=colour,
            alpha=[1.0 if is_compared else 0.3 for *_, is_compared in chosen],
            edgecolors=[INK if on else "white" for _, on, _ in chosen],
            linewidths=[1.2 if on else 0.6 for _, on, _ in chosen],
            # Small groups above large ones, which would hide them.
            zorder=5 if anchor else 3 + 1 / len(chosen),
            label=kind,
        )


def _label_anchors(axes: Axes) -> None:
    """Writes each anchor's name beside its star, at the place with the least overlap."""
    drawn = [
        Bbox([dot, dot]).padded(_DOT_RADIUS_PIXELS)
        for scatter in axes.collections
        for dot in axes.transData.transform(scatter.get_offsets())
    ]
    for line in axes.lines:
        corners = axes.transData.transform(line.get_xydata())
        for (x0, y0), (x1, y1) in zip(corners, corners[1:], strict=False):
            drawn += [Bbox([(x0, y0), (x1, y0)]), Bbox([(x1, y0), (x1, y1)])]

    for scatter in axes.collections:
        if scatter.get_label() not in ANCHORS:
            continue
        label = axes.annotate(
            ANCHORS[scatter.get_label()],
            scatter.get_offsets()[0],
            xytext=(0, 0),
            textcoords="offset pixels",
            ha="center",
            va="center",
            fontsize=10.5,
            fontweight="bold",
            color=scatter.get_facecolor()[0],
            path_effects=[withStroke(linewidth=3, foreground="white")],
            zorder=6,
        )
        centred = label.get_window_extent(axes.figure.canvas.get_renderer())
        offset = min(
            _label_offsets(centred.width, centred.height),
            key=lambda offset, centred=centred: _clutter(
                centred.translated(*offset).padded(2), axes.bbox, drawn
            ),
        )
        label.set_position(offset)
        drawn.append(centred.translated(*offset))


def _label_offsets(width: float, height: float) -> Iterator[tuple[float, float]]:
    """Offsets of a label's centre from its star in pixels, the nearest first."""
    for gap in _LABEL_GAPS_PIXELS:
        for y in (-1, 1, 0):
            for x in (0.5, -0.5, 0, 1, -1) if y else (1, -1):
                yield x * (width / 2 + gap), y * (height / 2 + gap)


def _clutter(box: Bbox, panel: Bbox, drawn: Sequence[Bbox]) -> tuple[bool, int]:
    outside = box.x0 < panel.x0 or box.x1 > panel.x1 or box.y0 < panel.y0 or box.y1 > panel.y1
    return outside, box.count_overlaps(drawn)


def _legend_handles(kinds: Mapping[str, tuple[str, str]]) -> list[Line2D]:
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
        color=INK,
        linewidth=1.4,
        marker="o",
        markersize=7,
        markerfacecolor="white",
        markeredgewidth=1.2,
        label="on the frontier",
    )
    return [*handles, frontier]
