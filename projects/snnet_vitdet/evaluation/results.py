"""The results of a sweep: one row a stitch, and the files they are kept in."""

import csv
import io
import json
import math
import operator
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

from snnet_vitdet.errors import InputError, first_line
from snnet_vitdet.files import read_json, write_atomically

from .pareto import pareto_front

__all__ = [
    "MEASURED_CSV",
    "AP_NAMES",
    "COLUMNS",
    "METRICS",
    "SCORES",
    "ResultsTable",
    "StitchResult",
    "TASKS",
    "decimal_text",
]

TASKS = {"bbox": "box", "segm": "mask"}
"""What is scored, as COCO names it, and as people do."""

AP_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")

SCORES = {word: f"{task}_AP" for task, word in TASKS.items()}
"""What decides between stitches, as people call it: box and mask AP."""

METRICS = tuple(f"{task}_{ap}" for task in TASKS for ap in AP_NAMES)
"""The scores of a stitch, AP on 0–100, named and ordered as in the files."""

COLUMNS = (
    *("stitch_id", "name", "kind", "cuts", "gflops", "params_m"),
    *METRICS,
    *("on_pareto", "iteration", "num_images"),
)
"""The columns of ``stitches.csv`` and the keys of each row of ``stitches.json``, in order."""

MEASURED_CSV = "stitches_measured.csv"
"""The table with what was measured on a device; gone when the table is made anew."""

# pycocotools sums many precisions: a perfect detector may end a rounding error above 100.
_AP_ROUNDING = 1e-6


