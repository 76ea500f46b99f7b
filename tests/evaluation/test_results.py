"""What a result holds, and what rows mean: comparable, on the frontier, the best."""

import math
import random
import re

import numpy as np
import pytest
from tables import make_result

from snnet_vitdet.evaluation.results import (
    METRICS,
    best_row,
    comparable,
    on_frontier,
    pareto_front,
)


def test_values_of_any_number_type_become_plain_ones():
    result = make_result(
        np.int64(3), cuts=[np.int64(1)], gflops=np.float32(2.5), ap=np.float32(40.5)
    )

    assert (type(result.stitch_id), type(result.gflops)) == (int, float)
    assert result.cuts == (1,) and type(result.cuts[0]) is int
    assert result.metrics["bbox_AP"] == 40.5 and type(result.metrics["bbox_AP"]) is float


def test_metrics_left_out_are_nan_and_all_stand_in_the_files_order():
    result = make_result(metrics={"segm_AP": 1.0, "bbox_AP": 2.0})

    assert tuple(result.metrics) == METRICS
    assert math.isnan(result.metrics["bbox_APs"])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"metrics": {"bbox_AR": 1.0}}, ValueError, "unknown names: bbox_AR; known are bbox_AP"),
        ({"metrics": {"bbox_AP": -1.0}}, ValueError, "bbox_AP must be an AP on 0-100 or NaN"),
        ({"metrics": {"bbox_AP": math.inf}}, ValueError, "bbox_AP must be an AP on 0-100 or NaN"),
        ({"metrics": {"bbox_AP": "40"}}, TypeError, "bbox_AP must be a number, got '40'"),
        ({"gflops": math.nan}, ValueError, "gflops must be finite"),
        ({"gflops": -1.0}, ValueError, "gflops must be finite and 0 or more, got -1.0"),
        ({"gflops": True}, TypeError, "gflops must be a number, got True"),
        ({"stitch_id": -1}, ValueError, "stitch_id must be 0 or more, got -1"),
        ({"name": 3}, TypeError, "name must be a string, got 3"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_it(change, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make_result(**change)


@pytest.mark.parametrize("column", ["iteration", "num_images"])
def test_a_negative_count_is_refused(column):
    with pytest.raises(ValueError, match=f"{column} must be 0 or more, got -1"):
        make_result(**{column: -1})


# Rows


def row(gflops, ap, num_images=50):
    return {"gflops": gflops, "bbox_AP": ap, "num_images": num_images}


@pytest.mark.parametrize("missing", [None, math.nan])
def test_rows_are_compared_with_those_of_the_most_images(missing):
    rows = [row(1, 30), row(2, 60, 5), row(3, 40), row(0.5, 20, None), row(4, missing)]
    assert comparable(rows) == [rows[0], rows[2], rows[4]]
    assert on_frontier(rows, "bbox_AP") == [True, False, True, False, False]
    assert best_row(rows, "bbox_AP") is rows[2]
    # The rows of the most images may be those without a score.
    assert best_row(rows[1:2] + rows[4:], "bbox_AP") is None
    assert on_frontier(rows[1:2] + rows[4:], "bbox_AP") == [False, False]


def test_where_no_images_were_counted_all_rows_are_compared():
    rows = [{"gflops": 1, "bbox_AP": 30}, {"gflops": 2, "bbox_AP": 40, "num_images": None}]
    assert comparable(rows) == rows and on_frontier(rows, "bbox_AP") == [True, True]
    assert comparable([]) == [] and best_row([], "bbox_AP") is None


def test_of_equally_good_rows_the_cheaper_is_the_best():
    rows = [row(3, 40), row(2, 40), row(1, 30)]
    assert best_row(rows, "bbox_AP") is rows[1]


# The Pareto frontier


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
    scores = [math.nan if rng.random() < 0.15 else float(rng.randrange(12)) for _ in range(count)]

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
    assert pareto_front([1, 2, 3], [math.nan, 5, math.nan]) == [False, True, False]
    assert pareto_front([1, 2], [math.nan, math.nan]) == [False, False]


def test_the_lowest_possible_score_can_be_on_the_frontier():
    assert pareto_front([1, 2], [-math.inf, 0.0]) == [True, True]


def test_no_points_give_an_empty_frontier():
    assert pareto_front([], []) == []


def test_lengths_that_differ_are_an_error():
    with pytest.raises(ValueError, match="same length, got 2 and 1"):
        pareto_front([1, 2], [1])


def test_a_nan_cost_is_an_error_that_names_the_point():
    with pytest.raises(ValueError, match=r"costs\[1\] is NaN"):
        pareto_front([1, math.nan], [1, 2])
