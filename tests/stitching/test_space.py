from itertools import groupby, product

import pytest

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


@pytest.mark.parametrize(
    ("depths", "count"), [((12, 24), 134), ((12, 12), 134), ((4, 8), 14), ((3, 3), 8), ((1, 3), 2)]
)
def test_known_counts_with_two_cuts(depths, count):
    space = StitchSpace(depths)
    assert len(space) == len(list(space)) == count


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


def test_the_text_of_a_space_says_what_it_is():
    assert repr(StitchSpace((1, 3))) == (
        "StitchSpace(depths=(1, 3), max_cuts=2, kinds=('S', 'L')): 2 stitches"
    )


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
