"""The course of a training, read from the metrics.json that detectron2 writes."""

import json
import math
import os
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["TrainingCurve", "read_training"]

Points = Sequence[tuple[float, float]]

_AP = re.compile(r"(?:(.+)/)?bbox_AP")
# So many points are as wide as a page is in pixels, about.
_MOST_POINTS = 300
# Of a training, that a mean is taken over.
_SMOOTHED_SHARE = 0.08


@dataclass(frozen=True)
class TrainingCurve:
    """What a training logged, each series as (iteration, value).

    Attributes:
        losses: By name, ``total_loss`` first if it is there.
        smoothed: The running mean of ``total_loss``.
        learning_rate: The highest of the optimizer's groups, as detectron2 logs it.
        box_ap: Box AP of each stitch that was evaluated on the way.
    """

    losses: Mapping[str, Points] = field(default_factory=dict)
    smoothed: Points = ()
    learning_rate: Points = ()
    box_ap: Mapping[str, Points] = field(default_factory=dict)


def read_training(path: str | os.PathLike[str]) -> TrainingCurve | None:
    """Reads the losses, the learning rate and the APs of a training.

    Args:
        path: The ``metrics.json`` in a training's folder: one JSON object a line. A line that a
            killed training left unfinished is passed over; of an iteration that was trained again
            after a resume, the last one counts.

    Returns:
        None if the file is not there or has no losses.
    """
    series: dict[str, dict[int, float]] = defaultdict(dict)
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                _take(line, series)
    except OSError:
        return None
    losses = {
        name: _thinned(points)
        for name, points in sorted(series.items(), key=lambda item: item[0] != "total_loss")
        if name.startswith("loss_") or name == "total_loss"
    }
    if not losses:
        return None
    box_ap = {
        match[1] or "box AP": _thinned(points)
        for name, points in series.items()
        if (match := _AP.fullmatch(name))
    }
    total = losses.get("total_loss", ())
    return TrainingCurve(losses, _smoothed(total), _thinned(series.get("lr", {})), box_ap)


def _take(line: str, series: dict[str, dict[int, float]]) -> None:
    try:
        entry = json.loads(line)
    except (RecursionError, ValueError):
        return
    if not isinstance(entry, dict) or type(entry.get("iteration")) is not int:
        return
    for name, value in entry.items():
        # A whole number may be beyond all floats.
        if isinstance(value, int | float) and abs(value) <= sys.float_info.max:
            series[name][entry["iteration"]] = float(value)


def _thinned(points: Mapping[int, float]) -> list[tuple[float, float]]:
    """At most so many points, each the mean of neighbours."""
    ordered = sorted(points.items())
    size = math.ceil(len(ordered) / _MOST_POINTS) or 1
    groups = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    return [
        (sum(x for x, _ in group) / len(group), math.fsum(y for _, y in group) / len(group))
        for group in groups
    ]


def _smoothed(points: Points) -> list[tuple[float, float]]:
    """A running mean, at the ends over what there is."""
    reach = max(1, round(_SMOOTHED_SHARE * len(points) / 2))
    values = [value for _, value in points]
    means = []
    for i, (iteration, _) in enumerate(points):
        # As far to one side as to the other, or the ends would be drawn towards the middle.
        near = min(reach, i, len(points) - 1 - i)
        window = values[i - near : i + near + 1]
        means.append((iteration, math.fsum(window) / len(window)))
    return means
