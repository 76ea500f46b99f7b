"""Selections of stitches: the ids they name; wrong ones are an InputError."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from snnet_vitdet.errors import InputError
from snnet_vitdet.stitching import StitchSpace, select_stitches

# Ids: S 0, L 1, FS 2-4, SF 5-7, SFS 8-10, FSF 11-13.
SPACE = StitchSpace((4, 8))


@pytest.mark.parametrize(
    ("selection", "ids"),
    [
        ("all", list(range(14))),
        ("anchors", [0, 1]),
        (3, [3]),
        (0, [0]),
        ("13", [13]),
        ("007", [7]),
        ("S", [0]),
        ("L", [1]),
        ("FS", [2, 3, 4]),
        ("SFS", [8, 9, 10]),
        ("FS-3", [4]),
        ("FSF-1-3", [12]),
        ("2-5", [2, 3, 4, 5]),
        ("2 - 5", [2, 3, 4, 5]),
        ("4-4", [4]),
        ("0-13", list(range(14))),
        ("0-2,12", [0, 1, 2, 12]),
        (" anchors , 3 ,SF ", [0, 1, 3, 5, 6, 7]),
        ([5, 1, "1-2", "SFS-2-3"], [1, 2, 5, 10]),
        (["anchors,7", 12], [0, 1, 7, 12]),
        ((1, 1, "1"), [1]),
        ("all,3", list(range(14))),
        ("3,", [3]),
    ],
)
def test_a_selection_names_these_ids_ascending_without_repeats(selection, ids):
    assert select_stitches(selection, SPACE) == ids


def test_kinds_and_anchors_follow_the_space():
    space = StitchSpace((4, 8), kinds=("L", "SF"))
    assert select_stitches("anchors", space) == [0]
    assert select_stitches("SF", space) == [1, 2, 3]
    with pytest.raises(InputError, match=r"unknown stitch 'FS'.* kinds of \['L', 'SF'\]"):
        select_stitches("FS", space)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ("", "no stitch is selected: give 'all', 'anchors', ids such as 3"),
        (" , ", "no stitch is selected"),
        ([], "no stitch is selected"),
        (14, r"stitch '14' is outside this model's space: ids go from 0 to 13"),
        ("3,99", r"stitch '99' is outside this model's space: ids go from 0 to 13"),
        ("12-14", r"stitch '12-14' is outside this model's space"),
        ("5-2", r"stitch range '5-2' runs backwards: write '2-5'"),
        (-1, r"unknown stitch '-1'.* ids 0 to 13"),
        ("FS-4", r"unknown stitch 'FS-4' \(did you mean 'FS-\d'\?\): use 'all'"),
        ("SFS-2-1", r"unknown stitch 'SFS-2-1' \(did you mean 'SFS-"),
        ("everything", r"unknown stitch 'everything': use 'all', 'anchors', ids 0 to 13, ranges"),
        ("0..3", r"unknown stitch '0\.\.3'"),
        ("1.5", r"unknown stitch '1\.5'"),
    ],
)
def test_a_part_that_names_nothing_is_an_error_that_says_which(selection, message):
    with pytest.raises(InputError, match=message):
        select_stitches(selection, SPACE)


texts = (
    st.text()
    | st.from_regex(re.compile(r"[0-9FSLal,.;:_ +-]{0,12}", re.ASCII), fullmatch=True)
    | st.text(st.characters(categories=["Nd"]))
)
anything = st.recursive(
    texts | st.none() | st.booleans() | st.integers() | st.floats() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=5,
)


@given(texts | anything, st.sampled_from([SPACE, StitchSpace((6, 6), kinds=("SF", "L", "FSF"))]))
@example("9" * 5000, SPACE)  # more digits than Python turns into a number
@example(f"0-{'9' * 5000}", SPACE)
@example("²", SPACE)  # a digit, but no decimal one
@example("0-٣", SPACE)
@example("--", SPACE)
@example(None, SPACE)
@example(1.0, SPACE)
@example(b"01", SPACE)
def test_anything_gives_ids_or_an_input_error(selection, space):
    try:
        ids = select_stitches(selection, space)
    except InputError as error:
        assert str(error)
    else:
        assert ids and ids == sorted(set(ids))
        assert ids[0] >= 0 and ids[-1] < len(space)
