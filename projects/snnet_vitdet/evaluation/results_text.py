"""The results of a sweep as the text printed at its end."""

import math
from typing import Any

from .results import AP_NAMES, TASKS, ResultsTable, decimal_text

__all__ = ["format_table"]


def format_table(table: ResultsTable) -> str:
    """Lay out a table of results for a terminal, at most 120 wide, with a summary line below.

    Rows on the frontier of box AP over GFLOPs carry ``*``, the one of the best box AP ``best`` too.
    The columns of a task that no stitch has a score for are left out.
    """
    rows = table.rows()
    if not rows:
        return "No stitch has a result yet."
    # At least the box columns, so that a detector that finds nothing shows as such.
    tasks = [task for task in TASKS if _scored(rows, f"{task}_AP")] or ["bbox"]
    best = _best(rows, f"{tasks[0]}_AP")
    gflops_decimals = 2 if max(row["gflops"] for row in rows) < 100 else 1

    # Each a group title above some columns: (header, cells).
    groups: list[tuple[str, list[tuple[str, list[str]]]]] = [
        (
            "",
            [
                ("", [_mark(row, best) for row in rows]),
                ("id", [str(row["stitch_id"]) for row in rows]),
                # Padded, so that names line up on the left where all else does on the right.
                ("stitch", _padded([row["name"] for row in rows])),
                ("GFLOPs", [f"{row['gflops']:.{gflops_decimals}f}" for row in rows]),
                ("M params", [f"{row['params_m']:.1f}" for row in rows]),
            ],
        )
    ]
    for task in tasks:
        columns = [
            (ap, [decimal_text(row[f"{task}_{ap}"], 1, "-") for row in rows]) for ap in AP_NAMES
        ]
        groups.append((f" {TASKS[task]}, 0-100 ", columns))
    return "\n".join([*_layout(groups), _summary(rows, tasks[0], best)])


def _scored(rows: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    return [row for row in rows if not math.isnan(row[metric])]


def _on_all_images(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows whose scores are of the most images, which alone can be compared with each other."""
    most = max(row["num_images"] or 0 for row in rows)
    return [row for row in rows if (row["num_images"] or 0) == most]


def _best(rows: list[dict[str, Any]], metric: str) -> dict[str, Any] | None:
    """The row with the highest score, the cheapest of them in a tie, which is on the frontier."""
    rows = _scored(_on_all_images(rows), metric)
    return max(rows, key=lambda row: (row[metric], -row["gflops"]), default=None)


def _mark(row: dict[str, Any], best: dict[str, Any] | None) -> str:
    return ("best " if row is best else "") + ("*" if row["on_pareto"] else " ")


def _padded(cells: list[str]) -> list[str]:
    width = max(map(len, cells))
    return [cell.ljust(width) for cell in cells]


def _layout(groups: list[tuple[str, list[tuple[str, list[str]]]]]) -> list[str]:
    """The lines of a right-aligned table: group titles, headers, a rule, and the rows."""
    titles, blocks = [], []
    for title, columns in groups:
        cells = [[header, *column] for header, column in columns]
        widths = [max(map(len, column)) for column in cells]
        block = [
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            for line in zip(*cells, strict=True)
        ]
        titles.append(title.center(len(block[0]), "-" if title else " "))
        blocks.append(block)
    header, *body = ["  ".join(parts).rstrip() for parts in zip(*blocks, strict=True)]
    title_line = "  ".join(titles)
    return [title_line, header, "-" * len(title_line), *body]


def _summary(rows: list[dict[str, Any]], task: str, best: dict[str, Any] | None) -> str:
    count = f"{len(rows)} stitch{'es' if len(rows) > 1 else ''}"
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
    full = _on_all_images(rows)
    if len(full) < len(rows):
        parts.insert(1, f"{len(rows) - len(full)} of them scored on a subset of the images only")
    if ap50 := [row[f"{task}_AP50"] for row in _scored(full, f"{task}_AP50")]:
        parts.append(f"mean {label} AP50 {math.fsum(ap50) / len(ap50):.1f}")
    if missing := len(rows) - len(_scored(rows, f"{task}_AP")):
        parts.append(f"{missing} without a score")
    return ", ".join(parts)
