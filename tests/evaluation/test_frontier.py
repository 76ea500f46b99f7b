"""What a budget buys, against sums written out by hand and against a fine grid."""

import math
import random

import pytest

from snnet_vitdet.evaluation import Frontier


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
