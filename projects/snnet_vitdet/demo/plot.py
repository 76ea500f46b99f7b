"""The stitches as an SVG plot with one of them marked, fast enough to follow a slider."""

from collections.abc import Callable, Iterator, Sequence

from matplotlib.markers import MarkerStyle
from matplotlib.ticker import MaxNLocator

from snnet_vitdet.evaluation import pareto_front
from snnet_vitdet.report.kinds import ANCHORS, kind_label, kind_styles
from snnet_vitdet.text import counted, escaped

from .choices import Point

__all__ = ["amount", "plot_svg"]

# Units of the picture; pages scale it, and its text with it.
_WIDTH, _HEIGHT = 460, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 14, 16, 44


def plot_svg(
    points: Sequence[Point],
    x_label: str,
    y_label: str,
    chosen: int | None = None,
    limit: float | None = None,
    frontier: bool = True,
) -> str:
    """Draws all points, with a legend below.

    Kinds have their own colours; all else has the page's (``currentColor``).

    Args:
        points: At least one.
        x_label: Label of the cost axis.
        y_label: Label of the score axis.
        chosen: Id of the stitch to mark.
        limit: Limit of the cost, drawn as a line.
        frontier: Whether to draw the Pareto frontier.

    Returns:
        HTML.
    """
    x_of, x_ticks = _scale([p.x for p in points], _LEFT, _WIDTH - _RIGHT, 6)
    y_of, y_ticks = _scale([p.y for p in points], _HEIGHT - _BOTTOM, _TOP, 5)
    styles = kind_styles(p.kind for p in points)
    marked = next((p for p in points if p.id == chosen), None)
    said = f"{counted(len(points), 'stitch', 'stitches')}, {y_label} over {x_label}"
    if marked:
        said += f"; chosen: {marked.name} with {amount(marked.y)} at {amount(marked.x)}"
    parts = [
        f'<svg class="snnet-plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escaped(said)}">',
        "<defs>",
        *(f'<path id="snnet-{kind}" d="{_shape(kind, style)}"/>' for kind, style in styles.items()),
        "</defs>",
        *_axes(x_ticks, y_ticks, x_label, y_label),
    ]
    if limit is not None:
        at = min(max(x_of(limit), _LEFT), _WIDTH - _RIGHT)
        height = _HEIGHT - _BOTTOM - _TOP
        parts += [
            f'<rect class="beyond" x="{at:.1f}" y="{_TOP}" width="{_WIDTH - _RIGHT - at:.1f}" '
            f'height="{height}"/>',
            f'<path class="limit" d="M{at:.1f} {_TOP}v{height}"/>',
        ]
    if frontier:
        parts.append(f'<path class="frontier" d="{_frontier(points, x_of, y_of)}"/>')
    # Rare kinds are drawn last, above the others.
    count = {kind: sum(p.kind == kind for p in points) for kind in styles}
    for point in sorted(points, key=lambda p: -count[p.kind]):
        title = f"{point.name} ({kind_label(point.kind)}): {amount(point.y)} at {amount(point.x)}"
        parts.append(
            f'<use href="#snnet-{point.kind}" x="{x_of(point.x):.1f}" y="{y_of(point.y):.1f}" '
            f'fill="{styles[point.kind][0]}" data-stitch="{point.name}">'
            f"<title>{escaped(title)}</title></use>"
        )
    if marked:
        parts += _mark(marked, x_of(marked.x), y_of(marked.y))
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


def _shape(kind: str, style: tuple[str, str], radius: float | None = None) -> str:
    """Path of a kind's marker around 0, 0."""
    marker = MarkerStyle(style[1])
    outline = marker.get_path().transformed(marker.get_transform())
    radius = radius or (10.0 if kind in ANCHORS else 4.5)
    corners = outline.to_polygons()[0]
    size = max(abs(corners).max(), 1e-9)
    return "M" + "L".join(f"{radius * x / size:.2f} {-radius * y / size:.2f}" for x, y in corners)


def _axes(
    x_ticks: list[tuple[float, float]],
    y_ticks: list[tuple[float, float]],
    x_label: str,
    y_label: str,
) -> Iterator[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for tick, x in x_ticks:
        yield f'<path class="grid" d="M{x:.1f} {_TOP}V{bottom}"/>'
        yield f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>'
    for tick, y in y_ticks:
        yield f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
    yield f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>'
    for label, place in (
        (x_label, f"translate({(_LEFT + right) / 2} {_HEIGHT - 8})"),
        (y_label, f"translate(13 {(_TOP + bottom) / 2}) rotate(-90)"),
    ):
        yield f'<text transform="{place}" text-anchor="middle">{escaped(label)}</text>'


def _frontier(points, x_of, y_of) -> str:
    on = pareto_front([p.x for p in points], [p.y for p in points])
    corners = sorted((p.x, p.y) for p, is_on in zip(points, on, strict=True) if is_on)
    # In steps: a budget between two points buys what the cheaper one gives.
    path = f"M{x_of(corners[0][0]):.1f} {y_of(corners[0][1]):.1f}"
    return path + "".join(f"H{x_of(x):.1f}V{y_of(y):.1f}" for x, y in corners[1:])


def _mark(point: Point, x: float, y: float) -> list[str]:
    left = x > _WIDTH / 2
    text_x = x - 15 if left else x + 15
    # Above the ring, or below it at the top of the plot: never over an axis.
    text_y = y + 20 if y < _HEIGHT / 3 else y - 12
    return [
        f'<circle class="ring halo" cx="{x:.1f}" cy="{y:.1f}" r="10"/>',
        f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="10"/>',
        f'<text class="chosen" x="{text_x:.1f}" y="{text_y:.1f}" '
        f'text-anchor="{"end" if left else "start"}">{escaped(point.name)}</text>',
    ]


def _legend(styles) -> str:
    items = "".join(
        f'<li><svg viewBox="-8 -8 16 16" aria-hidden="true"><path fill="{style[0]}" '
        f'd="{_shape(kind, style, radius=7)}"/></svg><b>{escaped(kind)}</b> '
        f"{escaped(kind_label(kind))}</li>"
        for kind, style in styles.items()
    )
    return f'<ul class="snnet-legend">{items}</ul>'
