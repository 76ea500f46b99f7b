import json
import math

import pytest

from snnet_vitdet import StitchTable
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import ResultsTable, StitchResult


def result(stitch_id, name, gflops, box, mask=math.nan, num_images=80):
    kind = name.split("-")[0]
    cuts = tuple(map(int, name.split("-")[1:]))
    metrics = {"bbox_AP": box, "segm_AP": mask}
    return StitchResult(
        stitch_id, name, kind, cuts, gflops, gflops / 10, metrics, num_images=num_images
    )


RESULTS = (
    result(0, "S", 100, 40, mask=30),
    result(1, "L", 400, 50, mask=38),
    result(2, "FS-1", 300, 48, mask=39),
    result(3, "FS-2", 250, 48, mask=37),
    result(4, "FS-3", 200, 43),
    # Better than all, on a few of the images.
    result(5, "SF-1", 150, 60, mask=60, num_images=5),
)
NAMES = {r.stitch_id: r.name for r in RESULTS}


@pytest.fixture
def folder(tmp_path):
    table = ResultsTable()
    for each in RESULTS:
        table.add(each)
    (tmp_path / "sweep").mkdir()
    table.write(tmp_path / "sweep")
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
        ({"max_gflops": 0}, "max_gflops must be above 0"),
        ({"max_gflops": math.nan}, "max_gflops must be above 0"),
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
    with pytest.raises(KeyError, match="not among those that were swept"):
        table["FSF-1-2"]


def test_measurements_of_other_stitches_and_damaged_ones_are_refused(folder, tmp_path):
    path = folder / "sweep" / "latency.json"
    measure(path, {0: 5.0}, name="L")
    with pytest.raises(InputError, match="stitch 0 is L there and S here; measure again"):
        StitchTable.read(folder)
    for text in ("{", "[]", '{"rows": [{}]}', '{"rows": [{"stitch_id": 0}]}'):
        path.write_text(text)
        with pytest.raises(InputError, match="damaged or was not written by"):
            StitchTable.read(folder)
    measure(path, {0: 5.0}, memory_mb=-1)
    with pytest.raises(InputError, match="memory_mb is -1"):
        StitchTable.read(folder)
    with pytest.raises(InputError, match="cannot read the measurements .*No such file"):
        StitchTable.read(folder, tmp_path / "none.json")
    with pytest.raises(InputError, match="Cannot read the sweep's results"):
        StitchTable.read(tmp_path / "none")
    path.unlink()
    ResultsTable().write(folder / "sweep")
    with pytest.raises(InputError, match="no results yet"):
        StitchTable.read(folder)


@pytest.mark.parametrize(("iterations", "warned"), [(20, False), (None, False), (26, True)])
def test_a_sweep_of_other_weights_is_named(iterations, warned, caplog):
    results = ResultsTable()
    metrics = {"bbox_AP": 1.0}
    results.add(StitchResult(0, "S", "S", (), 1.0, 2.0, metrics, iteration=20, num_images=3))
    StitchTable(results, source="output/my").warn_unless_of("model_final.pth", iterations)
    assert ("after 20 iterations, but model_final.pth" in caplog.text) == warned
