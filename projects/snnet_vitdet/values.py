"""What single values may be, and the sentence for one that is not."""

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real

from snnet_vitdet.errors import InputError
from snnet_vitdet.text import shown

__all__ = [
    "FLAG",
    "PATH",
    "STITCHES",
    "TEXT",
    "Kind",
    "check",
    "is_number",
    "number",
    "numbers",
    "one_of",
    "or_null",
    "whole",
    "written",
]

Kind = Callable[[object], str]
"""Says of a value what it must be instead; nothing if it is that already."""

# Beyond this, numbers do not fit where libraries keep them.
_MOST = 2**31 - 1
_LARGEST = 1e18


def check(key: str, value: object, kind: Kind) -> None:
    """Checks a value.

    Args:
        key: Its name in the config.
        value: The value.
        kind: What it may be.

    Raises:
        InputError: If it is anything else.
    """
    if must_be := kind(value):
        raise InputError(f"{key}={written(value)} must be {must_be}")


def written(value: object) -> str:
    """A value as it is written in an override; never long."""
    if value is None:
        return "null"
    text = str(value) if isinstance(value, str | bool | Real) else _in_config(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _in_config(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence):
        return f"[{', '.join(written(item) for item in value)}]"
    return shown(value)


def is_number(value: object) -> bool:
    """Whether a value is a finite number; True and False are none."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def whole(lowest: int, highest: int = _MOST) -> Kind:
    """Whole numbers, both ends included."""

    def must_be(value: object) -> str:
        if type(value) is not int or value < lowest:
            return f"a whole number of at least {lowest}"
        return f"a whole number of at most {highest}" if value > highest else ""

    return must_be


def number(
    lowest: float | None = None,
    highest: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
) -> Kind:
    """Finite numbers, which may have decimals.

    Args:
        lowest: The lowest that is allowed.
        highest: The highest that is allowed; what does not fit into 64 bits never is.
        above: What it must be more than.
        below: What it must be less than.
    """
    ends = {"of at least": lowest, "of at most": highest, "above": above, "below": below}
    given = " and ".join(f"{end} {limit:g}" for end, limit in ends.items() if limit is not None)
    what = f"a number {given}" if given else "a finite number"

    def must_be(value: object) -> str:
        fits = (
            is_number(value)
            and abs(value) <= _LARGEST
            and (lowest is None or value >= lowest)
            and (highest is None or value <= highest)
            and (above is None or value > above)
            and (below is None or value < below)
        )
        return "" if fits else what

    return must_be


def numbers(count: int, kind: Kind) -> Kind:
    """Lists of so many numbers of a kind."""

    def must_be(value: object) -> str:
        fits = _is_list(value) and len(value) == count and not any(map(kind, value))
        return "" if fits else f"a list of {count}, each {kind(None)}"

    return must_be


def one_of(*values: object) -> Kind:
    """These values alone."""
    return lambda value: "" if value in values else f"one of {list(values)}"


def or_null(kind: Kind) -> Kind:
    """What is of a kind, or null."""

    def must_be(value: object) -> str:
        wrong = "" if value is None else kind(value)
        return f"{wrong}, or null" if wrong else ""

    return must_be


def FLAG(value: object) -> str:  # noqa: N802  (as the other kinds without parameters)
    """True or False."""
    return "" if isinstance(value, bool) else "true or false"


def TEXT(value: object) -> str:  # noqa: N802
    """A text; it may be empty."""
    return "" if isinstance(value, str) else "a text"


def PATH(value: object) -> str:  # noqa: N802
    """Where a file or a folder is."""
    return "" if isinstance(value, str) and value.strip() else "a path"


def STITCHES(value: object) -> str:  # noqa: N802
    """A selection of stitches, see :func:`snnet_vitdet.stitching.select_stitches`."""
    items = value if _is_list(value) else [value]
    fits = items and all(type(item) is int or (isinstance(item, str) and item) for item in items)
    return "" if fits else "ids, names or ranges of stitches, such as 'all' or '0-12,40'"


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
