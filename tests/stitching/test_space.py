"""The stitching space: known numbers, and properties of any depths, cuts and kinds."""

from itertools import combinations, groupby, product
from math import comb

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from snnet_vitdet.stitching import LARGE, SMALL, Segment, StitchSpace

DEPTHS = [(12, 24), (12, 12), (12, 32), (4, 8), (3, 3), (1, 3)]
MAX_CUTS = [0, 1, 2, 3]


def walks(num_stages, max_cuts):
    """Every walk by brute force: the anchor of each stage, in all ways, with few enough changes."""
    for anchors in product((SMALL, LARGE), repeat=num_stages):
        if sum(a != b for a, b in zip(anchors, anchors[1:], strict=False)) <= max_cuts:
            yield anchors


def boundary(anchor, cut, depths):
    """DESIGN: stage boundaries of the large anchor are round(c * d2 / d1)."""
    return cut if anchor == SMALL else round(cut * depths[1] / depths[0])


def segments_of(anchors, depths):
    """Segments and cuts of the walk that has these anchors stage by stage."""
    segments, cuts, start = [], [], 0
    for anchor, run in groupby(anchors):
        stop = start + len(list(run))
        segments.append((anchor, boundary(anchor, start, depths), boundary(anchor, stop, depths)))
        cuts.append(stop)
        start = stop
    return tuple(segments), tuple(cuts[:-1])


def test_each_kind_of_the_12_24_space_has_its_known_size():
    kinds = [stitch.kind for stitch in StitchSpace((12, 24))]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "S": 1,
        "L": 1,
        "FS": 11,
        "SF": 11,
        "SFS": 55,
        "FSF": 55,
    }


def test_the_space_of_snnet_v1_is_the_anchors_and_fs():
    space = StitchSpace((12, 24), kinds=["FS", "L", "S"])
    assert [stitch.kind for stitch in space] == ["S", "L"] + ["FS"] * 11
    assert [stitch.id for stitch in space] == list(range(13))
    assert space.kinds == ("S", "L", "FS")
    assert all(t.source == SMALL and t.target == LARGE for t in space.transitions)


@pytest.mark.parametrize("max_cuts", MAX_CUTS)
@pytest.mark.parametrize("depths", DEPTHS)
def test_the_space_holds_every_walk_once_and_nothing_else(depths, max_cuts):
    expected = {segments_of(anchors, depths) for anchors in walks(depths[0], max_cuts)}
    found = [(stitch.segments, stitch.cuts) for stitch in StitchSpace(depths, max_cuts)]
    assert len(found) == len(expected)
    assert set(found) == expected


def test_stage_boundaries_round_half_to_even():
    # 12 -> 18 blocks: 1.5, 4.5, 7.5 round to 2, 4, 8 with Python's round.
    assert StitchSpace((12, 18)).boundaries[1] == (0, 2, 3, 4, 6, 8, 9, 10, 12, 14, 15, 16, 18)


def test_kinds_come_in_the_order_of_the_design():
    assert StitchSpace((4, 8)).kinds == ("S", "L", "FS", "SF", "SFS", "FSF")
    assert StitchSpace((4, 8), max_cuts=3).kinds[6:] == ("FSFS", "SFSF")
    assert StitchSpace((12, 24))[133].name == "FSF-10-11"


def test_the_transitions_of_a_space_are_the_layers_it_needs():
    # Two directions at every cut, and the exit.
    assert len(StitchSpace((12, 24)).transitions) == 2 * 11 + 1
    assert StitchSpace((4, 8), kinds=("L", "FS")).transitions == tuple(
        (cut, SMALL, LARGE) for cut in (1, 2, 3)
    )
    # With two stages SFS and FSF cannot exist; an SFS of three stages leaves L only at cut 1.
    assert StitchSpace((3, 3), kinds=("SFS",)).transitions == ((1, LARGE, SMALL), (2, SMALL, LARGE))
    assert StitchSpace((4, 8), kinds=("L",)).transitions == ()


def test_anchors_are_the_stitches_without_a_cut():
    space = StitchSpace((4, 8))
    assert [stitch.name for stitch in space.anchors] == ["S", "L"]
    assert [stitch.is_anchor for stitch in space] == [True] * 2 + [False] * 12
    assert StitchSpace((4, 8), kinds=["FS"]).anchors == ()


def test_stitches_are_immutable_and_equal_by_value():
    stitch = StitchSpace((4, 8))["FS-1"]
    with pytest.raises(AttributeError):
        stitch.id = 3
    assert stitch == StitchSpace((4, 8))["FS-1"]
    assert stitch.segments == (Segment(SMALL, 0, 1), Segment(LARGE, 2, 8))


def test_a_slice_gives_a_tuple_of_stitches():
    space = StitchSpace((4, 8))
    assert [stitch.id for stitch in space[2:5]] == [2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(depths=(12,)), r"depths must be two positive integers \(small, large\), got \(12,\)"),
        (dict(depths=(0, 4)), r"depths must be two positive integers .* got \(0, 4\)"),
        (dict(depths=(4, 8.0)), r"depths must be two positive integers .* got \(4, 8\.0\)"),
        (dict(depths=(24, 12)), r"more blocks \(24\) than the large one \(12\): give the anchors"),
        (dict(max_cuts=-1), r"max_cuts must be an integer >= 0, got -1"),
        (dict(max_cuts=1.5), r"max_cuts must be an integer >= 0, got 1\.5"),
        (dict(kinds=["S", "XY"]), r"kinds \['S', 'XY'\] with max_cuts=2 and 12 stages: choose"),
        (dict(kinds=[]), r"kinds \[\] with max_cuts=2 .* choose among \['S', 'L', 'FS', 'SF'"),
        (dict(kinds=["SFS"], max_cuts=1), r"choose among \['S', 'L', 'FS', 'SF'\]"),
        (dict(depths=(2, 2), kinds=["SFS"]), r"2 stages: choose among \['S', 'L', 'FS', 'SF'\]"),
    ],
)
def test_arguments_that_give_no_space_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        StitchSpace(**arguments)


@pytest.mark.parametrize("name", ["FS-0", "FS-4", "SFS-2-1", "SFS-1-1", "FS", "fs-1", "", "-1"])
def test_names_outside_the_space_are_errors(name):
    with pytest.raises(KeyError, match=rf"no stitch is named '{name}'; .* such as 'FSF-2-3'"):
        StitchSpace((4, 8))[name]


@pytest.mark.parametrize("key", [1.0, None, True, (1, 2)])
def test_a_key_that_is_neither_id_nor_name_is_an_error(key):
    with pytest.raises(TypeError, match="a stitch is chosen by id or name, not by"):
        StitchSpace((4, 8))[key]


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
