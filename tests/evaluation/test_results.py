import csv
import json
import math
import os
import re

import numpy as np
import pytest

from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import format_table
from snnet_vitdet.evaluation.results import METRICS, ResultsTable, StitchResult

HEADER = (
    "stitch_id,name,kind,cuts,gflops,params_m,"
    "bbox_AP,bbox_AP50,bbox_AP75,bbox_APs,bbox_APm,bbox_APl,"
    "segm_AP,segm_AP50,segm_AP75,segm_APs,segm_APm,segm_APl,on_pareto,iteration,num_images"
)


def _metrics(ap, tasks=("bbox", "segm")):
    steps = (0, 20, 3, -18, 2, 14)
    return {
        name: ap + step
        for task in tasks
        for name, step in zip(
            [metric for metric in METRICS if metric.startswith(task)], steps, strict=True
        )
    }


def _result(
    stitch_id=0,
    *,
    name="FS-1",
    kind="FS",
    cuts=(1,),
    gflops=2.0,
    ap=40.0,
    metrics=None,
    iteration=None,
    num_images=None,
):
    return StitchResult(
        stitch_id=stitch_id,
        name=name,
        kind=kind,
        cuts=cuts,
        gflops=gflops,
        params_m=30.25,
        metrics=_metrics(ap) if metrics is None else metrics,
        iteration=iteration,
        num_images=num_images,
    )


def _table(*results):
    table = ResultsTable()
    for result in results:
        table.add(result)
    return table


def _small_table():
    return _table(
        _result(4, name="SFS-3-7", kind="SFS", cuts=(3, 7), gflops=3.0, ap=39.0),
        _result(0, name="small", kind="S", cuts=(), gflops=1.0 + 1e-9, ap=100 / 3),
        _result(2, gflops=2.0, ap=45.5),
        _result(9, gflops=2.5, metrics={"bbox_AP": math.nan, "segm_AP": 12.0}),
    )