@dataclass(frozen=True)
class StitchResult:
    """What a sweep found out about one stitch.

    Args:
        stitch_id: the id in the stitch space, from 0.
        name: the name in the stitch space.
        kind: S or L for the anchors, else the walk, such as FS or SFS.
        cuts: the cuts of the walk, ascending; empty for an anchor.
        gflops: multiply–accumulates / 1e9 of the whole detector at the image size of the sweep.
        params_m: parameters that this stitch uses, in millions.
        metrics: AP on 0–100 under the names in ``METRICS``; one left out becomes NaN.
        iteration: how many iterations the weights were trained for, 0 for stitches right after the
            least-squares fit; None where the checkpoint does not say.
        num_images: how many images the metrics are of; None where nobody counted.

    Raises:
        TypeError: if a value is of the wrong type.
        ValueError: if a value is out of range or a metric is not one of ``METRICS``.
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
        values = {
            "stitch_id": operator.index(self.stitch_id),
            "cuts": tuple(operator.index(cut) for cut in self.cuts),
            "gflops": _amount("gflops", self.gflops),
            "params_m": _amount("params_m", self.params_m),
            "metrics": {name: _ap(name, self.metrics.get(name, math.nan)) for name in METRICS},
        }
        for label in ("iteration", "num_images"):
            if getattr(self, label) is not None:
                values[label] = operator.index(getattr(self, label))
                if values[label] < 0:
                    raise ValueError(f"{label} must be 0 or more, got {values[label]}")
        if values["stitch_id"] < 0:
            raise ValueError(f"stitch_id must be 0 or more, got {values['stitch_id']}")
        for label, value in values.items():
            object.__setattr__(self, label, value)


class ResultsTable:
    """The results of a sweep so far, one per stitch, always in the order of their ids."""

    def __init__(self) -> None:
        self._results: dict[int, StitchResult] = {}

    def add(self, result: StitchResult) -> None:
        """Take in the result of one more stitch.

        Raises:
            ValueError: if this stitch has a result already.
        """
        if result.stitch_id in self._results:
            raise ValueError(f"stitch {result.stitch_id} ({result.name}) has a result already")
        self._results[result.stitch_id] = result

    def put(self, result: StitchResult) -> None:
        """Take in the result of a stitch in place of the one it may have already."""
        self._results[result.stitch_id] = result

    def __contains__(self, stitch_id: object) -> bool:
        return stitch_id in self._results

    def __len__(self) -> int:
        return len(self._results)

    def __iter__(self) -> Iterator[StitchResult]:
        return (self._results[stitch_id] for stitch_id in sorted(self._results))

    def rows(self) -> list[dict[str, Any]]:
        """Give one flat row a stitch, by id, with the keys of ``COLUMNS`` in their order.

        ``on_pareto`` says whether no other stitch in this table is as cheap and as good in box AP,
        so it can change as stitches are added; it is False where there is no box AP, or one of
        fewer images than other stitches have. A score that is not there is NaN.
        """
        results = list(self)
        most = max((result.num_images or 0 for result in results), default=0)
        on_pareto = pareto_front(
            [result.gflops for result in results],
            [
                result.metrics["bbox_AP"] if (result.num_images or 0) == most else math.nan
                for result in results
            ],
        )
        return [
            {
                "stitch_id": result.stitch_id,
                "name": result.name,
                "kind": result.kind,
                "cuts": result.cuts,
                "gflops": result.gflops,
                "params_m": result.params_m,
                **result.metrics,
                "on_pareto": on_front,
                "iteration": result.iteration,
                "num_images": result.num_images,
            }
            for result, on_front in zip(results, on_pareto, strict=True)
        ]

    def write(self, directory: str | os.PathLike[str]) -> None:
        """Write ``stitches.json`` and ``stitches.csv``, replacing each as a whole or not at all.

        The JSON is a list of rows with every number in full and null for NaN. The CSV is for
        reading: four decimals, an empty field for NaN, cuts as ``3-7``.

        Raises:
            InputError: if the folder cannot be written to.
        """
        rows = self.rows()
        json_text, csv_text = _to_json(rows), _to_csv(rows)
        write_atomically(Path(directory) / "stitches.json", json_text.encode())
        write_atomically(Path(directory) / "stitches.csv", csv_text.encode())

    @classmethod
    def read(cls, directory: str | os.PathLike[str]) -> "ResultsTable":
        """Read back exactly what ``write`` put into ``stitches.json``.

        Raises:
            InputError: if the file is not there, damaged, or not one of a sweep.
        """
        path = Path(directory) / "stitches.json"
        table = cls()
        try:
            rows = read_json(path, parse_constant=_reject_constant)
            if not isinstance(rows, list):
                raise ValueError("it is not a list of rows")
            for position, row in enumerate(rows):
                table.add(_from_row(position, row))
        except OSError as error:
            raise InputError(
                f"Cannot read the sweep's results {path}: {error.strerror}. "
                "Give the folder of a finished or interrupted sweep, or run the sweep."
            ) from error
        except (OverflowError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} is damaged or was not written by a sweep: {first_line(error)}. "
                "Move it away and run the sweep again, or give another folder."
            ) from error
        return table


def _amount(label: str, value: Any) -> float:
    amount = _real(label, value)
    if not (math.isfinite(amount) and amount >= 0):
        raise ValueError(f"{label} must be finite and 0 or more, got {value}")
    return amount


def _ap(label: str, value: Any) -> float:
    ap = _real(label, value)
    if math.isnan(ap):
        # One object for all of them: results that lack the same scores then compare equal.
        return math.nan
    if not 0 <= ap <= 100 + _AP_ROUNDING:
        raise ValueError(f"{label} must be an AP on 0-100 or NaN, got {value}")
    return ap


def _real(label: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{label} must be a number, got {value!r}")
    return float(value)


def _reject_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _to_json(rows: list[dict[str, Any]]) -> str:
    lines = [
        json.dumps(
            {key: None if _is_nan(value) else value for key, value in row.items()},
            allow_nan=False,
            ensure_ascii=False,
        )
        for row in rows
    ]
    return "[\n" + ",\n".join(lines) + "\n]\n"


def _to_csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([_csv_field(row[column]) for column in COLUMNS])
    return text.getvalue()


def _csv_field(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "-".join(map(str, value))
    if isinstance(value, float):
        return decimal_text(value, 4, "")
    return str(value)


def _from_row(position: int, row: Any) -> StitchResult:
    # Sweeps wrote no num_images at first.
    if not isinstance(row, dict) or {*row, "num_images"} != set(COLUMNS):
        raise ValueError(f"row {position} does not have the columns {', '.join(COLUMNS)}")
    return StitchResult(
        stitch_id=row["stitch_id"],
        name=row["name"],
        kind=row["kind"],
        cuts=row["cuts"],
        gflops=row["gflops"],
        params_m=row["params_m"],
        metrics={name: math.nan if row[name] is None else row[name] for name in METRICS},
        iteration=row["iteration"],
        num_images=row.get("num_images"),
    )


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def decimal_text(value: float, decimals: int, missing: str) -> str:
    """A number with a fixed count of decimals; ``missing`` for NaN."""
    return missing if math.isnan(value) else f"{value:.{decimals}f}"
