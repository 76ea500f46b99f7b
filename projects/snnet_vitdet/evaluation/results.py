"""The result of a stitch, what the rows of a sweep mean, and their text in files and terminals.

A row is a mapping with the columns of ``stitches.json``. Whatever ranks stitches uses the functions
of this module, so that "comparable", "on the frontier" and "best" mean the same everywhere.
"""

import csv
import io
import json
import math
import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from snnet_vitdet.stitching import Stitch
from snnet_vitdet.text import counted

__all__ = [
    "AP_NAMES",
    "BASELINE",
    "CIRCUMSTANCES",
    "COLUMNS",
    "IDENTITY",
    "MEASURED",
    "METRICS",
    "SCORES",
    "TASKS",
    "Row",
    "StitchResult",
    "as_trained",
    "best_row",
    "comparable",
    "counted_points",
    "format_table",
    "has_value",
    "num_images",
    "on_frontier",
    "padding_of",
    "pareto_front",
    "results_of",
    "stitches_alone",
    "to_csv",
    "to_json",
]

# Of COLUMNS; earlier versions did not write them.
_LATER = ("num_images", "image_size", "num_proposals")

Row = Mapping[str, Any]
"""One operating point; a score that is missing is NaN or None."""

TASKS = {"bbox": "box", "segm": "mask"}
"""The tasks that are scored: COCO's names and the common ones."""

AP_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")

SCORES = {word: f"{task}_AP" for task, word in TASKS.items()}
"""The scores that stitches are usually chosen by: box AP and mask AP."""

METRICS = tuple(f"{task}_{ap}" for task in TASKS for ap in AP_NAMES)
"""All scores of a stitch, AP on 0–100, in the order of the files."""

IDENTITY = ("stitch_id", "name", "kind", "cuts", "gflops", "params_m")
"""The columns that say which point a row is of, and what it costs."""

CIRCUMSTANCES = ("iteration", "num_images", "image_size", "num_proposals", "aspect_ratio")
"""The columns that say how a row was scored; None where it is not known."""

COLUMNS = (*IDENTITY, *METRICS, "on_pareto", *CIRCUMSTANCES)
"""The columns of ``stitches.csv`` and the keys of each row of ``stitches.json``, in order."""

MEASURED = ("latency_ms", "latency_ms_p90", "memory_mb")
"""The columns that ``tools/measure_latency.py`` adds."""

BASELINE = Stitch(id=0, kind="baseline", cuts=(), segments=(), transitions=())
"""Stands for the only network of a detector without stitches."""

# pycocotools sums many precisions, so a perfect detector can score a rounding error above 100.
_AP_ROUNDING = 1e-6


@dataclass(frozen=True)
class StitchResult:
    """What a sweep found out about one operating point.

    Attributes:
        stitch_id: Id in the stitch space, from 0.
        name: Name of the operating point: that of the stitch alone, if image size and number of
            proposals are those of the training.
        kind: S or L for an anchor, else the walk, such as FS or SFS.
        cuts: Cuts of the walk, ascending; empty for an anchor.
        gflops: Multiply–accumulates / 1e9 of the whole detector at this point.
        params_m: Parameters that this stitch uses, in millions.
        metrics: AP on 0–100 by the names in ``METRICS``; a missing one becomes NaN.
        iteration: Number of training iterations of the weights, 0 right after the least-squares
            fit; None if the checkpoint does not say.
        num_images: Number of images the metrics were computed on; None if not counted.
        image_size: Side in pixels of the square that images were padded to; None if not known.
        num_proposals: Largest number of proposals that reached the box head; None if not known.
        aspect_ratio: Longer over shorter side of the image that GFLOPs are counted for, if padding
            was tight; None if images were padded to the square.

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
    image_size: int | None = None
    num_proposals: int | None = None
    aspect_ratio: float | None = None

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
        if self.aspect_ratio is not None:
            values["aspect_ratio"] = _number("aspect_ratio", self.aspect_ratio)
            if not 1 <= values["aspect_ratio"] < math.inf:
                raise ValueError(f"aspect_ratio must be 1 or more, got {self.aspect_ratio}")
        for label in ("stitch_id", "iteration", *_LATER):
            if label == "stitch_id" or getattr(self, label) is not None:
                values[label] = operator.index(getattr(self, label))
                if values[label] < 0:
                    raise ValueError(f"{label} must be 0 or more, got {values[label]}")
        for label, value in values.items():
            object.__setattr__(self, label, value)

    @property
    def padding(self) -> str:
        """How images were padded: to the ``square``, or ``tight``."""
        return padding_of(self.aspect_ratio)

    @property
    def key(self) -> tuple[int, int, int]:
        """Identifies the point in a table: stitch id, image size and number of proposals.

        The last two are 0 for a stitch as it was trained, whose name has none.
        """
        if "@" not in self.name:
            return (self.stitch_id, 0, 0)
        return (self.stitch_id, self.image_size or 0, self.num_proposals or 0)


def padding_of(aspect_ratio: float | None) -> str:
    """Padding of a detector whose costs are counted for an aspect ratio; None for a square."""
    return "square" if aspect_ratio is None else "tight"


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


def as_trained(row: Row) -> bool:
    """Whether a row is of a stitch at the training's own image size and number of proposals."""
    return "@" not in row["name"]


def counted_points(names: Collection[str]) -> str:
    """Returns such as ``3 stitches``; ``6 operating points`` if one has a size of its own."""
    if any("@" in name for name in names):
        return counted(len(names), "operating point", "operating points")
    return counted(len(names), "stitch", "stitches")


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


