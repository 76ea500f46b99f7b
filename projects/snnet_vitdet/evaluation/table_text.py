"""The rows of a sweep as text: JSON and CSV for the files, and a table for the terminal."""

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn

from snnet_vitdet.text import counted

from .results import (
    AP_NAMES,
    COLUMNS,
    METRICS,
    TASKS,
    Row,
    StitchResult,
    best_row,
    comparable,
    has_value,
)

__all__ = ["format_table", "refuse_constant", "results_of", "to_csv", "to_json"]


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
            range, or two rows have the same id.
    """
    if not isinstance(rows, list):
        raise ValueError("it is not a list of rows")
    results: dict[int, StitchResult] = {}
    for position, row in enumerate(rows):
        # Early versions wrote no num_images.
        if not isinstance(row, dict) or {*row, "num_images"} != set(COLUMNS):
            raise ValueError(f"row {position} does not have the columns {', '.join(COLUMNS)}")
        result = StitchResult(
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
        if result.stitch_id in results:
            raise ValueError(f"stitch {result.stitch_id} ({result.name}) has two rows")
        results[result.stitch_id] = result
    return list(results.values())


def refuse_constant(constant: str) -> NoReturn:
    """For ``json.loads``: refuses NaN and infinities, which are not JSON."""
    raise ValueError(f"{constant} is not a JSON number")


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
    count = counted(len(rows), "stitch", "stitches")
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
    if ap50 := [row[f"{task}_AP50"] for row in full if has_value(row, f"{task}_AP50")]:
        parts.append(f"mean {label} AP50 {math.fsum(ap50) / len(ap50):.1f}")
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
