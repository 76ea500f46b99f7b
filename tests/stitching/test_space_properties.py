"""What holds of every stitching space, whatever its depths, cuts and kinds."""

from itertools import combinations
from math import comb

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from snnet_vitdet.stitching import LARGE, SMALL, StitchSpace

depth_pairs = st.integers(1, 10).flatmap(
    lambda small: st.tuples(st.just(small), st.integers(small, 5 * small + 3))
)
max_cuts = st.integers(0, 4)


def kinds_of(num_stages, most_cuts):
    """DESIGN's order: S, L, then by cuts, what ends in the large anchor (letter S) first."""
    kinds = ["S", "L"]
    for cuts in range(1, min(most_cuts, num_stages - 1) + 1):
        kinds += [("FS" * cuts)[-cuts - 1 :], ("SF" * cuts)[-cuts - 1 :]]
    return kinds


@st.composite
def spaces(draw, pairs=depth_pairs, cuts=max_cuts):
    """A space and the kinds it was asked for, in their proper order."""
    depths, most_cuts = draw(pairs), draw(cuts)
    possible = kinds_of(depths[0], most_cuts)
    wanted = draw(st.none() | st.lists(st.sampled_from(possible), min_size=1))
    kinds = possible if wanted is None else [kind for kind in possible if kind in wanted]
    return StitchSpace(depths, most_cuts, wanted), kinds


def num_cuts(kind):
    return len(kind) - 1


@given(depth_pairs, max_cuts)
def test_the_number_of_stitches_is_twice_the_sum_of_binomials(depths, most_cuts):
    expected = 2 * sum(comb(depths[0] - 1, cuts) for cuts in range(most_cuts + 1))
    assert len(StitchSpace(depths, most_cuts)) == expected


@given(spaces())
def test_ids_are_contiguous_by_kind_in_the_stated_order_then_by_cuts(space_and_kinds):
    space, kinds = space_and_kinds
    cuts = range(1, space.depths[0])
    expected = [(kind, c) for kind in kinds for c in combinations(cuts, num_cuts(kind))]
    assert [(stitch.kind, stitch.cuts) for stitch in space] == expected
    assert [stitch.id for stitch in space] == list(range(len(expected)))
    assert space.kinds == tuple(kinds)


@given(spaces())
def test_a_walk_runs_each_stage_once_in_the_anchors_its_kind_spells(space_and_kinds):
    space, _ = space_and_kinds
    d1, d2 = space.depths
    for stitch in space:
        letters = {"S": "F", "L": "S"}.get(stitch.kind, stitch.kind)
        edges = (0, *stitch.cuts, d1)
        assert len(stitch.segments) == len(letters) == len(edges) - 1
        for letter, (anchor, start, stop), first, last in zip(
            letters, stitch.segments, edges, edges[1:], strict=False
        ):
            if letter == "F":
                assert (anchor, start, stop) == (SMALL, first, last)
            else:
                expected = (LARGE, round(first * d2 / d1), round(last * d2 / d1))
                assert (anchor, start, stop) == expected
            assert start < stop  # no anchor is entered for nothing


@given(spaces())
def test_transitions_join_the_segments_and_lead_out_of_the_small_anchor(space_and_kinds):
    space, _ = space_and_kinds
    crossed = set()
    for stitch in space:
        anchors = [segment.anchor for segment in stitch.segments]
        expected = list(zip(stitch.cuts, anchors, anchors[1:], strict=False))
        if anchors[-1] == SMALL:
            expected.append((space.depths[0], SMALL, LARGE))
        assert list(stitch.transitions) == expected
        assert all(source != target for _, source, target in expected)
        crossed |= set(expected)
    assert space.transitions == tuple(sorted(crossed))


@given(spaces(), st.text() | st.from_regex(r"[FS]{1,4}(-\d{1,3}){0,3}", fullmatch=True))
@example((StitchSpace((1, 1)), ["S", "L"]), "FS-1")
def test_a_name_finds_its_stitch_and_no_other_text_finds_any(space_and_kinds, text):
    space, _ = space_and_kinds
    names = [stitch.name for stitch in space]
    assert len(set(names)) == len(names)
    for stitch_id, name in enumerate(names):
        assert space[name] is space[stitch_id]
    if text not in names:
        with pytest.raises(KeyError, match="no stitch is named"):
            space[text]


@given(spaces(), st.integers())
def test_an_id_is_taken_from_0_to_below_the_number_of_stitches_only(space_and_kinds, stitch_id):
    space, _ = space_and_kinds
    if 0 <= stitch_id < len(space):
        assert space[stitch_id].id == stitch_id
    else:
        with pytest.raises(IndexError, match=f"stitch id {stitch_id} is not in 0 … "):
            space[stitch_id]


numbers = st.integers(-3, 6) | st.floats() | st.none() | st.text(max_size=2)


@given(
    st.tuples(numbers, numbers) | st.lists(numbers, max_size=3),
    numbers,
    st.none() | st.lists(st.sampled_from(["S", "L", "FS", "SFS", "FSFS", "", "fs"]), max_size=3),
)
def test_arguments_give_a_space_or_a_value_error(depths, most_cuts, kinds):
    try:
        space = StitchSpace(depths, most_cuts, kinds)
    except ValueError as error:
        assert str(error)
    else:
        assert 1 <= space.depths[0] <= space.depths[1]
        assert most_cuts >= 0
        assert len(space) >= 1