def _strict_json(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


# One result


def test_values_of_any_number_type_become_plain_ones():
    result = _result(np.int64(3), cuts=[np.int64(1)], gflops=np.float32(2.5), ap=np.float32(40.5))

    assert (type(result.stitch_id), type(result.gflops)) == (int, float)
    assert result.cuts == (1,) and type(result.cuts[0]) is int
    assert result.metrics["bbox_AP"] == 40.5 and type(result.metrics["bbox_AP"]) is float


def test_metrics_left_out_are_nan_and_all_stand_in_the_files_order():
    result = _result(metrics={"segm_AP": 1.0, "bbox_AP": 2.0})

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
        _result(**change)


# The table


def test_results_are_ordered_by_id_however_they_came():
    assert [result.stitch_id for result in _small_table()] == [0, 2, 4, 9]
    assert [row["stitch_id"] for row in _small_table().rows()] == [0, 2, 4, 9]


def test_a_second_result_of_a_stitch_is_an_error():
    table = _table(_result(4))

    with pytest.raises(ValueError, match=r"stitch 4 \(FS-1\) has a result already"):
        table.add(_result(4))
    assert len(table) == 1


def test_a_table_tells_which_stitches_it_has():
    table = _small_table()

    assert 4 in table and 3 not in table


def test_rows_have_the_columns_of_the_contract_in_order():
    for row in _small_table().rows():
        assert ",".join(row) == HEADER


def test_the_frontier_is_of_box_ap_over_gflops():
    assert [row["on_pareto"] for row in _small_table().rows()] == [True, True, False, False]


def test_nothing_is_on_the_frontier_without_box_ap():
    table = _table(*(_result(i, metrics=_metrics(40.0, tasks=["segm"])) for i in range(3)))

    assert [row["on_pareto"] for row in table.rows()] == [False, False, False]


# Files


def test_csv_has_the_header_of_the_contract_and_readable_values(tmp_path):
    _small_table().write(tmp_path)

    lines = (tmp_path / "stitches.csv").read_text(encoding="utf-8").split("\n")
    assert lines[0] == HEADER
    assert lines[1].startswith("0,small,S,,1.0000,30.2500,33.3333,53.3333,")
    assert lines[1].endswith(",true,,")
    assert lines[3].startswith("4,SFS-3-7,SFS,3-7,3.0000,")
    assert lines[4] == "9,FS-1,FS,1,2.5000,30.2500,,,,,,,12.0000,,,,,,false,,"
    assert lines[5:] == [""]


def test_csv_quotes_a_name_with_a_comma(tmp_path):
    _table(_result(name="a, b")).write(tmp_path)

    with (tmp_path / "stitches.csv").open(newline="", encoding="utf-8") as file:
        assert next(csv.DictReader(file))["name"] == "a, b"


def test_json_is_strict_with_null_for_nan_and_cuts_as_a_list(tmp_path):
    _small_table().write(tmp_path)

    rows = _strict_json(tmp_path / "stitches.json")
    assert [",".join(row) for row in rows] == [HEADER] * 4
    assert rows[2]["cuts"] == [3, 7] and rows[0]["cuts"] == []
    assert rows[3]["bbox_AP"] is None and rows[3]["segm_AP"] == 12.0
    assert rows[0]["on_pareto"] is True


def test_reading_gives_back_exactly_what_was_written(tmp_path):
    table = _small_table()
    table.write(tmp_path)

    again = ResultsTable.read(tmp_path)
    assert list(again) == list(table)
    assert next(iter(again)).gflops == 1.0 + 1e-9

    again.write(tmp_path / "again")
    for name in ("stitches.json", "stitches.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_an_empty_table_is_written_and_read(tmp_path):
    ResultsTable().write(tmp_path)

    assert (tmp_path / "stitches.csv").read_text(encoding="utf-8") == HEADER + "\n"
    assert len(ResultsTable.read(tmp_path)) == 0


def test_a_write_makes_the_folder_and_leaves_only_the_two_files(tmp_path):
    folder = tmp_path / "output" / "sweep"
    _small_table().write(folder)
    _small_table().write(folder)

    assert sorted(os.listdir(folder)) == ["stitches.csv", "stitches.json"]


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_a_write_that_fails_leaves_the_old_files_whole(tmp_path, monkeypatch, step):
    _small_table().write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(InputError, match=r"stitches\.json: No space left.*another folder"):
        _table(_result(1)).write(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_process_killed_before_the_replacement_leaves_the_old_file_whole(tmp_path, monkeypatch):
    table = _small_table()
    table.write(tmp_path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        # What a kill signal leaves behind, where no clean-up runs.
        patch.setattr("pathlib.Path.unlink", lambda *_args, **_kwargs: None)
        with pytest.raises(KeyboardInterrupt):
            _table(_result(1)).write(tmp_path)
    assert (tmp_path / ".tmp.stitches.json").exists()
    assert list(ResultsTable.read(tmp_path)) == list(table)

    table.write(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["stitches.csv", "stitches.json"]


def test_a_folder_that_is_a_file_is_an_error_that_names_it(tmp_path):
    (tmp_path / "sweep").write_text("")

    with pytest.raises(InputError, match=r"cannot write .*sweep.stitches\.json"):
        _small_table().write(tmp_path / "sweep")


def test_reading_a_folder_without_results_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(InputError, match=r"stitches\.json: No such file.*run the sweep"):
        ResultsTable.read(tmp_path)


def _changed(**changes):
    def change(rows):
        rows[0].update(changes)
        return json.dumps(rows)

    return change


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda rows: json.dumps(rows)[:-30], "damaged"),
        (lambda rows: "", "damaged"),
        (lambda rows: "\udcff", "damaged"),
        (lambda rows: json.dumps({"rows": rows}), "not a list of rows"),
        (lambda rows: json.dumps([1, 2]), "row 0 does not have the columns stitch_id, name"),
        (lambda rows: json.dumps([{"image_id": 1}]), "row 0 does not have the columns"),
        (lambda rows: json.dumps(rows + rows), r"stitch 0 \(small\) has a result already"),
        (_changed(gflops=math.nan), "NaN is no JSON number"),
        (_changed(gflops=None), "gflops must be a number, got None"),
        (_changed(bbox_AP=420.0), "bbox_AP must be an AP on 0-100"),
        (_changed(stitch_id="0"), "damaged"),
        (_changed(cuts="3-7"), "damaged"),
        (_changed(cuts=None), "damaged"),
        (_changed(gflops=10**400), "damaged"),
    ],
)
def test_a_damaged_or_foreign_file_is_an_error_that_names_it_and_the_remedy(
    tmp_path, spoil, reason
):
    _small_table().write(tmp_path)
    path = tmp_path / "stitches.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    path.write_bytes(spoil(rows).encode("utf-8", errors="surrogateescape"))

    with pytest.raises(InputError, match=reason) as caught:
        ResultsTable.read(tmp_path)
    assert str(path) in str(caught.value)
    assert "run the sweep again" in str(caught.value)


# The printed table


def _large_table():
    cuts = [(a, b) for a in range(1, 12) for b in range(a + 1, 12)]
    results = [
        _result(
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
    return _table(*results)


def test_every_stitch_is_printed_within_120_columns():
    lines = format_table(_large_table()).splitlines()

    assert len(lines) == 3 + 55 + 1
    assert max(map(len, lines)) <= 120
    assert [int(re.match(r"[best *]*(\d+)", line)[1]) for line in lines[3:-1]] == list(range(55))


def test_frontier_rows_are_starred_and_the_best_is_named():
    lines = format_table(_large_table()).splitlines()[3:-1]

    assert [i for i, line in enumerate(lines) if "*" in line] == list(range(31))
    assert [i for i, line in enumerate(lines) if "best" in line] == [30]


def test_header_gives_the_units_and_numbers_end_below_it():
    lines = format_table(_large_table()).splitlines()

    assert "box, 0-100" in lines[0] and "mask, 0-100" in lines[0]
    assert "GFLOPs" in lines[1] and "M params" in lines[1]
    for header, cell in (("GFLOPs", "475.0"), ("M params", "30.2"), ("AP50", "67.0")):
        assert lines[1].index(header) + len(header) == lines[3].index(cell) + len(cell)


def test_summary_counts_stitches_and_frontier_and_gives_best_and_mean():
    assert format_table(_small_table()).splitlines()[-1] == (
        "4 stitches, 2 on the frontier (*), best box AP 45.5 by stitch 2 (FS-1), "
        "mean box AP50 59.3, 1 without a score"
    )


def test_a_missing_score_is_a_dash():
    row = format_table(_small_table()).splitlines()[6]

    assert " ".join(row.split()) == "9 FS-1 2.50 30.2 - - - - - - 12.0 - - - - -"


def test_a_task_without_scores_has_no_columns():
    box_only = format_table(_table(_result(metrics=_metrics(40.0, tasks=["bbox"]))))
    mask_only = format_table(_table(_result(metrics=_metrics(40.0, tasks=["segm"]))))

    assert "box" in box_only and "mask" not in box_only
    assert "mask" in mask_only and "box" not in mask_only
    assert "best mask AP 40.0" in mask_only


def test_of_equally_good_stitches_the_cheaper_is_the_best():
    text = format_table(_table(_result(0, gflops=3.0), _result(1, gflops=2.0)))

    assert "by stitch 1 " in text


def test_a_detector_that_finds_nothing_still_gives_a_table():
    assert format_table(_table(_result(metrics={}))).endswith("1 stitch, none has a score")
    assert format_table(ResultsTable()) == "No stitch has a result yet."


def test_rows_say_how_long_the_weights_were_trained(tmp_path):
    table = _table(_result(0, iteration=0), _result(1, iteration=700), _result(2))
    table.write(tmp_path)
    assert [row["iteration"] for row in ResultsTable.read(tmp_path).rows()] == [0, 700, None]
    lines = (tmp_path / "stitches.csv").read_text().splitlines()
    assert [line.split(",")[-2] for line in lines] == ["iteration", "0", "700", ""]


def test_the_printed_table_says_that_nothing_was_trained():
    untrained = _table(_result(0, iteration=0), _result(1, iteration=0))
    assert "before any training" in format_table(untrained).splitlines()[-1]
    partly = _table(_result(0, iteration=0), _result(1, iteration=1))
    assert "before any training" not in format_table(partly)


@pytest.mark.parametrize("column", ["iteration", "num_images"])
def test_a_negative_count_is_refused(column):
    with pytest.raises(ValueError, match=f"{column} must be 0 or more, got -1"):
        _result(**{column: -1})


# Scores of different images


def _two_stage_table():
    """A frontier on all 50 images; on 5, one stitch that is better and one that is cheaper."""
    return _table(
        _result(0, name="S", kind="S", cuts=(), gflops=1.0, ap=30.0, num_images=50),
        _result(1, name="L", kind="L", cuts=(), gflops=3.0, ap=40.0, num_images=50),
        _result(2, gflops=2.0, ap=60.0, num_images=5),
        _result(3, gflops=0.5, ap=20.0, num_images=5),
    )


def test_rows_say_of_how_many_images_their_scores_are(tmp_path):
    _two_stage_table().write(tmp_path)
    rows = ResultsTable.read(tmp_path).rows()
    assert [row["num_images"] for row in rows] == [50, 50, 5, 5]
    lines = (tmp_path / "stitches.csv").read_text().splitlines()
    assert [line.split(",")[-1] for line in lines] == ["num_images", "50", "50", "5", "5"]


def test_only_scores_of_the_most_images_are_on_the_frontier_and_beat_others():
    assert [row["on_pareto"] for row in _two_stage_table().rows()] == [True, True, False, False]
    equal = _table(*(_result(i, gflops=3.0 - i, ap=40.0 - i, num_images=5) for i in range(3)))
    assert [row["on_pareto"] for row in equal.rows()] == [True, True, True]
    uncounted = _table(_result(0, ap=30.0), _result(1, ap=40.0, gflops=3.0, num_images=1))
    assert [row["on_pareto"] for row in uncounted.rows()] == [False, True]


def test_best_and_mean_are_among_the_scores_of_the_most_images():
    lines = format_table(_two_stage_table()).splitlines()
    assert lines[-1] == (
        "4 stitches, 2 of them scored on a subset of the images only, 2 on the frontier (*), "
        "best box AP 40.0 by stitch 1 (L), mean box AP50 55.0"
    )
    assert ["best" in line for line in lines[3:-1]] == [False, True, False, False]


def test_results_without_a_number_of_images_are_read(tmp_path):
    """As sweeps wrote them before they counted."""
    _two_stage_table().write(tmp_path)
    path = tmp_path / "stitches.json"
    rows = json.loads(path.read_text())
    for row in rows:
        del row["num_images"]
    path.write_text(json.dumps(rows))
    table = ResultsTable.read(tmp_path)
    assert [result.num_images for result in table] == [None] * 4
    assert [result.gflops for result in table] == [1.0, 3.0, 2.0, 0.5]
    # What this version does not know may change what the rest means.
    path.write_text(json.dumps([{**row, "num_crops": 3} for row in rows]))
    with pytest.raises(InputError, match="row 0 does not have the columns"):
        ResultsTable.read(tmp_path)


def test_a_result_is_put_in_place_of_another():
    table = _two_stage_table()
    table.put(_result(2, ap=35.0, num_images=50))
    assert [result.num_images for result in table] == [50, 50, 50, 5]
    assert [row["on_pareto"] for row in table.rows()] == [True, True, True, False]
