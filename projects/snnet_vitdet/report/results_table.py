"""The columns of the report's table, and its HTML, which needs no JavaScript."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from snnet_vitdet.evaluation.results import AP_NAMES, TASKS, Row, has_value
from snnet_vitdet.text import escaped, neutral

__all__ = ["Column", "cell_text", "marker_html", "present_columns", "table_html"]


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        key: Key of the rows.
        label: Heading of the column.
        title: Title of an axis.
        role: ``text``, ``number``, ``cost`` (an axis, lower is better) or ``score`` (an axis,
            higher is better).
        decimals: Number of decimals.
    """

    key: str
    label: str
    title: str
    role: str
    decimals: int = 0


_TEXTS = (
    Column("name", "stitch", "name", "text"),
    Column("stitch_id", "id", "id", "number"),
    Column("kind", "kind", "kind", "text"),
    Column("cuts", "cuts", "cuts", "text"),
)
_POINT = (
    Column("image_size", "image size", "image size", "number"),
    Column("num_proposals", "proposals", "proposals", "number"),
)
_COUNTS = (
    Column("num_images", "images", "images", "number"),
    Column("iteration", "iteration", "iteration", "number"),
)
_COSTS = (
    ("gflops", "GFLOPs", "GFLOPs (multiply–accumulates / 1e9)"),
    ("params_m", "params, M", "parameters, millions"),
    ("latency_ms", "latency, ms", "latency, ms per image (median)"),
    ("latency_ms_p90", "p90, ms", "latency, ms per image (90 % of the rounds)"),
    ("memory_mb", "memory, MB", "peak memory, MB"),
)
_WORDS = {
    "AP": "AP",
    "AP50": "AP50",
    "AP75": "AP75",
    "APs": "AP of small objects",
    "APm": "AP of medium objects",
    "APl": "AP of large objects",
}


def present_columns(rows: Sequence[Row]) -> list[Column]:
    """The columns that have values, in their order.

    Image size and the numbers of proposals, images and iterations are columns only if rows differ
    in them.
    """
    columns = [*_TEXTS, *_differing(rows, _POINT)]
    for key, label, title in _COSTS:
        if values := [row[key] for row in rows if has_value(row, key)]:
            # The p90 is not an axis: it says how far to trust the median.
            role = "number" if key == "latency_ms_p90" else "cost"
            columns.append(Column(key, label, title, role, 2 if max(values) < 100 else 1))
    for task, word in TASKS.items():
        for ap in AP_NAMES:
            if any(has_value(row, f"{task}_{ap}") for row in rows):
                title = f"{word} {_WORDS[ap]}"
                columns.append(Column(f"{task}_{ap}", f"{word} {ap}", title, "score", 1))
    return [*columns, *_differing(rows, _COUNTS)]


def _differing(rows: Sequence[Row], columns: Sequence[Column]) -> list[Column]:
    return [column for column in columns if len({row.get(column.key) for row in rows}) > 1]


def table_html(
    rows: Sequence[Row], columns: Sequence[Column], marker_ids: Mapping[str, str]
) -> str:
    """The ``<table>`` with one line per point, whose ``data-row`` is the index of its row.

    Args:
        rows: The rows of a sweep.
        columns: The columns from :func:`present_columns`.
        marker_ids: By kind, the id of the marker's shape in the page.
    """
    head = "".join(
        f'<th scope="col" data-key="{column.key}" class="{_css(column)}">'
        f"{escaped(column.label)}</th>"
        for column in columns
    )
    body = "\n".join(
        f'<tr data-row="{index}"{" class=front" if row.get("on_pareto") else ""}>'
        + "".join(_cell(row, column, marker_ids) for column in columns)
        + "</tr>"
        for index, row in enumerate(rows)
    )
    return f'<table id="results"><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>'


def cell_text(row: Row, column: Column) -> str:
    """A value as the page shows it; a dash if it is missing."""
    value = row.get(column.key)
    if column.key == "cuts":
        return ", ".join(map(str, value or ())) or "–"
    if isinstance(value, str):
        return neutral(value)
    if not has_value(row, column.key):
        return "–"
    return f"{value:.{column.decimals}f}" if isinstance(value, float) else str(value)


def marker_html(marker_id: str) -> str:
    """The marker of a kind, for a line of text."""
    return f'<svg class="mark" aria-hidden="true"><use href="#{marker_id}"/></svg>'


def _cell(row: Row, column: Column, marker_ids: Mapping[str, str]) -> str:
    text = escaped(cell_text(row, column))
    if column.key != "name":
        return f'<td class="{_css(column)}">{text}</td>' if _css(column) else f"<td>{text}</td>"
    return f'<th scope="row">{marker_html(marker_ids[row["kind"]])}{text}</th>'


def _css(column: Column) -> str:
    return "" if column.role == "text" else "num"
