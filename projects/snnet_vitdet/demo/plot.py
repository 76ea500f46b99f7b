"""The stitches as an SVG plot with one of them marked, fast enough to follow a slider."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from matplotlib.ticker import MaxNLocator

from snnet_vitdet.evaluation import pareto_front
from snnet_vitdet.evaluation.results import Row, counted_points
from snnet_vitdet.report.kinds import ANCHORS, MARKERS, is_anchor, kind_label, kind_styles
from snnet_vitdet.text import escaped

__all__ = ["amount", "plot_svg"]

# Units of the picture; pages scale it, and its text with it.
_WIDTH, _HEIGHT = 460, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, _WIDTH - 14, 16, _HEIGHT - 44
# Of more points, only the frontier has markers: a plot is sent at each step of a slider.
_CROWD = 1000


def plot_svg(
    points: Sequence[tuple[Row, float, float]],
    x_label: str,
    y_label: str,
    chosen: str | None = None,
    limit: float | None = None,
    frontier: bool = True,
) -> str:
    """Draws all points, with a legend below.

    Each kind has its own colour; everything else has the page's (``currentColor``). Of thousands of
    points, those off the frontier are pale dots without a name.

    Args:
        points: At least one point: its row, cost and score.
        x_label: Label of the cost axis.
        y_label: Label of the score axis.
        chosen: Name of the point to mark.
        limit: Limit of the cost, drawn as a line.
        frontier: Whether to draw the Pareto frontier.

    Returns:
        HTML.
    """
    rows, costs, scores = zip(*points, strict=True)
    x_of, x_ticks = _scale(costs, _LEFT, _RIGHT, 6)
    y_of, y_ticks = _scale(scores, _BOTTOM, _TOP, 5)
    kinds = [row["kind"] for row in rows]
    styles = kind_styles(kinds)
    said = f"{counted_points([row['name'] for row in rows])}, {y_label} over {x_label}"
    marked = next((point for point in points if point[0]["name"] == chosen), None)
    if marked:
        row, x, y = marked
        said += f"; chosen: {row['name']} with {amount(y)} at {amount(x)}"
    parts = [
        f'<svg class="snnet-plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escaped(said)}"><defs>',
        *(
            f'<g id="snnet-{kind}" fill="{colour}" transform="scale(0.85)">{MARKERS[marker]}</g>'
            for kind, (colour, marker) in styles.items()
        ),
        "</defs>",
        *_axes(x_ticks, y_ticks, x_label, y_label),
    ]
    if limit is not None:
        at = min(max(x_of(limit), _LEFT), _RIGHT)
        parts += [
            f'<rect class="beyond" x="{at:.1f}" y="{_TOP}" width="{_RIGHT - at:.1f}" '
            f'height="{_BOTTOM - _TOP}"/>',
            f'<path class="limit" d="M{at:.1f} {_TOP}V{_BOTTOM}"/>',
        ]
    on = pareto_front(costs, scores)
    with_marker = points
    if len(points) > _CROWD:
        with_marker = [
            point for point, is_on in zip(points, on, strict=True) if is_on or is_anchor(point[0])
        ]
        for kind, (colour, _) in styles.items():
            dots = "".join(
                f"M{x_of(x):.1f} {y_of(y):.1f}h0" for row, x, y in points if row["kind"] == kind
            )
            parts.append(f'<path class="dots" stroke="{colour}" d="{dots}"/>')
    if frontier:
        corners = sorted(p[1:] for p, is_on in zip(points, on, strict=True) if is_on)
        # In steps: a budget between two points buys what the cheaper one gives.
        steps = "".join(f"H{x_of(x):.1f}V{y_of(y):.1f}" for x, y in corners[1:])
        start = f"M{x_of(corners[0][0]):.1f} {y_of(corners[0][1]):.1f}"
        parts.append(f'<path class="frontier" d="{start}{steps}"/>')
    # Rare kinds are drawn last, above the others.
    for row, x, y in sorted(with_marker, key=lambda point: -kinds.count(point[0]["kind"])):
        title = f"{row['name']} ({kind_label(row['kind'])}): {amount(y)} at {amount(x)}"
        place = f"{x_of(x):.1f} {y_of(y):.1f}"
        # A star is larger than other markers, and a ViT at another size is one of many points.
        is_small = row["kind"] in ANCHORS and not is_anchor(row)
        scale = f'transform="scale(0.55)" transform-origin="{place}" ' if is_small else ""
        parts.append(
            f'<use href="#snnet-{row["kind"]}" x="{x_of(x):.1f}" y="{y_of(y):.1f}" {scale}'
            f'data-stitch="{escaped(row["name"])}">'
            f"<title>{escaped(title)}</title></use>"
        )
    if marked:
        parts += _mark(marked[0]["name"], x_of(marked[1]), y_of(marked[2]))
    parts.append("</svg>")
    return "".join(parts) + _legend(styles)


def amount(value: float) -> str:
    """A cost or score with three digits, or with all digits before the point."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _scale(
    values: Sequence[float], start: float, end: float, num_ticks: int
) -> tuple[Callable[[float], float], list[tuple[float, float]]]:
    """A linear map from values to places, with a margin; and ticks, each with its place."""
    low, high = min(values), max(values)
    margin = 0.06 * (high - low)
    ticks = MaxNLocator(num_ticks, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    ticks = [float(tick) for tick in ticks if low - margin <= tick <= high + margin]
    margin = margin or 1.0
    low, high = low - margin, high + margin

    def place_of(value: float) -> float:
        return start + (value - low) / (high - low) * (end - start)

    return place_of, [(tick, place_of(tick)) for tick in ticks]


def _axes(
    x_ticks: list[tuple[float, float]],
    y_ticks: list[tuple[float, float]],
    x_label: str,
    y_label: str,
) -> Iterator[str]:
    for tick, x in x_ticks:
        yield f'<path class="grid" d="M{x:.1f} {_TOP}V{_BOTTOM}"/>'
        yield f'<text x="{x:.1f}" y="{_BOTTOM + 16}" text-anchor="middle">{tick:g}</text>'
    for tick, y in y_ticks:
        yield f'<path class="grid" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
    yield f'<path class="axis" d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}"/>'
    for label, place in (
        (x_label, f"translate({(_LEFT + _RIGHT) / 2} {_HEIGHT - 8})"),
        (y_label, f"translate(13 {(_TOP + _BOTTOM) / 2}) rotate(-90)"),
    ):
        yield f'<text transform="{place}" text-anchor="middle">{escaped(label)}</text>'


def _mark(name: str, x: float, y: float) -> list[str]:
    left = x > _WIDTH / 2
    text_x = x - 15 if left else x + 15
    # Above the ring, or below it at the top of the plot: never over an axis.
    text_y = y + 20 if y < _HEIGHT / 3 else y - 12
    return [
        f'<circle class="ring halo" cx="{x:.1f}" cy="{y:.1f}" r="10"/>',
        f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="10"/>',
        f'<text class="chosen" x="{text_x:.1f}" y="{text_y:.1f}" '
        f'text-anchor="{"end" if left else "start"}">{escaped(name)}</text>',
    ]


def _legend(styles: Mapping[str, tuple[str, str]]) -> str:
    items = "".join(
        f'<li><svg viewBox="-11 -11 22 22" aria-hidden="true"><g fill="{colour}">'
        f"{MARKERS[marker]}</g></svg><b>{escaped(kind)}</b> {escaped(kind_label(kind))}</li>"
        for kind, (colour, marker) in styles.items()
    )
    return f'<ul class="snnet-legend">{items}</ul>'
