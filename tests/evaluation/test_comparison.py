"""What a budget buys, against sums written out by hand and a fine grid; sweeps side by side."""

import math
import random
import statistics

import pytest

from snnet_vitdet.evaluation import (
    Candidate,
    Frontier,
    common_range,
    equal_cost_budgets,
    same_stitches,
)


def test_a_budget_buys_the_best_of_what_it_covers():
    rng = random.Random(0)
    points = [(rng.uniform(1, 10), rng.uniform(0, 60)) for _ in range(50)]
    frontier = Frontier(*zip(*points, strict=True))
    for budget in [rng.uniform(1, 12) for _ in range(200)] + [cost for cost, _ in points]:
        within = [score for cost, score in points if cost <= budget]
        expected = max(within, default=math.nan)
        assert frontier.at(budget) == expected or (not within and math.isnan(frontier.at(budget)))


def test_the_area_is_that_below_the_steps():
    frontier = Frontier([1.0, 2.0, 4.0, 3.0], [10.0, 20.0, 30.0, 15.0])
    assert frontier.costs == (1.0, 2.0, 4.0) and frontier.scores == (10.0, 20.0, 30.0)
    assert frontier.area(1.0, 4.0) == 10 + 2 * 20
    assert frontier.area(1.5, 5.0) == 0.5 * 10 + 2 * 20 + 30
    assert frontier.mean(1.5, 5.0) == (5 + 40 + 30) / 3.5
    assert frontier.area(2.0, 2.0) == 0 and frontier.mean(2.0, 2.0) == 20
    steps = [1.5 + 3.5 * (i + 0.5) / 70000 for i in range(70000)]
    fine = sum(map(frontier.at, steps)) * 3.5 / 70000
    assert frontier.area(1.5, 5.0) == pytest.approx(fine, abs=1e-3)


def test_points_without_a_score_and_repeated_points_do_not_count():
    frontier = Frontier([1.0, 1.0, 0.5], [10.0, 10.0, math.nan])
    assert frontier.costs == (1.0,)
    with pytest.raises(ValueError, match="no point has a score"):
        Frontier([1.0], [math.nan])


def test_an_area_needs_something_to_buy_at_its_lower_end():
    frontier = Frontier([1.0], [10.0])
    for low, high in ((0.5, 2.0), (3.0, 2.0)):
        with pytest.raises(ValueError, match="an area goes upwards from 1"):
            frontier.area(low, high)


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


def test_the_range_is_where_all_have_something_and_reaches_the_most_expensive():
    one = candidate(rows([(1, 10), (5, 20)]))
    # Its most expensive stitch is not on its frontier.
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
