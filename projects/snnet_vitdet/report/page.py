"""The report of a sweep: one HTML file that contains everything and loads nothing from elsewhere.

Facts, table and sample detections are in the HTML and need no JavaScript. The browser draws the
charts from the numbers, which the page contains as JSON.
"""

import base64
import hashlib
import json
import math
import os
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation.results import (
    TASKS,
    Row,
    as_trained,
    best_row,
    comparable,
    counted_points,
    num_images,
    on_frontier,
    stitches_alone,
)
from snnet_vitdet.files import write_atomically
from snnet_vitdet.text import counted, escaped, neutral

from .kinds import ANCHORS, MARKERS, kind_label, kind_styles
from .results_table import Column, cell_text, marker_html, present_columns, table_html
from .training_curve import TrainingCurve

__all__ = [
    "SampleColumn",
    "SamplePicture",
    "SampleRow",
    "Samples",
    "report_html",
    "write_report",
]

_SCRIPTS = (
    *("svg.js", "filters.js", "plot.js", "table.js"),
    *("bands.js", "training.js", "pictures.js", "main.js"),
)


@dataclass(frozen=True)
class SampleColumn:
    """A column of sample pictures.

    Attributes:
        title: Heading, such as the name of a stitch.
        caption: Text beside the heading.
        kind: Kind of the stitch; None for the annotations.
    """

    title: str
    caption: str
    kind: str | None = None


@dataclass(frozen=True)
class SamplePicture:
    """A picture with objects drawn into it.

    Attributes:
        webp: Content of the file.
        width: Width in pixels.
        height: Height in pixels.
        text: Description for readers who cannot see the picture.
    """

    webp: bytes
    width: int
    height: int
    text: str


@dataclass(frozen=True)
class SampleRow:
    """One image, with one picture per column."""

    file_name: str
    pictures: Sequence[SamplePicture]


@dataclass(frozen=True)
class Samples:
    """The detections of several stitches in the same images."""

    columns: Sequence[SampleColumn]
    rows: Sequence[SampleRow]


def write_report(path: str | os.PathLike[str], rows: Sequence[Row], **parts: object) -> None:
    """Writes the page of :func:`report_html`, as a whole or not at all.

    Args:
        path: Path of the file.
        rows: The rows of a sweep, see :func:`report_html`.
        **parts: The other arguments of :func:`report_html`.

    Raises:
        InputError: If there are no rows or the file cannot be written.
    """
    write_atomically(Path(path), report_html(rows, **parts).encode())


