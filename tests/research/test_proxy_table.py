"""Scores of a run, and rows of a study: read, written, and compared seed by seed."""

import math

import pytest
from research.proxy.table import StudyTable, paired, scores_alone, scores_of

from snnet_vitdet.errors import InputError

PAPER_COST = 0.5


def values(small, small_gap, cost=PAPER_COST):
    return {"small": small, "small_gap": small_gap, "cost": cost, "SFS": small + 5}


@pytest.fixture
def table():
    made = StudyTable(PAPER_COST)
    for seed, small in ((0, 30.0), (1, 32.0)):
        made.add(seed, "small_alone", {"small": small})
        made.add(seed, "paper", values(25.0 + seed, 25.0 + seed - small))
        made.add(seed, "other", values(27.0 + 2 * seed, 27.0 + 2 * seed - small, cost=0.75))
    return made


def test_rows_of_several_files_are_one_table(table, tmp_path):
    table.write(tmp_path / "first.csv")
    second = StudyTable(PAPER_COST)
    second.add(2, "paper", values(1 / 3, -1.0))
    second.write(tmp_path / "second.csv")
    both = StudyTable(PAPER_COST)
    both.read(tmp_path / "first.csv")
    assert both.summary() == table.summary()
    both.read(tmp_path / "second.csv")
    assert both.results("paper", "small") == {0: 25.0, 1: 26.0, 2: 1 / 3}
    assert both.results("paper", "SFS") == {0: 30.0, 1: 31.0, 2: 1 / 3 + 5}
    assert both.results("paper", "large") == {}


def test_a_run_that_is_there_twice_is_refused(table, tmp_path):
    with pytest.raises(InputError, match="the run paper of seed 1 is there twice"):
        table.add(1, "paper", values(1.0, 1.0))
    table.write(tmp_path / "rows.csv")
    with pytest.raises(InputError, match=r"rows.csv: the run small_alone of seed 0 is there twice"):
        table.read(tmp_path / "rows.csv")


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
    assert (scores["small"], scores["small_gap"]) == (17.0, -3.0)
    assert (scores["large"], scores["large_gap"]) == (41.0, 1.0)
    assert scores["FS"] == 28.0


def test_the_frontier_is_compared_with_the_line_over_the_costs_between_the_two():
    # Steps of 17, 26 and 30 over 1, 1 and 2 units; the line is 30 on average.
    rows = [
        row("S", "S", 1.0, 17.0),
        row("L", "L", 5.0, 41.0),
        row("FS-1", "FS", 3.0, 30.0),
        row("FS-2", "FS", 2.0, 26.0),
    ]
    expected = (17 + 26 + 2 * 30) / 4 - 30
    assert scores_of(rows, SMALL_ALONE, LARGE_ALONE)["over_line"] == pytest.approx(expected)
    # The exit projection makes the small end a little dearer: the line starts there, too.
    rows[0] = row("S", "S", 1.5, 17.0)
    expected = (17 * 0.5 + 26 + 2 * 30) / 3.5 - (22.5 + 40) / 2
    assert scores_of(rows, SMALL_ALONE, LARGE_ALONE)["over_line"] == pytest.approx(expected)


def test_a_difference_is_that_of_each_seed_with_its_error():
    mean, error = paired({0: 10.0, 1: 20.0, 2: 33.0}, {0: 9.0, 1: 18.0, 2: 30.0, 7: 0.0})
    assert mean == pytest.approx(2.0)
    # Of 1, 2 and 3: a deviation of 1.
    assert error == pytest.approx(1 / math.sqrt(3))
    mean, error = paired({0: 1.0}, {0: 3.0})
    assert mean == -2.0 and math.isnan(error)
    with pytest.raises(ValueError, match="no seed"):
        paired({0: 1.0}, {1: 1.0})


def test_masks_are_compared_where_they_were_scored(table):
    assert "masks" not in table.summary()
    small, large = ({**each, "segm_AP": 30.0} for each in (SMALL_ALONE, LARGE_ALONE))
    rows = [
        {**row("S", "S", 1.0, 17.0), "segm_AP": 28.0},
        {**row("L", "L", 5.0, 41.0), "segm_AP": 33.5},
    ]
    scores = scores_of(rows, small, large)
    assert (scores["small_mask"], scores["small_mask_gap"]) == (28.0, -2.0)
    assert (scores["large_mask"], scores["large_mask_gap"]) == (33.5, 3.5)
    assert scores_alone("large", large, large) == {"large": 40.0, "large_mask": 30.0}
    table.add(7, "with masks", scores)
    head, *_, last = table.summary().splitlines()
    place = [cell.strip() for cell in head.split("|")].index("less L alone, masks")
    assert last.split("|")[place].strip() == "+3.50"
