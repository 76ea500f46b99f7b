"""Sweeps side by side."""

import math
import statistics

import pytest

from snnet_vitdet.evaluation import Candidate, common_range, equal_cost_budgets, same_stitches


def rows(points, num_images=100, prefix="FS-"):
    return tuple(
        {
            "name": f"{prefix}{i}",
            "kind": "baseline" if prefix == "baseline" else "FS",
            "gflops": cost,
            "bbox_AP": score,
            "num_images": num_images,
        }
        for i, (cost, score) in enumerate(points)
    )


def candidate(*runs, name="a"):
    return Candidate(name, tuple(runs), "gflops", "bbox_AP")


def test_runs_are_averaged_with_their_standard_deviation():
    both = candidate(rows([(1, 10), (2, 20)]), rows([(1, 14), (2, 26)]))
    assert both.at(2.5) == (23, pytest.approx(statistics.stdev([20, 26])))
    assert both.area(1, 3) == (35, pytest.approx(statistics.stdev([30, 40])))
    assert candidate(rows([(1, 10)])).at(1) == (10, 0)


def test_stitches_scored_on_a_subset_are_not_compared():
    mixed = (*rows([(1, 10)]), *rows([(2, 90)], num_images=5))
    assert candidate(mixed).at(3) == (10, 0)


def test_the_range_is_where_all_have_something_and_reaches_the_dearest_of_all():
    one = candidate(rows([(1, 10), (5, 20)]))
    # Its dearest stitch is not on its frontier.
    other = candidate(rows([(2, 30), (7, 25)]), rows([(3, 30)]))
    assert common_range([one, other]) == (3, 7)
    assert common_range([candidate(rows([(4, 10)])), one]) == (4, 5)
    assert common_range([candidate(rows([(9, 10)])), one]) == (9, 9)


def test_budgets_go_from_end_to_end():
    assert equal_cost_budgets(1, 8) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert equal_cost_budgets(3, 3) == [3]


def test_stitches_of_one_name_are_compared_where_both_have_them():
    one = candidate(rows([(1, 10), (2, 20), (3, math.nan)]))
    other = candidate(rows([(1, 11), (2, 26)]), rows([(1, 13)]))
    assert same_stitches(one, other) == [2]
    assert same_stitches(candidate(rows([(1, 5)])), one) == [5]
    baseline = candidate(rows([(1, 10)], prefix="baseline"))
    assert same_stitches(baseline, baseline) == []
