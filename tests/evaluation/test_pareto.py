import math
import random

import pytest

from snnet_vitdet.evaluation.pareto import pareto_front

NAN = math.nan


def _brute_force(costs, scores):
    """The definition, word by word: no other point is as cheap and as good, and better in one."""

    def beaten(i):
        return any(
            costs[j] <= costs[i]
            and scores[j] >= scores[i]
            and (costs[j] < costs[i] or scores[j] > scores[i])
            for j in range(len(costs))
        )

    return [not math.isnan(scores[i]) and not beaten(i) for i in range(len(costs))]


@pytest.mark.parametrize("seed", range(50))
def test_equals_the_definition_on_random_points_with_ties_and_nan(seed):
    rng = random.Random(seed)
    count = rng.randrange(1, 60)
    # Few distinct values make many ties in one or both coordinates.
    costs = [float(rng.randrange(12)) for _ in range(count)]
    scores = [NAN if rng.random() < 0.15 else float(rng.randrange(12)) for _ in range(count)]

    assert pareto_front(costs, scores) == _brute_force(costs, scores)


def test_a_dearer_point_must_score_higher():
    assert pareto_front([1, 2, 3, 4], [10, 20, 15, 20]) == [True, True, False, False]


def test_order_of_the_points_does_not_matter():
    assert pareto_front([4, 2, 3, 1], [20, 20, 15, 10]) == [False, True, False, True]


def test_equal_points_are_all_kept():
    assert pareto_front([1, 2, 2, 2], [5, 9, 9, 8]) == [True, True, True, False]


def test_equal_points_that_are_beaten_are_all_dropped():
    assert pareto_front([1, 2, 2], [9, 8, 8]) == [True, False, False]


def test_nan_scores_are_never_on_the_frontier_and_beat_nobody():
    assert pareto_front([1, 2, 3], [NAN, 5, NAN]) == [False, True, False]
    assert pareto_front([1, 2], [NAN, NAN]) == [False, False]


def test_the_lowest_possible_score_can_be_on_the_frontier():
    assert pareto_front([1, 2], [-math.inf, 0.0]) == [True, True]


def test_no_points_give_an_empty_frontier():
    assert pareto_front([], []) == []


def test_lengths_that_differ_are_an_error():
    with pytest.raises(ValueError, match="same length, got 2 and 1"):
        pareto_front([1, 2], [1])


def test_a_nan_cost_is_an_error_that_names_the_point():
    with pytest.raises(ValueError, match=r"costs\[1\] is NaN"):
        pareto_front([1, NAN], [1, 2])
