"""Checks of single values of a config."""

from snnet_vitdet.errors import InputError

__all__ = ["check_whole_number"]


def check_whole_number(key: str, value: object, lowest: int) -> None:
    """Checks a count.

    Args:
        key: Name of the value in the config.
        value: The value; True and False are no numbers.
        lowest: The lowest that is allowed.

    Raises:
        InputError: If it is no whole number, or too low.
    """
    if type(value) is not int or value < lowest:
        raise InputError(f"{key}={value} must be a whole number of at least {lowest}")
