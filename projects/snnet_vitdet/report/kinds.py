"""How pictures and pages show the kinds of stitches: colours, markers and words."""

from collections.abc import Iterable

__all__ = ["ANCHORS", "kind_label", "kind_styles"]

ANCHORS = {"S": "small anchor", "L": "large anchor"}
"""The kinds that are one ViT alone."""

_SIZES = {"S": "large", "F": "small"}

# Okabe and Ito's palette, which readers with any colour vision tell apart; the markers (named as
# matplotlib names them) say the same again for print.
_STYLES = {
    "S": ("#0072B2", "*"),
    "L": ("#D55E00", "*"),
    "FS": ("#E69F00", "^"),
    "SF": ("#56B4E9", "v"),
    "SFS": ("#009E73", "o"),
    "FSF": ("#CC79A7", "s"),
}
# Walks with more cuts than the paper's two have kinds of their own.
_SPARE_STYLES = (("#8C6D31", "D"), ("#5C5C8A", "P"), ("#7F7F7F", "X"), ("#A6761D", "p"))


def kind_styles(kinds: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The kinds in the legend's order, each with its colour and marker."""
    present = dict.fromkeys(kinds)
    known = {kind: style for kind, style in _STYLES.items() if kind in present}
    others = [kind for kind in present if kind not in _STYLES]
    return known | {
        kind: _SPARE_STYLES[index % len(_SPARE_STYLES)] for index, kind in enumerate(others)
    }


def kind_label(kind: str) -> str:
    """Spell a kind out; in walks, unlike in the anchors' own kinds, S is slow: the large anchor."""
    if kind in ANCHORS or not set(kind) <= set(_SIZES):
        return ANCHORS.get(kind, kind)
    return "→".join(_SIZES[letter] for letter in kind)
