"""What a result holds, what rows mean (comparable, on the frontier, the best), and their text."""

import json
import math
import random
import re
from dataclasses import replace

import numpy as np
import pytest
from tables import HEADER, make_metrics, make_result, make_table, small_table, two_stage_table

from snnet_vitdet import StitchTable
from snnet_vitdet.evaluation import format_table
from snnet_vitdet.evaluation.results import (
    METRICS,
    best_row,
    comparable,
    on_frontier,
    pareto_front,
    stitches_alone,
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


def test_stitches_are_set_apart_from_points_scored_on_as_many_images():
    stitch, fewer, point = ({"name": name} | row(1.0, 2.0) for name in ("S", "L", "S@64/5"))
    fewer["num_images"] = 5
    assert stitches_alone([stitch, fewer, point]) == [stitch]
    assert stitches_alone([stitch, fewer]) == []


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


@pytest.mark.parametrize("seed", range(20))
def test_equals_the_definition_on_random_points_with_ties_and_nan(seed):
    rng = random.Random(seed)
    count = rng.randrange(1, 60)
    # Few distinct values make many ties in one or both coordinates.
    costs = [float(rng.randrange(12)) for _ in range(count)]
    scores = [math.nan if rng.random() < 0.15 else float(rng.randrange(12)) for _ in range(count)]

    assert pareto_front(costs, scores) == _brute_force(costs, scores)


def test_a_nan_cost_is_an_error_that_names_the_point():
    with pytest.raises(ValueError, match=r"costs\[1\] is NaN"):
        pareto_front([1, math.nan], [1, 2])


# The files and the printed table


def printed(swept):
    return format_table(swept.rows())


def _strict_json(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_csv_has_the_header_of_the_contract_and_readable_values(tmp_path):
    small_table().write(tmp_path)

    lines = (tmp_path / "stitches.csv").read_text(encoding="utf-8").split("\n")
    assert lines[0] == HEADER
    assert lines[1].startswith("0,small,S,,1.0000,30.2500,33.3333,53.3333,")
    assert lines[1].endswith(",true,,,,,")
    assert lines[3].startswith("4,SFS-3-7,SFS,3-7,3.0000,")
    assert lines[4] == "9,FS-1,FS,1,2.5000,30.2500,,,,,,,12.0000,,,,,,false,,,,,"
    assert lines[5:] == [""]


def test_json_is_strict_with_null_for_nan_and_cuts_as_a_list(tmp_path):
    small_table().write(tmp_path)

    rows = _strict_json(tmp_path / "stitches.json")
    assert [",".join(row) for row in rows] == [HEADER] * 4
    assert rows[2]["cuts"] == [3, 7] and rows[0]["cuts"] == []
    assert rows[3]["bbox_AP"] is None and rows[3]["segm_AP"] == 12.0
    assert rows[0]["on_pareto"] is True and rows[0]["aspect_ratio"] is None


def test_rows_say_how_long_the_weights_were_trained(tmp_path):
    table = make_table(make_result(0, iteration=0), make_result(1, iteration=700), make_result(2))
    table.write(tmp_path)
    assert [row["iteration"] for row in StitchTable.read_results(tmp_path).rows()] == [0, 700, None]
    lines = (tmp_path / "stitches.csv").read_text().splitlines()
    assert [line.split(",")[-5] for line in lines] == ["iteration", "0", "700", ""]


def _large_table():
    cuts = [(a, b) for a in range(1, 12) for b in range(a + 1, 12)]
    results = [
        make_result(
            i,
            name=f"SFS-{a}-{b}",
            kind="SFS",
            cuts=(a, b),
            gflops=475.0 + 20 * i,
            # Rises, then falls: a frontier that ends at the best one, stitch 30.
            ap=50 - abs(30 - i) / 10,
        )
        for i, (a, b) in enumerate(cuts)
    ]
    return make_table(*results)


def test_every_stitch_is_printed_within_120_columns():
    lines = printed(_large_table()).splitlines()

    assert len(lines) == 3 + 55 + 1
    assert max(map(len, lines)) <= 120
    assert [int(re.match(r"[best *]*(\d+)", line)[1]) for line in lines[3:-1]] == list(range(55))


def test_frontier_rows_are_starred_and_the_best_is_named():
    lines = printed(_large_table()).splitlines()[3:-1]

    assert [i for i, line in enumerate(lines) if "*" in line] == list(range(31))
    assert [i for i, line in enumerate(lines) if "best" in line] == [30]


def test_summary_counts_stitches_and_frontier_and_gives_best_and_mean():
    assert printed(small_table()).splitlines()[-1] == (
        "4 stitches, 2 on the frontier (*), best box AP 45.5 by stitch 2 (FS-1), "
        "mean box AP50 59.3, 1 without a score"
    )


def test_summary_names_tight_padding():
    tight = [replace(entry.result, aspect_ratio=1.5) for entry in small_table()]
    assert (
        printed(StitchTable(tight)).splitlines()[-1].endswith(", tight padding, 1 without a score")
    )
    assert tight[0].padding == "tight" and replace(tight[0], aspect_ratio=None).padding == "square"
    with pytest.raises(ValueError, match="aspect_ratio must be 1 or more, got 0.5"):
        replace(tight[0], aspect_ratio=0.5)


def test_a_missing_score_is_a_dash():
    row = printed(small_table()).splitlines()[6]

    assert " ".join(row.split()) == "9 FS-1 2.50 30.2 - - - - - - 12.0 - - - - -"


def test_a_task_without_scores_has_no_columns():
    box_only = printed(make_table(make_result(metrics=make_metrics(40.0, tasks=["bbox"]))))
    mask_only = printed(make_table(make_result(metrics=make_metrics(40.0, tasks=["segm"]))))

    assert "box" in box_only and "mask" not in box_only
    assert "mask" in mask_only and "box" not in mask_only
    assert "best mask AP 40.0" in mask_only


def test_a_detector_that_finds_nothing_still_gives_a_table():
    assert printed(make_table(make_result(metrics={}))).endswith("1 stitch, none has a score")
    assert printed(StitchTable()) == "No stitch has a result yet."


def test_the_printed_table_says_that_nothing_was_trained():
    untrained = make_table(make_result(0, iteration=0), make_result(1, iteration=0))
    assert "before any training" in printed(untrained).splitlines()[-1]
    partly = make_table(make_result(0, iteration=0), make_result(1, iteration=1))
    assert "before any training" not in printed(partly)


def test_best_and_mean_are_among_the_scores_of_the_most_images():
    lines = printed(two_stage_table()).splitlines()
    assert lines[-1] == (
        "4 stitches, 2 of them scored on a subset of the images only, 2 on the frontier (*), "
        "best box AP 40.0 by stitch 1 (L), mean box AP50 55.0"
    )
    assert ["best" in line for line in lines[3:-1]] == [False, True, False, False]
