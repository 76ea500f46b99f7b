"""The result of a stitch, and what the rows of a sweep mean.

A row is a mapping with the columns of ``stitches.json``. Whatever ranks stitches uses the functions
of this module, so that "comparable", "on the frontier" and "best" mean the same everywhere.
"""

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from snnet_vitdet.stitching import Stitch

__all__ = [
    "AP_NAMES",
    "BASELINE",
    "COLUMNS",
    "MEASURED",
    "METRICS",
    "SCORES",
    "TASKS",
    "Row",
    "StitchResult",
    "best_row",
    "comparable",
    "has_value",
    "num_images",
    "on_frontier",
    "pareto_front",
]

Row = Mapping[str, Any]
"""One stitch; a score that is missing is NaN or None."""

TASKS = {"bbox": "box", "segm": "mask"}
"""The tasks that are scored: COCO's names and the common ones."""

AP_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")

SCORES = {word: f"{task}_AP" for task, word in TASKS.items()}
"""The scores that stitches are usually chosen by: box AP and mask AP."""

METRICS = tuple(f"{task}_{ap}" for task in TASKS for ap in AP_NAMES)
"""All scores of a stitch, AP on 0–100, in the order of the files."""

COLUMNS = (
    *("stitch_id", "name", "kind", "cuts", "gflops", "params_m"),
    *METRICS,
    *("on_pareto", "iteration", "num_images"),
)
"""The columns of ``stitches.csv`` and the keys of each row of ``stitches.json``, in order."""

MEASURED = ("latency_ms", "latency_ms_p90", "memory_mb")
"""The columns that ``tools/measure_latency.py`` adds."""

BASELINE = Stitch(id=0, kind="baseline", cuts=(), segments=(), transitions=())
"""Stands for the only network of a detector without stitches."""

# pycocotools sums many precisions, so a perfect detector can score a rounding error above 100.
_AP_ROUNDING = 1e-6


@dataclass(frozen=True)
class StitchResult:
    """What a sweep found out about one stitch.

    Attributes:
        stitch_id: Id in the stitch space, from 0.
        name: Name in the stitch space.
        kind: S or L for an anchor, else the walk, such as FS or SFS.
        cuts: Cuts of the walk, ascending; empty for an anchor.
        gflops: Multiply–accumulates / 1e9 of the whole detector at the image size of the sweep.
        params_m: Parameters that this stitch uses, in millions.
        metrics: AP on 0–100 by the names in ``METRICS``; a missing one becomes NaN.
        iteration: Number of training iterations of the weights, 0 right after the least-squares
            fit; None if the checkpoint does not say.
        num_images: Number of images the metrics were computed on; None if not counted.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If a value is out of range or a metric is not one of ``METRICS``.
    """

    stitch_id: int
    name: str
    kind: str
    cuts: tuple[int, ...]
    gflops: float
    params_m: float
    metrics: Mapping[str, float] = field(hash=False)
    iteration: int | None = None
    num_images: int | None = None

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.metrics) - set(METRICS)):
            raise ValueError(
                f"metrics has unknown names: {', '.join(unknown)}; known are {', '.join(METRICS)}"
            )
        for label in ("name", "kind"):
            if not isinstance(getattr(self, label), str):
                raise TypeError(f"{label} must be a string, got {getattr(self, label)!r}")
        values: dict[str, Any] = {
            "cuts": tuple(operator.index(cut) for cut in self.cuts),
            "metrics": {name: _ap(name, self.metrics.get(name, math.nan)) for name in METRICS},
        }
        for label in ("gflops", "params_m"):
            values[label] = _number(label, getattr(self, label))
            if not 0 <= values[label] < math.inf:
                raise ValueError(f"{label} must be finite and 0 or more, got {values[label]}")
        for label in ("stitch_id", "iteration", "num_images"):
            if label == "stitch_id" or getattr(self, label) is not None:
                values[label] = operator.index(getattr(self, label))
                if values[label] < 0:
                    raise ValueError(f"{label} must be 0 or more, got {values[label]}")
        for label, value in values.items():
            object.__setattr__(self, label, value)


def _ap(label: str, value: Any) -> float:
    ap = _number(label, value)
    if math.isnan(ap):
        # The same object each time, so that results with missing scores compare equal.
        return math.nan
    if not 0 <= ap <= 100 + _AP_ROUNDING:
        raise ValueError(f"{label} must be an AP on 0-100 or NaN, got {value}")
    return ap


def _number(label: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{label} must be a number, got {value!r}")
    return float(value)


def has_value(row: Row, column: str) -> bool:
    """Whether a row has a number in a column."""
    value = row.get(column)
    return value is not None and not math.isnan(value)


def num_images(row: Row) -> int:
    """Number of images that a row was scored on, 0 if not counted."""
    return row.get("num_images") or 0


def comparable(rows: Sequence[Row]) -> list[Row]:
    """The rows scored on the most images; scores on fewer images cannot be compared with these."""
    most = max(map(num_images, rows), default=0)
    return [row for row in rows if num_images(row) == most]


def on_frontier(rows: Sequence[Row], score: str, cost: str = "gflops") -> list[bool]:
    """For each row, whether it is on the Pareto frontier of the comparable rows.

    Args:
        rows: The rows of one sweep, each with a cost.
        score: Column of the score; a row without it is not on the frontier.
        cost: Column of the cost.
    """
    most = max(map(num_images, rows), default=0)
    scores = [
        row[score] if num_images(row) == most and has_value(row, score) else math.nan
        for row in rows
    ]
    return pareto_front([row[cost] for row in rows], scores)


def best_row(rows: Sequence[Row], score: str) -> Row | None:
    """The comparable row with the highest score, of equal ones the one with the fewest GFLOPs.

    None if no comparable row has the score.
    """
    scored = [row for row in comparable(rows) if has_value(row, score)]
    return max(scored, key=lambda row: (row[score], -row["gflops"]), default=None)


def pareto_front(costs: Sequence[float], scores: Sequence[float]) -> list[bool]:
    """Tells which points no other point beats.

    A point is beaten if another one has a cost at most as high and a score at least as high, one of
    them strictly. Points equal in both do not beat each other, so either all of them are on the
    frontier or none is. A point whose score is NaN is never on the frontier and beats nothing.

    Args:
        costs: One per point, lower is better.
        scores: One per point, higher is better; NaN if the point has none.

    Returns:
        For each point, in the order given, whether it is on the frontier.

    Raises:
        ValueError: If the lengths differ or a cost is NaN.
    """
    if len(costs) != len(scores):
        raise ValueError(
            f"costs and scores must have the same length, got {len(costs)} and {len(scores)}"
        )
    for index, cost in enumerate(costs):
        if math.isnan(cost):
            raise ValueError(f"costs[{index}] is NaN; every point needs a cost")
    scored = (index for index, score in enumerate(scores) if not math.isnan(score))
    on_front = [False] * len(costs)
    last = None
    for index in sorted(scored, key=lambda index: (costs[index], -scores[index])):
        point = (costs[index], scores[index])
        if last is None or point[1] > last[1] or point == last:
            on_front[index] = True
            last = point
    return on_front
