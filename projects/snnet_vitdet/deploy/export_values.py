"""Checks that turn JSON from an untrusted file into values of known types and bounded sizes.

A check takes a value and its name for error messages. It returns the value, or what is made of it,
and raises InputError with a sentence that names the value for anything else.
"""

from collections.abc import Callable, Iterable, Mapping

from snnet_vitdet.errors import InputError
from snnet_vitdet.text import shown

__all__ = [
    "Check",
    "either",
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


def _check(wanted: str, accepts: Callable[[object], bool]) -> Check:
    def check(value: object, where: str) -> object:
        if not accepts(value):
            # Lists may be deep: their values are not shown.
            found = f"a list of {len(value)}" if isinstance(value, list) else shown(value, 40)
            raise InputError(f"{where} must be {wanted}, got {found}")
        return value

    return check


def whole(least: int, most: int) -> Check:
    """An integer within bounds."""
    return _check(
        f"a whole number from {least} to {most}",
        lambda value: type(value) is int and least <= value <= most,
    )


def number(least: float, most: float) -> Check:
    """An integer or a float within bounds, so it is finite."""
    return _check(
        f"a number from {least:g} to {most:g}",
        lambda value: type(value) in (int, float) and least <= value <= most,
    )


def text(longest: int = 64) -> Check:
    """A string of at most ``longest`` characters.

    Half of a surrogate pair can stand in JSON, but no file or terminal takes it.
    """
    return _check(
        f"a text of {longest} characters or fewer",
        lambda value: (
            isinstance(value, str)
            and len(value) <= longest
            and not any("\ud800" <= character <= "\udfff" for character in value)
        ),
    )


def one_of(*allowed: object) -> Check:
    """One of some values; 1 is not True."""
    return _check(
        f"one of {', '.join(map(repr, allowed))}",
        lambda value: any(type(value) is type(each) and value == each for each in allowed),
    )


truth = one_of(True, False)


def optional(check: Check) -> Check:
    """What another check accepts, or None."""
    return lambda value, where: None if value is None else check(value, where)


def either(kind: type, first: Check, second: Check) -> Check:
    """The first check for values of a type, the second check for all others."""
    return lambda value, where: (first if isinstance(value, kind) else second)(value, where)


def several(check: Check, least: int, most: int) -> Check:
    """A list of ``least`` to ``most`` values, each of which another check accepts."""
    count = least if least == most else f"{least} to {most}"
    is_list = _check(
        f"a list of {count} values",
        lambda value: isinstance(value, list) and least <= len(value) <= most,
    )

    def check_all(value: object, where: str) -> list:
        return [check(each, f"{where}[{i}]") for i, each in enumerate(is_list(value, where))]

    return check_all


def fixed(*checks: Check) -> Check:
    """A list with one value for each of some checks."""
    is_list = several(lambda value, where: value, len(checks), len(checks))

    def check_each(value: object, where: str) -> list:
        pairs = zip(checks, is_list(value, where), strict=True)
        return [check(each, f"{where}[{i}]") for i, (check, each) in enumerate(pairs)]

    return check_each


def items_of(value: object, where: str, known: Iterable[str]) -> Mapping[str, object]:
    """A JSON object that has only known keys.

    Raises:
        InputError: If it is no object, or has other keys.
    """
    _check("an object with keys", lambda each: isinstance(each, dict))(value, where)
    if unknown := sorted(set(value) - set(known)):
        raise InputError(f"{where} has the unknown key {shown(unknown[0], 40)}")
    return value


def record(fields: Mapping[str, Check], optional_keys: Iterable[str] = ()) -> Check:
    """A JSON object with exactly these keys, each value by the check of its key."""
    needed = set(fields) - set(optional_keys)

    def check(value: object, where: str) -> dict[str, object]:
        items = items_of(value, where, fields)
        if missing := sorted(needed - set(items)):
            raise InputError(f"{where} does not have the key {missing[0]!r}")
        return {key: fields[key](each, f"{where}.{key}") for key, each in items.items()}

    return check
