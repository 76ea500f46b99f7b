"""Checks of single values of a config."""

import math
from numbers import Real

from snnet_vitdet.errors import InputError

__all__ = ["check_number", "check_whole_number"]


def check_whole_number(key: str, value: object, lowest: int, highest: int | None = None) -> None:
    """Checks a count.

    Args:
        key: Name of the value in the config.
        value: The value; True and False are no numbers.
        lowest: The lowest that is allowed.
        highest: The highest that is allowed, if there is one.

    Raises:
        InputError: If it is no whole number, too low or too high.
    """
    if type(value) is not int or value < lowest:
        raise InputError(f"{key}={value} must be a whole number of at least {lowest}")
    if highest is not None and value > highest:
        raise InputError(f"{key}={value} must be a whole number of at most {highest}")


def check_number(key: str, value: object, lowest: float) -> None:
    """Checks a number, which may have decimals.

    Args:
        key: Name of the value in the config.
        value: The value; True and False are no numbers.
        lowest: The lowest that is allowed.

    Raises:
        InputError: If it is no finite number, or too low.
    """
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < lowest:
        raise InputError(f"{key}={value} must be a number of at least {lowest:g}")
