"""Checks that turn the JSON of a stranger's file into values of known types and bounded sizes.

A check takes a value and what errors call it, and gives the value back, or what is made of it. It
raises InputError, whose sentence names the value, for whatever it does not know.
"""

import math
from collections.abc import Callable, Iterable, Mapping

from snnet_vitdet.errors import InputError

__all__ = [
    "Check",
    "fixed",
    "items_of",
    "number",
    "one_of",
    "optional",
    "record",
    "several",
    "text",
    "truth",
    "whole",
]

Check = Callable[[object, str], object]


def whole(least: int, most: int) -> Check:
    """An integer within bounds."""

    def check(value: object, where: str) -> int:
        if type(value) is not int or not least <= value <= most:
            raise _refusal(where, f"a whole number from {least} to {most}", value)
        return value

    return check


def number(least: float, most: float) -> Check:
    """An integer or a float within bounds, so it is finite."""

    def check(value: object, where: str) -> float:
        if type(value) not in (int, float) or not least <= value <= most:
            raise _refusal(where, f"a number from {least:g} to {most:g}", value)
        return value

    return check


def truth(value: object, where: str) -> bool:
    """True or False."""
    if type(value) is not bool:
        raise _refusal(where, "true or false", value)
    return value


def text(longest: int = 64) -> Check:
    """A text of so many characters at most, which can be written as UTF-8."""

    def check(value: object, where: str) -> str:
        if not isinstance(value, str) or len(value) > longest:
            raise _refusal(where, f"a text of {longest} characters or fewer", value)
        # Half of a pair of surrogates can stand in JSON, and no file or terminal takes it.
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise _refusal(where, "a text of whole characters", value)
        return value

    return check


def one_of(*allowed: object) -> Check:
    """One of some values; 1 is not True."""

    def check(value: object, where: str) -> object:
        if not any(type(value) is type(each) and value == each for each in allowed):
            raise _refusal(where, f"one of {', '.join(map(repr, allowed))}", value)
        return value

    return check


def optional(check: Check) -> Check:
    """What another check takes, or None."""
    return lambda value, where: None if value is None else check(value, where)


def several(check: Check, least: int, most: int) -> Check:
    """A list of so many values, each of which another check takes."""

    def check_all(value: object, where: str) -> list:
        if not isinstance(value, list) or not least <= len(value) <= most:
            count = least if least == most else f"{least} to {most}"
            raise _refusal(where, f"a list of {count} values", value)
        return [check(each, f"{where}[{index}]") for index, each in enumerate(value)]

    return check_all


def fixed(*checks: Check) -> Check:
    """A list of as many values as there are checks, each by its own."""

    def check_each(value: object, where: str) -> list:
        values = several(lambda each, _: each, len(checks), len(checks))(value, where)
        both = enumerate(zip(checks, values, strict=True))
        return [check(each, f"{where}[{index}]") for index, (check, each) in both]

    return check_each


def items_of(value: object, where: str, known: Iterable[str]) -> Mapping[str, object]:
    """A JSON object with no other keys than those that are known.

    Raises:
        InputError: If it is none, or has others.
    """
    if not isinstance(value, dict):
        raise _refusal(where, "an object with keys", value)
    if unknown := sorted(set(value) - set(known)):
        raise InputError(f"{where} has the unknown key {_shown(unknown[0])}")
    return value


def record(fields: Mapping[str, Check], optional_keys: Iterable[str] = ()) -> Check:
    """A JSON object with these keys and no others, each value by the check of its key."""
    needed = set(fields) - set(optional_keys)

    def check(value: object, where: str) -> dict[str, object]:
        items = items_of(value, where, fields)
        if missing := sorted(needed - set(items)):
            raise InputError(f"{where} does not have the key {missing[0]!r}")
        return {key: fields[key](each, f"{where}.{key}") for key, each in items.items()}

    return check


def _refusal(where: str, wanted: str, value: object) -> InputError:
    return InputError(f"{where} must be {wanted}, got {_shown(value)}")


def _shown(value: object) -> str:
    """A value of any size and depth in a few words."""
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    if isinstance(value, str):
        return ascii(value if len(value) <= 40 else f"{value[:40]}…")
    if type(value) is int and abs(value) >= 10**12:
        return f"an integer of {math.ceil(value.bit_length() * math.log10(2))} digits"
    return repr(value)
