"""Names from files, made safe to show on a screen, in a log, on a page or in a picture.

A class or a file can have any name. Control characters in it would move a terminal's cursor or
colour its text, and marks of direction would reverse the text beside it.
"""

import html
import logging
import unicodedata
from collections.abc import Sequence

__all__ = ["counted", "escaped", "listed", "log_neutrally", "neutral", "plot_text", "shown"]

# Control characters, lone halves of characters, and ends of lines and paragraphs.
_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")
# Marks of direction. Other characters without width belong to names: they join letters or emoji.
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def neutral(text: object, keep: str = "") -> str:
    r"""A text without control characters.

    >>> neutral("cat\x1b[31m\u202egpj.exe")
    'cat\\x1b[31m\\u202egpj.exe'

    Args:
        text: The text, or an object to convert to one.
        keep: Control characters to keep, such as ends of lines.

    Returns:
        The text with each control character escaped as in Python.
    """
    text = str(text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in keep or not _acts(c) else ascii(c)[1:-1] for c in text)


def shown(value: object, length: int = 80) -> str:
    """A value of a file for an error: as Python writes it, but short.

    Args:
        value: The value; of a list, the first twenty items are shown.
        length: Largest number of characters of each text.
    """
    if isinstance(value, list):
        rest = f", … ({len(value)} in all)" if len(value) > 20 else ""
        return f"[{', '.join(shown(item, length) for item in value[:20])}{rest}]"
    if isinstance(value, str):
        return repr(value if len(value) <= length else f"{value[:length]}…")
    if type(value) is int and value.bit_length() > 128:
        return f"a whole number of {value.bit_length()} bits"
    if type(value) in (int, float, bool, type(None)):
        return repr(value)
    return f"a {type(value).__name__}"


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first of many names, each cut to 200 characters, for an error."""
    names = [name if len(name) <= 200 else f"{name[:200]}…" for name in names[:most]] + (
        ["…"] if len(names) > most else []
    )
    return ", ".join(names)


def counted(count: int, one: str, many: str) -> str:
    """A number with its noun: "1 stitch", "134 stitches"."""
    return f"{count:,} {one if count == 1 else many}"


def escaped(text: object) -> str:
    """A text for HTML elements and quoted attributes, without control characters."""
    return html.escape(neutral(text))


def plot_text(text: object) -> str:
    """A text for matplotlib, which would read text between dollar signs as mathematics."""
    return neutral(text).replace("$", r"\$")


def log_neutrally(*packages: str) -> None:
    """Removes control characters from all log records of some packages, in every handler.

    Args:
        *packages: Names of the packages.
    """
    make = logging.getLogRecordFactory()

    def record(*args, **kwargs):
        made = make(*args, **kwargs)
        if any(f"{made.name}.".startswith(f"{package}.") for package in packages):
            made.msg, made.args = neutral(made.getMessage(), keep="\n\t"), ()
        return made

    logging.setLogRecordFactory(record)


def _acts(character: str) -> bool:
    return character in _DIRECTIONS or unicodedata.category(character) in _CATEGORIES
