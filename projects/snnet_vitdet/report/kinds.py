"""Colours, markers and names of the kinds of stitches in pictures and pages."""

import math
from collections.abc import Iterable

from snnet_vitdet.evaluation.results import Row, as_trained

__all__ = ["ANCHORS", "MARKERS", "is_anchor", "kind_label", "kind_styles"]

ANCHORS = {"S": "small anchor", "L": "large anchor"}
"""The kinds that are a single ViT."""

_SIZES = {"S": "large", "F": "small"}

# Okabe and Ito's palette, which is safe for all kinds of colour vision. The markers (matplotlib's
# names) tell the kinds apart in black and white.
_STYLES = {
    "S": ("#0072B2", "*"),
    "L": ("#D55E00", "*"),
    "FS": ("#E69F00", "^"),
    "SF": ("#56B4E9", "v"),
    "SFS": ("#009E73", "o"),
    "FSF": ("#CC79A7", "s"),
}
# For walks with more cuts than the paper's two.
_SPARE_STYLES = (("#8C6D31", "D"), ("#5C5C8A", "P"), ("#7F7F7F", "X"), ("#A6761D", "p"))


def _star() -> str:
    corners = [(r, math.pi * i / 5) for i, r in enumerate([11.5, 4.9] * 5)]
    return " ".join(f"{r * math.sin(a):.2f},{-r * math.cos(a):.2f}" for r, a in corners)


MARKERS = {
    "*": f'<polygon points="{_star()}"/>',
    "^": '<polygon points="0,-6.4 6,4.6 -6,4.6"/>',
    "v": '<polygon points="0,6.4 6,-4.6 -6,-4.6"/>',
    "o": '<circle r="5"/>',
    "s": '<rect x="-4.6" y="-4.6" width="9.2" height="9.2"/>',
    "D": '<polygon points="0,-6.4 6.4,0 0,6.4 -6.4,0"/>',
    "P": '<polygon points="-2,-6 2,-6 2,-2 6,-2 6,2 2,2 2,6 -2,6 -2,2 -6,2 -6,-2 -2,-2"/>',
    "X": '<polygon points="-5.6,-2.8 -2.8,-5.6 0,-2.8 2.8,-5.6 5.6,-2.8 2.8,0 5.6,2.8 2.8,5.6 '
    '0,2.8 -2.8,5.6 -5.6,2.8 -2.8,0"/>',
    "p": '<polygon points="0,-6 5.7,-1.9 3.5,4.9 -3.5,4.9 -5.7,-1.9"/>',
}
"""SVG of each marker around 0, 0, by matplotlib's name; the star alone has a larger area."""


def kind_styles(kinds: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker by kind, in the order of the legend."""
    present = dict.fromkeys(kinds)
    known = {kind: style for kind, style in _STYLES.items() if kind in present}
    others = [kind for kind in present if kind not in _STYLES]
    return known | {
        kind: _SPARE_STYLES[index % len(_SPARE_STYLES)] for index, kind in enumerate(others)
    }


def is_anchor(row: Row) -> bool:
    """Whether a row is of a single ViT as trained; at another size, it is one of many points."""
    return row["kind"] in ANCHORS and as_trained(row)


def kind_label(kind: str) -> str:
    """The kind in words. In walks, S means slow: the large anchor, unlike in the kind S itself."""
    if kind in ANCHORS or not set(kind) <= set(_SIZES):
        return ANCHORS.get(kind, kind)
    return "→".join(_SIZES[letter] for letter in kind)
