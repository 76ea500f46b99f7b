"""Selections such as ``"anchors,0-12,FS-3"``: what they name; nonsense is an InputError."""

import re

from hypothesis import example, given
from hypothesis import strategies as st

from snnet_vitdet.errors import InputError
from snnet_vitdet.stitching import StitchSpace, select_stitches

SPACES = [
    StitchSpace((4, 8)),
    StitchSpace((1, 3)),
    StitchSpace((5, 7), max_cuts=3),
    StitchSpace((6, 6), kinds=("SF", "L", "FSF")),
]
spaces = st.sampled_from(SPACES)
blanks = st.text(" \t\n", max_size=2)


@st.composite
def parts(draw, space):
    """One part of a selection, and the ids it names."""
    first, last = sorted(draw(st.tuples(*[st.integers(0, len(space) - 1)] * 2)))
    kind = draw(st.sampled_from(space.kinds))
    before, after = draw(blanks), draw(blanks)
    zeros = "0" * draw(st.integers(0, 2))
    return draw(
        st.sampled_from(
            [
                ("all", set(range(len(space)))),
                ("anchors", {s.id for s in space if s.kind in ("S", "L")}),
                (f"{zeros}{first}", {first}),
                (f"{first}{before}-{after}{zeros}{last}", set(range(first, last + 1))),
                (space[first].name, {first}),
                (kind, {s.id for s in space if s.kind == kind}),
                ("", set()),
            ]
        )
    )


@st.composite
def selections(draw):
    """A space, parts of a selection, and all the ids they name."""
    space = draw(spaces)
    drawn = draw(st.lists(parts(space), min_size=1, max_size=6))
    return space, [text for text, _ in drawn], set().union(*(ids for _, ids in drawn))


@given(selections(), blanks, st.data())
def test_mixtures_name_the_union_of_their_parts_whatever_the_blanks(selection, blank, data):
    space, texts, ids = selection
    if not ids:
        return
    joined = f"{blank},{blank}".join(texts)
    assert select_stitches(f"{blank}{joined}{blank}", space) == sorted(ids)
    assert select_stitches(texts, space) == sorted(ids)
    split = data.draw(st.integers(0, len(texts)))
    two_texts = [",".join(texts[:split]), ",".join(texts[split:])]
    assert select_stitches(two_texts, space) == sorted(ids)


def assert_ids_or_an_input_error(selection, space):
    try:
        ids = select_stitches(selection, space)
    except InputError as error:
        assert str(error)
        return
    assert ids and ids == sorted(set(ids))
    assert ids[0] >= 0 and ids[-1] < len(space)


near_misses = st.from_regex(re.compile(r"[0-9FSLal,.;:_ +-]{0,12}", re.ASCII), fullmatch=True)


@given(
    st.text() | near_misses | st.text("0123456789-, ") | st.text(st.characters(categories=["Nd"])),
    spaces,
)
@example("9" * 5000, SPACES[0])  # more digits than Python turns into a number
@example(f"0-{'9' * 5000}", SPACES[0])
@example("²", SPACES[0])  # a digit, but no decimal one
@example("0-٣", SPACES[0])
@example("--", SPACES[0])
@example("\x00", SPACES[0])
def test_any_text_gives_ids_or_an_input_error(text, space):
    assert_ids_or_an_input_error(text, space)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=5,
)


@given(anything, spaces)
@example(None, SPACES[0])
@example(1.0, SPACES[0])
@example(b"01", SPACES[0])
def test_anything_else_gives_ids_or_an_input_error(selection, space):
    assert_ids_or_an_input_error(selection, space)
