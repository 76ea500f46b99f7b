"""The losses, learning rate and APs of a training, read from detectron2's metrics.json."""

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
# More points per curve would not be visible on a page.
_MOST_POINTS = 300
# Width of the running mean, as a share of the training.
_SMOOTHED_SHARE = 0.08


@dataclass(frozen=True)
class TrainingCurve:
    """What a training logged; each series is a list of (iteration, value).

    Attributes:
        losses: The losses by name, ``total_loss`` first if it was logged.
        smoothed: The running mean of ``total_loss``.
        learning_rate: The highest rate of the optimizer's groups, as detectron2 logs it.
        box_ap: Box AP of each stitch that was evaluated during the training.
    """

    losses: Mapping[str, Points] = field(default_factory=dict)
    smoothed: Points = ()
    learning_rate: Points = ()
    box_ap: Mapping[str, Points] = field(default_factory=dict)


def read_training(path: str | os.PathLike[str]) -> TrainingCurve | None:
    """Reads the losses, the learning rate and the APs of a training.

    Args:
        path: The ``metrics.json`` in a training's folder, with one JSON object per line. A line
            that a killed training left unfinished is skipped. If an iteration was trained again
            after a resume, its last values count.

    Returns:
        None if the file is missing or has no losses.
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
        # An integer in JSON may exceed the range of floats.
        if isinstance(value, int | float) and abs(value) <= sys.float_info.max:
            series[name][entry["iteration"]] = float(value)


def _thinned(points: Mapping[int, float]) -> list[tuple[float, float]]:
    """At most ``_MOST_POINTS`` points, each the mean of neighbours."""
    ordered = sorted(points.items())
    size = math.ceil(len(ordered) / _MOST_POINTS) or 1
    groups = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    return [
        (sum(x for x, _ in group) / len(group), math.fsum(y for _, y in group) / len(group))
        for group in groups
    ]


def _smoothed(points: Points) -> list[tuple[float, float]]:
    """A running mean with a narrower window at both ends."""
    reach = max(1, round(_SMOOTHED_SHARE * len(points) / 2))
    values = [value for _, value in points]
    means = []
    for i, (iteration, _) in enumerate(points):
        # Symmetric: a one-sided window would pull the ends towards the middle.
        near = min(reach, i, len(points) - 1 - i)
        window = values[i - near : i + near + 1]
        means.append((iteration, math.fsum(window) / len(window)))
    return means
