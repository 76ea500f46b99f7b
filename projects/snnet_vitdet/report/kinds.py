"""Colours, markers and names of the kinds of stitches in pictures and pages."""

from collections.abc import Iterable

__all__ = ["ANCHORS", "kind_label", "kind_styles"]

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


def kind_styles(kinds: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker by kind, in the order of the legend."""
    present = dict.fromkeys(kinds)
    known = {kind: style for kind, style in _STYLES.items() if kind in present}
    others = [kind for kind in present if kind not in _STYLES]
    return known | {
        kind: _SPARE_STYLES[index % len(_SPARE_STYLES)] for index, kind in enumerate(others)
    }


def kind_label(kind: str) -> str:
    """The kind in words. In walks, S means slow: the large anchor, unlike in the kind S itself."""
    if kind in ANCHORS or not set(kind) <= set(_SIZES):
        return ANCHORS.get(kind, kind)
    return "→".join(_SIZES[letter] for letter in kind)
