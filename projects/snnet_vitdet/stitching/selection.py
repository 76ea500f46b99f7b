"""Selections of stitches: ``all``, ``anchors``, ids, names, kinds, ranges, and lists of these."""

import difflib
import re
from collections.abc import Iterable

from snnet_vitdet.errors import InputError

from .space import StitchSpace

__all__ = ["select_stitches"]

_RANGE = re.compile(r"^(\d+)\s*-\s*(\d+)$")


def select_stitches(selection: str | int | Iterable[str | int], space: StitchSpace) -> list[int]:
    """The stitch ids of a selection, ascending and without duplicates.

    Args:
        selection: ``"all"``, ``"anchors"``, an id, a name (``"FS-3"``), a kind (``"SFS"``), an
            inclusive range (``"0-12"``), several of these separated by commas
            (``"anchors,0-12,40"``), or a list of any of these.
        space: The space the ids belong to.

    Raises:
        InputError: If a part names no stitch of the space; lists what there is.
    """
    if isinstance(selection, str | int):
        selection = [selection]
    elif isinstance(selection, bytes) or not isinstance(selection, Iterable):
        raise InputError(
            f"stitches are selected by text, an id or a list of these, not by {selection!r}"
        )
    parts: list[str] = []
    for item in selection:
        parts.extend(part.strip() for part in str(item).split(","))
    parts = [part for part in parts if part]
    if not parts:
        raise InputError(
            "no stitch is selected: give 'all', 'anchors', ids such as 3, or ranges such as "
            "'0-12,40'"
        )
    ids: set[int] = set()
    for part in parts:
        ids.update(_ids_of(part, space))
    return sorted(ids)


def _ids_of(part: str, space: StitchSpace) -> Iterable[int]:
    if part == "all":
        return range(len(space))
    if part == "anchors":
        return [stitch.id for stitch in space.anchors]
    # Before the names: "S" and "L" are kinds as well as names, and mean the same either way.
    if part in space.kinds:
        return [stitch.id for stitch in space if stitch.kind == part]
    if part.isdecimal():
        return [_checked(part, part, space)]
    match = _RANGE.match(part)
    if match:
        first, last = (_checked(digits, part, space) for digits in match.groups())
        if first > last:
            raise InputError(f"stitch range {part!r} runs backwards: write '{last}-{first}'")
        return range(first, last + 1)
    try:
        return [space[part].id]
    except KeyError:
        near = difflib.get_close_matches(part, [s.name for s in space], n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise InputError(
            f"unknown stitch {part!r}{hint}: use 'all', 'anchors', ids 0 to {len(space) - 1}, "
            f"ranges such as '0-12,40', kinds of {list(space.kinds)} or names such as "
            f"{space[len(space) - 1].name!r}"
        ) from None


def _checked(digits: str, part: str, space: StitchSpace) -> int:
    try:
        stitch_id = int(digits)
    except ValueError:  # more digits than Python converts
        stitch_id = len(space)
    if stitch_id >= len(space):
        raise InputError(
            f"stitch {part!r} is outside this model's space: ids go from 0 to {len(space) - 1}"
        )
    return stitch_id
