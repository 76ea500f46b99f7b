"""The table of a sweep: its entries, its files, and what it chooses for a budget."""

import json
import math
import os

import pytest
from tables import HEADER, make_result, make_table, small_table, two_stage_table

from snnet_vitdet import StitchTable
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import ScoreCurve, StitchResult


def test_results_are_ordered_by_id_however_they_came():
    assert [entry.id for entry in small_table()] == [0, 2, 4, 9]
    assert [row["stitch_id"] for row in small_table().rows()] == [0, 2, 4, 9]


def test_a_table_tells_which_stitches_it_has():
    table = small_table()

    assert 4 in table and 3 not in table and True not in table and None not in table
    assert "SFS-3-7" in table and "SFS-3-8" not in table
    assert table["4"] is table[4] is table["SFS-3-7"]


def test_rows_have_the_columns_of_the_contract_in_order():
    for row in small_table().rows():
        assert ",".join(row) == HEADER + ",latency_ms,latency_ms_p90,memory_mb"


# Files


def test_score_curves_are_written_and_read_with_their_stitches(tmp_path):
    curve = ScoreCurve("FS-1", 9, tuple(range(101)), (3,) * 101)
    table = small_table()
    table.put(make_result(2, gflops=2.0), curve)
    table.write(tmp_path)
    again = StitchTable.read_results(tmp_path)
    assert again[2].curve == curve and again[4].curve is None
    again.put(make_result(2, gflops=2.0))
    again.write(tmp_path)
    assert StitchTable.read_results(tmp_path)[2].curve is None


def test_reading_gives_back_exactly_what_was_written(tmp_path):
    table = small_table()
    table.write(tmp_path)

    again = StitchTable.read_results(tmp_path)
    assert list(again) == list(table)
    assert next(iter(again)).gflops == 1.0 + 1e-9

    again.write(tmp_path / "again")
    for name in ("stitches.json", "stitches.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_an_empty_table_is_written_and_read(tmp_path):
    StitchTable().write(tmp_path)

    assert (tmp_path / "stitches.csv").read_text(encoding="utf-8") == HEADER + "\n"
    assert len(StitchTable.read_results(tmp_path)) == 0


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_a_write_that_fails_leaves_the_old_files_whole(tmp_path, monkeypatch, step):
    small_table().write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(InputError, match=r"stitches\.json: No space left.*another folder"):
        make_table(make_result(1)).write(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


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
        (lambda rows: json.dumps(rows + rows), r"stitch 0 \(small\) has two rows"),
        (_changed(gflops=math.nan), "NaN is not a JSON number"),
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
    small_table().write(tmp_path)
    path = tmp_path / "stitches.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    path.write_bytes(spoil(rows).encode("utf-8", errors="surrogateescape"))

    with pytest.raises(InputError, match=reason) as caught:
        StitchTable.read_results(tmp_path)
    assert str(path) in str(caught.value)
    assert "run the sweep again" in str(caught.value)


def test_results_without_a_number_of_images_are_read(tmp_path):
    """As sweeps wrote them before they counted."""
    two_stage_table().write(tmp_path)
    path = tmp_path / "stitches.json"
    rows = json.loads(path.read_text())
    for row in rows:
        del row["num_images"]
    path.write_text(json.dumps(rows))
    table = StitchTable.read_results(tmp_path)
    assert [entry.result.num_images for entry in table] == [None] * 4
    assert [entry.gflops for entry in table] == [1.0, 3.0, 2.0, 0.5]
    # What this version does not know may change what the rest means.
    path.write_text(json.dumps([{**row, "num_crops": 3} for row in rows]))
    with pytest.raises(InputError, match="row 0 does not have the columns"):
        StitchTable.read_results(tmp_path)


# Choosing


def scored(stitch_id, name, gflops, box, mask=math.nan, num_images=80):
    kind = name.split("-")[0]
    cuts = tuple(map(int, name.split("-")[1:]))
    metrics = {"bbox_AP": box, "segm_AP": mask}
    return StitchResult(
        stitch_id, name, kind, cuts, gflops, gflops / 10, metrics, num_images=num_images
    )


RESULTS = (
    scored(0, "S", 100, 40, mask=30),
    scored(1, "L", 400, 50, mask=38),
    scored(2, "FS-1", 300, 48, mask=39),
    scored(3, "FS-2", 250, 48, mask=37),
    scored(4, "FS-3", 200, 43),
    # Better than all, on a few of the images.
    scored(5, "SF-1", 150, 60, mask=60, num_images=5),
)
NAMES = {r.stitch_id: r.name for r in RESULTS}


@pytest.fixture
def folder(tmp_path):
    StitchTable(RESULTS).write(tmp_path / "sweep")
    return tmp_path


def measure(path, latencies, **changes):
    rows = [
        {
            "stitch_id": i,
            "name": NAMES[i],
            "latency_ms": ms,
            "latency_ms_p90": 2 * ms,
            "memory_mb": 10 * ms,
            **changes,
        }
        for i, ms in latencies.items()
    ]
    path.write_text(json.dumps({"device": "a toaster", "rows": rows}))


@pytest.mark.parametrize(
    ("budgets", "by", "name"),
    [
        ({}, "box", "L"),
        ({}, "mask", "FS-1"),
        ({"max_gflops": 400}, "box", "L"),
        ({"max_gflops": 399}, "box", "FS-2"),  # as good as FS-1, and cheaper
        ({"max_gflops": 299}, "segm_AP", "FS-2"),
        ({"max_gflops": 240}, "mask", "S"),  # FS-3 has no mask AP
        ({"max_gflops": 160}, "box", "S"),  # SF-1 was scored on a subset
        ({"max_params_m": 20}, "box", "FS-3"),
        ({"max_gflops": 300, "max_params_m": 20}, "box", "FS-3"),
    ],
)
def test_the_best_within_a_budget(folder, budgets, by, name):
    assert StitchTable.read(folder).best(by, **budgets).name == name
    # The folder of the sweep serves as well as the training's.
    assert StitchTable.read(folder / "sweep").best(by, **budgets).name == name


def test_measured_times_and_memory_are_budgets(folder):
    measure(folder / "sweep" / "latency.json", {0: 5.0, 1: 20.0, 3: 4.0})
    table = StitchTable.read(folder)
    assert table.device == "a toaster"
    assert table[3].latency_ms == 4 and table[3].latency_ms_p90 == 8
    assert table["FS-2"].memory_mb == 40 and table["FS-1"].latency_ms is None
    assert table.best(max_latency_ms=20).name == "L"
    # Only what was measured is known to be fast enough.
    assert table.best(max_latency_ms=19).name == "FS-2"
    assert table.best(max_memory_mb=45).name == "FS-2"
    assert table.best(max_latency_ms=19, max_gflops=200).name == "S"
    elsewhere = folder / "elsewhere.json"
    measure(elsewhere, {0: 5.0, 1: 6.0})
    assert StitchTable.read(folder, elsewhere).best(max_latency_ms=10).name == "L"


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ({"max_gflops": 99}, r"at most 99 GFLOPs: the cheapest is S \(id 0\) with 100 GFLOPs"),
        ({"max_latency_ms": 3}, r"at most 3 ms: the cheapest is FS-2 \(id 3\) with 4 ms"),
        (
            {"max_gflops": 200, "max_latency_ms": 4.5},
            r"no stitch within max_gflops takes at most 4.5 ms: the cheapest is S \(id 0\) with 5",
        ),
        ({"max_gflops": 0}, "max_gflops must be a number above 0"),
        ({"max_gflops": math.nan}, "max_gflops must be a number above 0"),
        ({"max_gflops": "0.5"}, "max_gflops must be a number above 0, got '0.5'"),
    ],
)
def test_a_budget_nothing_fits_names_the_cheapest(folder, budgets, message):
    measure(folder / "sweep" / "latency.json", {0: 5.0, 1: 20.0, 3: 4.0})
    with pytest.raises(InputError, match=message):
        StitchTable.read(folder).best(**budgets)


