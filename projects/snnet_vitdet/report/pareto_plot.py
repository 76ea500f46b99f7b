"""The picture of a sweep: what each stitch costs and how well it detects."""

import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation.pareto import pareto_front
from snnet_vitdet.files import write_atomically
from snnet_vitdet.text import plot_text

from .kinds import ANCHORS, kind_label, kind_styles

__all__ = ["pareto_figure", "plot_pareto"]

_TASKS = {"bbox": "box", "segm": "mask"}
_DPI = 160
_HEIGHT_INCHES = 4.375
_WIDTH_INCHES = {1: 6.25, 2: 10.0}
_INK = "#333333"
_DOT_RADIUS_PIXELS = 9
_LABEL_GAPS_PIXELS = (24, 44, 70, 100)


def plot_pareto(
    table_rows: Sequence[Mapping[str, Any]],
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
) -> None:
    """Write the picture of a sweep as a PNG file, 1600×700 pixels (1000×700 with one task alone).

    Args:
        table_rows: the rows of a results table, or of its ``stitches.json``.
        path: the file to write; it is replaced as a whole or not at all.
        title: a line above the panels.

    Raises:
        InputError: if there are no rows or the file cannot be written.
    """
    figure = pareto_figure(table_rows, title=title)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=_DPI)
    write_atomically(Path(path), png.getvalue())


def pareto_figure(table_rows: Sequence[Mapping[str, Any]], *, title: str | None = None) -> Figure:
    """Draw the picture of a sweep: a panel each for box and mask AP over GFLOPs.

    A task without any score gets no panel. In a panel, each kind of stitch is one scatter labelled
    with its kind, and the frontier by this panel's AP is a line labelled ``frontier``. It is of the
    stitches scored on the most images; those scored on fewer are pale. Stitches whose score is
    missing (NaN or None) are left out and counted in the panel's title.

    Args:
        table_rows: the rows of a results table, or of its ``stitches.json``.
        title: a line above the panels.

    Returns:
        A figure with an Agg canvas of its own; pyplot and its global state are not involved.

    Raises:
        InputError: if there are no rows.
    """
    if not table_rows:
        raise InputError("There is no result to plot. Sweep at least one stitch first.")
    # A detector that finds nothing has no score at all, and its sweep still ends with a picture.
    tasks = [task for task in _TASKS if _points(table_rows, task)] or ["bbox"]
    kinds = kind_styles(row["kind"] for row in table_rows)

    figure = Figure(
        figsize=(_WIDTH_INCHES[len(tasks)], _HEIGHT_INCHES), dpi=_DPI, layout="constrained"
    )
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08, wspace=0.03)
    if title:
        figure.suptitle(plot_text(title), fontsize=13, fontweight="bold", color=_INK)
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        _draw_panel(axes, table_rows, task, kinds)
    figure.legend(
        handles=_legend_handles(kinds),
        loc="outside lower center",
        ncols=4 if len(tasks) == 2 else 3,
        fontsize=10,
        frameon=False,
        columnspacing=1.6,
        handletextpad=0.5,
    )
    # Where the layout puts the panels is known only now, and the labels must avoid the dots there.
    figure.draw_without_rendering()
    for axes in panels:
        _label_anchors(axes)
    return figure


def _draw_panel(
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    task: str,
    kinds: Mapping[str, tuple[str, str]],
) -> None:
    label = _TASKS[task]
    points = _points(rows, task)
    most = max((images for *_, images in points), default=0)
    on_front = pareto_front(
        [cost for _, cost, _, _ in points],
        [score if images == most else math.nan for _, _, score, images in points],
    )
    frontier = sorted(point[1:3] for point, on in zip(points, on_front, strict=True) if on)
    num_compared = sum(images == most for *_, images in points)

    axes.set_xlabel("GFLOPs (multiply–accumulates / 1e9)", fontsize=11, color=_INK)
    axes.set_ylabel(f"{label} AP (COCO, 0–100)", fontsize=11, color=_INK)
    heading = f"{label.capitalize()} AP: {len(frontier)} of {num_compared} on the frontier"
    if num_compared < len(points):
        heading += f"\n({len(points) - num_compared} on a subset of the images, pale)"
    if missing := len(rows) - len(points):
        heading += f"\n({missing} without a score left out)"
    axes.set_title(heading, fontsize=12, color=_INK)
    axes.tick_params(labelsize=10, colors=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    axes.grid(color="#E3E3E3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.08, y=0.14)
    axes.spines[["top", "right"]].set_visible(False)
    if not points:
        axes.text(0.5, 0.5, "no stitch has a score", ha="center", transform=axes.transAxes)
        return

    # Stepped: between two of its points, a budget buys no more than the cheaper one gives.
    axes.plot(
        *zip(*frontier, strict=True),
        drawstyle="steps-post",
        color=_INK,
        linewidth=1.4,
        zorder=2,
        label="frontier",
    )
    dot_size = 32 if len(points) > 40 else 70
    for kind, (colour, marker) in kinds.items():
        chosen = [
            (cost, score, on, 1.0 if images == most else 0.3)
            for (point_kind, cost, score, images), on in zip(points, on_front, strict=True)
            if point_kind == kind
        ]
        if not chosen:
            continue
        costs, scores, on, alpha = zip(*chosen, strict=True)
        anchor = kind in ANCHORS
        axes.scatter(
            costs,
            scores,
            s=330 if anchor else dot_size,
            marker=marker,
            c=colour,
            alpha=alpha,
            edgecolors=[_INK if each else "white" for each in on],
            linewidths=[1.2 if each else 0.6 for each in on],
            # Small groups above large ones, which would hide them in a crowd.
            zorder=5 if anchor else 3 + 1 / len(chosen),
            label=kind,
        )


def _label_anchors(axes: Axes) -> None:
    """Write its name beside each anchor's star, where it covers the least of what is drawn."""
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
    """Where the middle of a label may be, in pixels from its star, the nearest places first."""
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
            [],
            [],
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
    handles.append(
        Line2D(
            [],
            [],
            color=_INK,
            linewidth=1.4,
            marker="o",
            markersize=7,
            markerfacecolor="white",
            markeredgewidth=1.2,
            label="on the frontier",
        )
    )
    return handles


def _points(rows: Sequence[Mapping[str, Any]], task: str) -> list[tuple[str, float, float, int]]:
    """The (kind, GFLOPs, AP, number of images) of each row that has this score."""
    scored = (
        (row["kind"], row["gflops"], row.get(f"{task}_AP"), row.get("num_images") or 0)
        for row in rows
    )
    return [point for point in scored if point[2] is not None and not math.isnan(point[2])]
