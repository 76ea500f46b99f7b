"""Validators of single values, and the sentence for a value that is not allowed."""

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
    "Validator",
    "check",
    "is_number",
    "number",
    "numbers",
    "one_of",
    "or_null",
    "several",
    "whole",
    "written",
]

Validator = Callable[[object], str]
"""Returns what a value must be; an empty text if the value is allowed."""

# Libraries keep whole numbers in 32 bits and others in 64 bits; larger ones do not fit.
_MOST = 2**31 - 1
_LARGEST = 1e18


def check(key: str, value: object, validator: Validator) -> None:
    """Checks a value.

    Args:
        key: Name of the value in the config.
        value: The value.
        validator: The validator of the value.

    Raises:
        InputError: If the value is not allowed.
    """
    if must_be := validator(value):
        raise InputError(f"{key}={written(value)} must be {must_be}")


def written(value: object) -> str:
    """A value as an override writes it, cut after 200 characters."""
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
    """Whether a value is a finite number; True and False are not numbers."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond the range of float
        return False


def whole(lowest: int, highest: int = _MOST) -> Validator:
    """Allows whole numbers from ``lowest`` to ``highest``, both included."""

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
) -> Validator:
    """Allows finite numbers that fit into 64 bits.

    Args:
        lowest: Lowest number that is allowed.
        highest: Highest number that is allowed.
        above: The number must be greater than this.
        below: The number must be less than this.
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


def numbers(count: int, validator: Validator) -> Validator:
    """Allows lists of ``count`` numbers that a validator allows."""

    def must_be(value: object) -> str:
        fits = _is_list(value) and len(value) == count and not any(map(validator, value))
        return "" if fits else f"a list of {count}, each {validator(None)}"

    return must_be


def several(validator: Validator, repeated: bool = False) -> Validator:
    """Allows lists of one or more values that a validator allows.

    Args:
        validator: The validator of a value.
        repeated: Whether a value may be there more than once.
    """

    def must_be(value: object) -> str:
        wrong = next(filter(None, map(validator, value)), "") if _is_list(value) else ""
        if not wrong and _is_list(value) and value and (repeated or len({*value}) == len(value)):
            return ""
        return (
            f"a list of {'' if repeated else 'different '}values, each {wrong or validator(None)}"
        )

    return must_be


def one_of(*values: object) -> Validator:
    """Allows these values."""
    return lambda value: "" if value in values else f"one of {list(values)}"


def or_null(validator: Validator) -> Validator:
    """Allows null and what a validator allows."""

    def must_be(value: object) -> str:
        wrong = "" if value is None else validator(value)
        return f"{wrong}, or null" if wrong else ""

    return must_be


def FLAG(value: object) -> str:  # noqa: N802  (a constant, like the other validators)
    """Allows True and False."""
    return "" if isinstance(value, bool) else "true or false"


def TEXT(value: object) -> str:  # noqa: N802
    """Allows texts, the empty text included."""
    return "" if isinstance(value, str) else "a text"


def PATH(value: object) -> str:  # noqa: N802
    """Allows texts that are not empty."""
    return "" if isinstance(value, str) and value.strip() else "a path"


def STITCHES(value: object) -> str:  # noqa: N802
    """Allows the types that :func:`snnet_vitdet.stitching.select_stitches` takes."""
    items = value if _is_list(value) else [value]
    fits = items and all(type(item) is int or (isinstance(item, str) and item) for item in items)
    return "" if fits else "ids, names or ranges of stitches, such as 'all' or '0-12,40'"


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