def test_what_was_not_measured_or_scored_is_said(folder):
    table = StitchTable.read(folder)
    with pytest.raises(InputError, match=r"max_latency_ms needs time .* tools/measure_latency.py"):
        table.best(max_latency_ms=10)
    with pytest.raises(InputError, match="no stitch of .* has a bbox_APl"):
        table.best("bbox_APl")
    with pytest.raises(InputError, match="chosen by box, mask or one of .*, not by 'speed'"):
        table.best("speed")
    with pytest.raises(InputError, match=r"not by \['box'\]"):
        table.best(["box"])
    with pytest.raises(KeyError, match="not among those that were swept"):
        table["FSF-1-2"]
    with pytest.raises(InputError, match="no score curve of stitch None"):
        table.threshold(None, "f1")
    with pytest.raises(InputError, match="given as measurements is damaged"):
        StitchTable(RESULTS, [3])


def test_measurements_of_other_stitches_and_damaged_ones_are_refused(folder, tmp_path):
    path = folder / "sweep" / "latency.json"
    measure(path, {0: 5.0}, name="L")
    with pytest.raises(InputError, match="stitch 0 is L there and S here; measure again"):
        StitchTable.read(folder)
    for text in ("{", "[]", '{"rows": [{}]}', '{"rows": [{"stitch_id": 0}]}'):
        path.write_text(text)
        with pytest.raises(InputError, match="damaged or was not written by"):
            StitchTable.read(folder)
    measure(path, {0: 5.0}, stitch_id=[0])
    with pytest.raises(InputError, match="a row has no stitch_id or no name"):
        StitchTable.read(folder)
    measure(path, {0: 5.0}, memory_mb=-1)
    with pytest.raises(InputError, match="memory_mb is -1"):
        StitchTable.read(folder)
    with pytest.raises(InputError, match="cannot read the measurements .*No such file"):
        StitchTable.read(folder, tmp_path / "none.json")
    with pytest.raises(InputError, match="Cannot read the sweep's results"):
        StitchTable.read(tmp_path / "none")
    path.unlink()
    StitchTable().write(folder / "sweep")
    with pytest.raises(InputError, match="no results yet"):
        StitchTable.read(folder)


@pytest.mark.parametrize(("iterations", "warned"), [(20, False), (None, False), (26, True)])
def test_a_sweep_of_other_weights_is_named(iterations, warned, caplog):
    results = [StitchResult(0, "S", "S", (), 1.0, 2.0, {"bbox_AP": 1.0}, 20, num_images=3)]
    StitchTable(results, source="output/my").warn_unless_of("model_final.pth", iterations)
    assert ("after 20 iterations, but model_final.pth" in caplog.text) == warned


def test_the_table_with_measurements_has_the_format_of_the_other(folder):
    measure(folder / "sweep" / "latency.json", {0: 5.0})
    path = folder / "sweep" / "stitches_measured.csv"
    StitchTable.read(folder).write_measured(path)
    plain = (folder / "sweep" / "stitches.csv").read_text(encoding="utf-8").splitlines()
    header, first, second, *_ = lines = path.read_text(encoding="utf-8").splitlines()
    assert header == plain[0] + ",latency_ms,latency_ms_p90,memory_mb"
    assert first == plain[1] + ",5.0000,10.0000,50.0000" and second == plain[2] + ",,,"
    assert len(lines) == len(plain)
