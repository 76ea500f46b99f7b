import pytest

from snnet_vitdet.stitching import OperatingPoint, StitchSpace, operating_points, split_point_name

SPACE = StitchSpace((2, 4))


def trained(stitch):
    # A joined detector may have another number of proposals for each exit.
    return (1024, 1000 if stitch.exit else 500)


def names(image_sizes, proposals):
    chosen = (SPACE["S"], SPACE["FS-1"])
    return [p.name for p in operating_points(chosen, image_sizes, proposals, trained)]


def test_without_sizes_and_numbers_the_points_are_the_stitches():
    assert names([], []) == ["S", "FS-1"]
    (first, _) = operating_points((SPACE["S"], SPACE["L"]), [], [], trained)
    assert first == OperatingPoint(SPACE["S"], 1024, 500, is_trained=True)


def test_points_are_named_by_size_and_number_unless_both_are_the_trained_ones():
    assert names([512, 1024], [300, 1000]) == [
        *("S@512/300", "S@512/1000", "S@1024/300", "S@1024/1000"),
        *("FS-1@512/300", "FS-1@512/1000", "FS-1@1024/300", "FS-1"),
    ]
    assert names([512], []) == ["S@512/500", "FS-1@512/1000"]
    assert names([], [500]) == ["S", "FS-1@1024/500"]


def test_a_name_is_split_into_what_it_was_made_of():
    for point in operating_points(SPACE, [512, 1024], [300, 1000], trained):
        given = None if point.is_trained else (point.image_size, point.num_proposals)
        assert split_point_name(point.name) == (point.stitch.name, given)


@pytest.mark.parametrize(
    "name", ["S@", "S@640", "S@640/", "S@/300", "@640/300", "S@640/300/2", "S@-640/300", "S@٦٤٠/1"]
)
def test_a_text_that_names_no_point_is_refused(name):
    with pytest.raises(ValueError, match="write it as FS-3@640/300"):
        split_point_name(name)
