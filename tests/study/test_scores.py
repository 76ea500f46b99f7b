"""What the ends of a supernet lose, and how much its frontier gains, by hand."""

import math

import pytest

from snnet_vitdet.study import paired, scores_of


def row(name, kind, gflops, ap):
    return {"name": name, "kind": kind, "gflops": gflops, "bbox_AP": ap}


SMALL_ALONE = row("baseline", "baseline", 1.0, 20.0)
LARGE_ALONE = row("baseline", "baseline", 5.0, 40.0)


def test_gaps_of_the_ends_and_means_of_the_kinds():
    rows = [
        row("S", "S", 1.0, 17.0),
        row("L", "L", 5.0, 41.0),
        row("FS-1", "FS", 3.0, 30.0),
        row("FS-2", "FS", 2.0, 26.0),
    ]
    scores = scores_of(rows, SMALL_ALONE, LARGE_ALONE)
    assert (scores.small, scores.small_gap) == (17.0, -3.0)
    assert (scores.large, scores.large_gap) == (41.0, 1.0)
    assert scores.by_kind == {"S": 17.0, "L": 41.0, "FS": 28.0}


def test_the_frontier_is_compared_with_the_line_over_the_costs_between_the_two():
    # Steps of 17, 26 and 30 over 1, 1 and 2 units; the line is 30 on average.
    rows = [
        row("S", "S", 1.0, 17.0),
        row("L", "L", 5.0, 41.0),
        row("FS-1", "FS", 3.0, 30.0),
        row("FS-2", "FS", 2.0, 26.0),
    ]
    expected = (17 + 26 + 2 * 30) / 4 - 30
    assert scores_of(rows, SMALL_ALONE, LARGE_ALONE).over_line == pytest.approx(expected)
    # The exit projection makes the small end a little dearer: the line starts there, too.
    rows[0] = row("S", "S", 1.5, 17.0)
    expected = (17 * 0.5 + 26 + 2 * 30) / 3.5 - (22.5 + 40) / 2
    assert scores_of(rows, SMALL_ALONE, LARGE_ALONE).over_line == pytest.approx(expected)


def test_differences_are_taken_seed_by_seed():
    mean, error = paired({0: 10.0, 1: 20.0, 2: 33.0}, {0: 9.0, 1: 18.0, 2: 30.0, 7: 0.0})
    assert mean == pytest.approx(2.0)
    # Of 1, 2 and 3: a deviation of 1.
    assert error == pytest.approx(1 / math.sqrt(3))
    mean, error = paired({0: 1.0}, {0: 3.0})
    assert mean == -2.0 and math.isnan(error)
    with pytest.raises(ValueError, match="no seed"):
        paired({0: 1.0}, {1: 1.0})
