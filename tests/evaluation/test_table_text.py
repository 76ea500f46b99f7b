"""The rows of a sweep as JSON, as CSV, and in a terminal."""

import csv
import json
import re

from tables import HEADER, make_metrics, make_result, make_table, small_table, two_stage_table

from snnet_vitdet import StitchTable
from snnet_vitdet.evaluation import format_table


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
    assert lines[1].endswith(",true,,")
    assert lines[3].startswith("4,SFS-3-7,SFS,3-7,3.0000,")
    assert lines[4] == "9,FS-1,FS,1,2.5000,30.2500,,,,,,,12.0000,,,,,,false,,"
    assert lines[5:] == [""]


def test_csv_quotes_a_name_with_a_comma(tmp_path):
    make_table(make_result(name="a, b")).write(tmp_path)

    with (tmp_path / "stitches.csv").open(newline="", encoding="utf-8") as file:
        assert next(csv.DictReader(file))["name"] == "a, b"


def test_json_is_strict_with_null_for_nan_and_cuts_as_a_list(tmp_path):
    small_table().write(tmp_path)

    rows = _strict_json(tmp_path / "stitches.json")
    assert [",".join(row) for row in rows] == [HEADER] * 4
    assert rows[2]["cuts"] == [3, 7] and rows[0]["cuts"] == []
    assert rows[3]["bbox_AP"] is None and rows[3]["segm_AP"] == 12.0
    assert rows[0]["on_pareto"] is True


def test_rows_say_how_long_the_weights_were_trained(tmp_path):
    table = make_table(make_result(0, iteration=0), make_result(1, iteration=700), make_result(2))
    table.write(tmp_path)
    assert [row["iteration"] for row in StitchTable.read_results(tmp_path).rows()] == [0, 700, None]
    lines = (tmp_path / "stitches.csv").read_text().splitlines()
    assert [line.split(",")[-2] for line in lines] == ["iteration", "0", "700", ""]


def test_rows_say_of_how_many_images_their_scores_are(tmp_path):
    two_stage_table().write(tmp_path)
    rows = StitchTable.read_results(tmp_path).rows()
    assert [row["num_images"] for row in rows] == [50, 50, 5, 5]
    lines = (tmp_path / "stitches.csv").read_text().splitlines()
    assert [line.split(",")[-1] for line in lines] == ["num_images", "50", "50", "5", "5"]


# The printed table


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


def test_header_gives_the_units_and_numbers_end_below_it():
    lines = printed(_large_table()).splitlines()

    assert "box, 0-100" in lines[0] and "mask, 0-100" in lines[0]
    assert "GFLOPs" in lines[1] and "M params" in lines[1]
    for header, cell in (("GFLOPs", "475.0"), ("M params", "30.2"), ("AP50", "67.0")):
        assert lines[1].index(header) + len(header) == lines[3].index(cell) + len(cell)


def test_summary_counts_stitches_and_frontier_and_gives_best_and_mean():
    assert printed(small_table()).splitlines()[-1] == (
        "4 stitches, 2 on the frontier (*), best box AP 45.5 by stitch 2 (FS-1), "
        "mean box AP50 59.3, 1 without a score"
    )


def test_a_missing_score_is_a_dash():
    row = printed(small_table()).splitlines()[6]

    assert " ".join(row.split()) == "9 FS-1 2.50 30.2 - - - - - - 12.0 - - - - -"


def test_a_task_without_scores_has_no_columns():
    box_only = printed(make_table(make_result(metrics=make_metrics(40.0, tasks=["bbox"]))))
    mask_only = printed(make_table(make_result(metrics=make_metrics(40.0, tasks=["segm"]))))

    assert "box" in box_only and "mask" not in box_only
    assert "mask" in mask_only and "box" not in mask_only
    assert "best mask AP 40.0" in mask_only


def test_of_equally_good_stitches_the_cheaper_is_the_best():
    text = printed(make_table(make_result(0, gflops=3.0), make_result(1, gflops=2.0)))

    assert "by stitch 1 " in text


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