def report_html(
    rows: Sequence[Row],
    *,
    title: str,
    facts: Sequence[tuple[str, str]] = (),
    training: TrainingCurve | None = None,
    samples: Samples | None = None,
    no_samples: str = "None were made.",
) -> str:
    """Returns the page as text.

    Args:
        rows: The rows of a sweep, as ``StitchTable.rows`` returns them.
        title: Title of the page, such as the folder of the training.
        facts: Further facts as (label, text), shown after those from the rows.
        training: The training curve, if known.
        samples: Sample detections, if any.
        no_samples: A sentence that says why there are no samples.

    Raises:
        InputError: If there are no rows.
    """
    if not rows:
        raise InputError("There is no result to report. Sweep at least one stitch first.")
    columns, compared = present_columns(rows), comparable(rows)
    styles = kind_styles(str(row["kind"]) for row in rows)
    marker_ids = {kind: f"marker-{index}" for index, kind in enumerate(styles)}
    what = "stitches" if all(map(as_trained, rows)) else "operating points"
    data = {
        "what": what,
        "columns": [asdict(column) for column in columns],
        "kinds": [
            {
                "kind": kind,
                "label": kind_label(kind),
                "colour": colour,
                "marker": marker_ids[kind],
                "anchor": kind in ANCHORS,
            }
            for kind, (colour, _) in styles.items()
        ],
        "rows": [_plain(row, columns, row in compared) for row in rows],
        "training": training and asdict(training),
    }
    assets = files(__package__) / "assets"
    style = (assets / "page.css").read_text(encoding="utf-8")
    # One scope for all files, so that no function becomes a property of the window.
    script = "\n".join((assets / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}\n}})();\n'
    template = string.Template((assets / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escaped(title),
        what=what,
        policy=(
            "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
            f"style-src '{_hash(style)}'; script-src '{_hash(script)}'"
        ),
        style=style,
        script=script,
        data=_safe_json(data),
        markers="".join(
            f'<g id="{marker_ids[kind]}" fill="{colour}">{MARKERS[shape]}</g>'
            for kind, (colour, shape) in styles.items()
        ),
        facts="".join(
            f"<div><dt>{escaped(label)}</dt><dd>{escaped(text)}</dd></div>"
            for label, text in [*_facts(rows, columns, what), *facts]
        ),
        table=table_html(rows, columns, marker_ids),
        samples=_samples_html(samples, marker_ids)
        if samples
        else f'<p class="note">{escaped(no_samples)}</p>',
        training=escaped(_training_text(training)),
    )


def _plain(row: Row, columns: Sequence[Column], is_compared: bool) -> dict[str, object]:
    """A row for the scripts: its values, and as ``text`` the cells of the table."""
    plain = {"compared": is_compared, "text": {}}
    for column in columns:
        value = row.get(column.key)
        is_nan = isinstance(value, float) and math.isnan(value)
        value = neutral(value) if isinstance(value, str) else value
        plain[column.key] = None if is_nan else value
        plain["text"][column.key] = cell_text(row, column)
    return plain


def _safe_json(data: object) -> str:
    """JSON for a ``<script>`` element: no name can end the element or open a comment."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _facts(rows: Sequence[Row], columns: Sequence[Column], what: str) -> list[tuple[str, str]]:
    """Facts from the rows, which are stitches or operating points, as (label, text)."""
    by_key = {column.key: column for column in columns}
    kinds = Counter(str(row["kind"]) for row in rows)
    by_kind = ", ".join(f"{count}\u00a0{kind}" for kind, count in kinds.items())
    facts = [(what.capitalize(), f"{len(rows):,} ({by_kind})")]
    full = comparable(rows)
    if num_images(full[0]):
        fewer = len(rows) - len(full)
        rest = f"; fewer for {fewer} of the {what}" if fewer else ""
        facts.append(("Images scored", f"{num_images(full[0]):,}{rest}"))
    iterations = {row.get("iteration") for row in rows} - {None}
    if len(iterations) == 1:
        count = iterations.pop()
        trained = counted(count, "iteration", "iterations") if count else "not at all: the fit"
        facts.append(("Trained for", trained))
    for ratio in sorted({row.get("aspect_ratio") for row in rows} - {None}):
        facts.append(("Padding", f"tight, GFLOPs at an aspect ratio of {ratio:g}"))
    for task, word in TASKS.items():
        if best := best_row(rows, f"{task}_AP"):
            facts.append((f"Best {word} AP", f"{best[f'{task}_AP']:.1f} ({best['name']})"))
    for label, part in (
        ("Pareto frontier", rows),
        ("Pareto frontier of the stitches alone", stitches_alone(rows)),
    ):
        on = on_frontier(part, "bbox_AP")
        if front := [row for row, is_on in zip(part, on, strict=True) if is_on]:
            front.sort(key=lambda row: row["gflops"])
            ranges = [
                f"{cell_text(front[0], column)} to {cell_text(front[-1], column)} {column.label}"
                for column in (by_key["gflops"], by_key["bbox_AP"])
            ]
            size = counted_points([row["name"] for row in front])
            facts.append((label, f"{size}, {', '.join(ranges)}"))
    return facts


def _training_text(training: TrainingCurve | None) -> str:
    if training is None:
        return "No metrics.json of the training was found beside the sweep."
    if not training.smoothed:
        return "The training logged its losses in parts only."
    (first, start), *_, (last, end) = [training.smoothed[0], *training.smoothed]
    return (
        f"The total loss went from {start:.2f} to {end:.2f} between iterations {first:,.0f} and "
        f"{last:,.0f} (running mean)."
    )


def _samples_html(samples: Samples, marker_ids: Mapping[str, str]) -> str:
    heads = []
    for column in samples.columns:
        marker = marker_html(marker_ids[column.kind]) if column.kind in marker_ids else ""
        heads.append(
            f"<li>{marker}<strong>{escaped(column.title)}</strong> {escaped(column.caption)}</li>"
        )
    rows = []
    for row in samples.rows:
        figures = "".join(map(_figure, samples.columns, row.pictures))
        rows.append(f'<h3>{escaped(row.file_name)}</h3><div class="pictures">{figures}</div>')
    rows.append('<p class="note needs-script hint">A click on a picture enlarges it.</p>')
    return f'<ul class="columns">{"".join(heads)}</ul>{"".join(rows)}'


def _figure(column: SampleColumn, picture: SamplePicture) -> str:
    return (
        f'<figure><img src="data:image/webp;base64,{base64.b64encode(picture.webp).decode()}" '
        f'width="{picture.width}" height="{picture.height}" '
        f'alt="{escaped(column.title)}: {escaped(picture.text)}">'
        f"<figcaption>{escaped(column.title)}</figcaption></figure>"
    )
