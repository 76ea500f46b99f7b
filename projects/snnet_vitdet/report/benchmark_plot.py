"""The picture of a benchmark: the time of each network, next to detectron2's own."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from .drawing import INK, new_figure, write_png

__all__ = ["plot_benchmark"]

# Okabe and Ito's palette.
_OURS, _OTHERS = "#0072B2", "#E69F00"
_TITLES = {
    "block": "a block forward and backward (over detectron2's)",
    "training": "a training step (over that of detectron2's ViTDet of the large anchor)",
    "inference": "inference (over that of detectron2's ViTDet of the large anchor)",
    "sweep": "all stitches, without scoring (over one by one)",
}
_WIDTH_INCHES = 8.0
_BAR_INCHES = 0.24
_PANEL_INCHES = 0.75
_TOP_INCHES = 0.4


def plot_benchmark(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Writes a PNG with one panel per kind of measurement and one bar per network.

    Args:
        rows: The rows of ``benchmark.json``.
        path: The file to write.
    """
    kinds = [what for what in _TITLES if any(row["what"] == what for row in rows)]
    groups = {what: [row for row in rows if row["what"] == what] for what in kinds}
    heights = [_PANEL_INCHES + _BAR_INCHES * len(groups[what]) for what in kinds]
    figure = new_figure(_WIDTH_INCHES, sum(heights) + _TOP_INCHES)
    panels = figure.subplots(len(kinds), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, what in zip(panels, kinds, strict=True):
        group = groups[what]
        times = [1000 * row["median_s"] for row in group]
        lowest = [1000 * (row["median_s"] - row["min_s"]) for row in group]
        highest = [1000 * (row["max_s"] - row["median_s"]) for row in group]
        own = [_is_own(row) for row in group]
        axes.barh(
            range(len(group)),
            times,
            xerr=[lowest, highest],
            color=[_OURS if is_own else _OTHERS for is_own in own],
            ecolor=INK,
            height=0.7,
        )
        labels = [
            row["network"]
            + (f"   ({row['over_detectron2']:.2f})" if row["over_detectron2"] else "")
            for row in group
        ]
        axes.set_yticks(range(len(group)), labels, fontsize=8)
        axes.invert_yaxis()
        # Not the maxima: one stall of the machine would shorten all bars.
        axes.set_xlim(0, 1.25 * max(times))
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="x", labelsize=8)
        # At the left edge of the picture, above the labels.
        axes.annotate(
            _TITLES[what],
            (0, 1),
            xycoords=("figure fraction", "axes fraction"),
            xytext=(6, 6),
            textcoords="offset points",
            fontsize=9,
            fontweight="bold",
        )
    first = rows[0]
    figure.suptitle(
        f"milliseconds for {first['batch']} x {first['image_size']}² pixels in "
        f"{first['precision']}: median, and from the fastest to the slowest round",
        fontsize=9,
        x=0.01,
        ha="left",
    )
    write_png(figure, path)


def _is_own(row: Mapping[str, Any]) -> bool:
    return not row["network"].startswith("detectron2") and "separately" not in row["network"]