def stitches_alone(rows: Sequence[Row]) -> list[Row]:
    """The comparable stitches as trained, if rows are of other operating points too; else none."""
    if all(map(as_trained, rows)):
        return []
    return [row for row in comparable(rows) if as_trained(row)]


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


def to_json(rows: Sequence[Row]) -> str:
    """The content of ``stitches.json``: exact numbers, null for NaN, one line per row."""
    lines = [
        json.dumps(
            {key: None if _is_nan(row[key]) else row[key] for key in COLUMNS},
            allow_nan=False,
            ensure_ascii=False,
        )
        for row in rows
    ]
    return "[\n" + ",\n".join(lines) + "\n]\n"


def to_csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """The content of ``stitches.csv``: four decimals, cuts as ``3-7``, empty if missing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_csv_field(row[column]) for column in columns] for row in rows)
    return text.getvalue()


def results_of(rows: object) -> list[StitchResult]:
    """The results in the parsed content of a ``stitches.json``.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If this is not a list of rows, or a row has other columns or a value out of
            range, or two rows are of the same operating point.
    """
    if not isinstance(rows, list):
        raise ValueError("it is not a list of rows")
    results: dict[tuple[int, int, int], StitchResult] = {}
    for position, row in enumerate(rows):
        if not isinstance(row, dict) or {*row, *_LATER, "aspect_ratio"} != set(COLUMNS):
            raise ValueError(f"row {position} does not have the columns {', '.join(COLUMNS)}")
        result = StitchResult(
            **{name: row[name] for name in IDENTITY},
            metrics={name: math.nan if row[name] is None else row[name] for name in METRICS},
            iteration=row["iteration"],
            **{name: row.get(name) for name in _LATER},
            aspect_ratio=row.get("aspect_ratio"),
        )
        if result.key in results:
            raise ValueError(f"stitch {result.stitch_id} ({result.name}) has two rows")
        results[result.key] = result
    return list(results.values())


def format_table(rows: Sequence[Row]) -> str:
    """The rows of a sweep for a terminal, at most 120 columns wide, with a summary line below.

    Rows on the frontier of box AP over GFLOPs are marked with ``*``, the row with the best AP with
    ``best``. The columns of a task without any score are left out.
    """
    if not rows:
        return "No stitch has a result yet."
    # Box AP at least, so that a detector that finds nothing still shows columns.
    tasks = [t for t in TASKS if any(has_value(row, f"{t}_AP") for row in rows)] or ["bbox"]
    best = best_row(rows, f"{tasks[0]}_AP")
    gflops_decimals = 2 if max(row["gflops"] for row in rows) < 100 else 1
    longest = max(len(row["name"]) for row in rows)
    first = {
        "": [("best " if row is best else "") + ("*" if row["on_pareto"] else " ") for row in rows],
        "id": [str(row["stitch_id"]) for row in rows],
        # Padded, so that names are aligned on the left and all else on the right.
        "stitch": [row["name"].ljust(longest) for row in rows],
        "GFLOPs": [f"{row['gflops']:.{gflops_decimals}f}" for row in rows],
        "M params": [f"{row['params_m']:.1f}" for row in rows],
    }
    blocks = [_block("", first)]
    for task in tasks:
        columns = {
            ap: [_decimals(row[f"{task}_{ap}"], 1) or "-" for row in rows] for ap in AP_NAMES
        }
        blocks.append(_block(f" {TASKS[task]}, 0-100 ", columns))
    title, header, *body = ["  ".join(parts).rstrip() for parts in zip(*blocks, strict=True)]
    return "\n".join([title, header, "-" * len(title), *body, _summary(rows, tasks[0], best)])


def _block(title: str, columns: dict[str, list[str]]) -> list[str]:
    """Lines of equal length: the title, the column names, and the rows."""
    cells = [[name, *column] for name, column in columns.items()]
    widths = [max(map(len, column)) for column in cells]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in zip(*cells, strict=True)
    ]
    return [title.center(len(lines[0]), "-" if title else " "), *lines]


def _summary(rows: Sequence[Row], task: str, best: Row | None) -> str:
    count = counted_points([row["name"] for row in rows])
    if best is None:
        return f"{count}, none has a score"
    label = TASKS[task]
    if all(row["iteration"] == 0 for row in rows):
        count += " before any training, right after the fit"
    parts = [
        count,
        f"{sum(row['on_pareto'] for row in rows)} on the frontier (*)",
        f"best {label} AP {best[f'{task}_AP']:.1f} by stitch {best['stitch_id']} ({best['name']})",
    ]
    full = comparable(rows)
    if len(full) < len(rows):
        parts.insert(1, f"{len(rows) - len(full)} of them scored on a subset of the images only")
    # A mean over image sizes says nothing.
    sizes = {row.get("image_size") for row in full}
    if len(sizes) == 1 and (
        ap50 := [row[f"{task}_AP50"] for row in full if has_value(row, f"{task}_AP50")]
    ):
        parts.append(f"mean {label} AP50 {math.fsum(ap50) / len(ap50):.1f}")
    if any(row.get("aspect_ratio") for row in rows):
        parts.append("tight padding")
    if missing := sum(not has_value(row, f"{task}_AP") for row in rows):
        parts.append(f"{missing} without a score")
    return ", ".join(parts)


def _csv_field(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "-".join(map(str, value))
    if isinstance(value, float):
        return _decimals(value, 4)
    return str(value)


def _decimals(value: float, decimals: int) -> str:
    """A number with a fixed count of decimals, empty for NaN."""
    return "" if math.isnan(value) else f"{value:.{decimals}f}"


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
