"""What the page's controls choose, and what is drawn of it."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from snnet_vitdet.demo.choices import Choices
from snnet_vitdet.demo.plot import plot_svg
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import StitchResult, StitchTable
from snnet_vitdet.stitching import Cost, StitchSpace

SPACE = StitchSpace((4, 8))
COSTS = [Cost(flops=(100 + 10 * i) * 1e9, params=(50 - i) * 1e6) for i in range(len(SPACE))]


def table_of(ids, measured=(), num_images=None):
    """Later stitches cost more; by box AP the even ones are better, by mask AP the odd ones."""
    results = []
    for i in ids:
        stitch = SPACE[i]
        metrics = {"bbox_AP": 20 + i + 5 * (i % 2 == 0), "segm_AP": 20 + i + 5 * (i % 2)}
        results.append(
            StitchResult(
                *(stitch.id, stitch.name, stitch.kind, stitch.cuts),
                *(COSTS[i].gflops, COSTS[i].params_m, metrics),
                num_images=(num_images or {}).get(i, 8),
            )
        )
    rows = [
        dict(stitch_id=i, name=SPACE[i].name, latency_ms=90 - i, latency_ms_p90=99, memory_mb=7)
        for i in measured
    ]
    return StitchTable(results, {"device": "a device", "rows": rows} if rows else None)


@pytest.fixture
def swept():
    return Choices(list(SPACE), COSTS, table_of(range(14), measured=range(14)))


def test_a_budget_takes_the_best_within(swept):
    assert swept.within("gflops", 155, "box") == SPACE[4].name
    assert swept.within("gflops", 155, "mask") == SPACE[5].name
    # Later ones are quicker here.
    assert swept.within("latency_ms", 77, "mask") == SPACE[13].name
    assert swept.scores == ["box", "mask"]
    assert swept.budgets == ["gflops", "latency_ms", "memory_mb"]


@pytest.mark.parametrize("budget", ["gflops", "latency_ms", "memory_mb"])
def test_a_slider_reaches_from_the_cheapest_to_all(swept, budget):
    low, high, step = swept.limits(budget)
    costs = [swept.rows[stitch.name][budget] for stitch in SPACE]
    assert min(costs) <= low < min(costs) + step and max(costs) <= high
    assert swept.rows[swept.within(budget, low, "box")][budget] <= low
    # Round steps, as many as a hand can set.
    assert re.fullmatch(r"0*[125]0*", f"{step:g}".replace(".", ""))
    assert (high - low) / step <= 202


def test_without_a_sweep_the_most_computing_is_taken():
    choices = Choices(list(SPACE), COSTS, None)
    assert choices.within("gflops", 155, "box") == SPACE[5].name
    assert (choices.scores, choices.budgets, choices.has_best_f1) == ([], ["gflops"], False)
    points = choices.points("gflops", "box")
    assert [y for _, _, y in points] == [cost.params_m for cost in COSTS]
    with pytest.raises(InputError, match="no stitch takes at most 99: the cheapest has 100"):
        choices.within("gflops", 99, "box")


def test_only_what_was_scored_and_measured_is_drawn():
    table = table_of([0, 1, 4, 6], measured=[1, 6], num_images={4: 2})
    choices = Choices(list(SPACE), COSTS, table)
    assert [row["stitch_id"] for row, _, _ in choices.points("gflops", "box")] == [0, 1, 6]
    assert [row["stitch_id"] for row, _, _ in choices.points("latency_ms", "box")] == [1, 6]
    # By name they can be had all the same.
    assert choices.rows[SPACE[13].name]["gflops"] == COSTS[13].gflops


def test_a_sweep_of_another_model_is_refused():
    other = list(StitchSpace((6, 12)))
    with pytest.raises(InputError, match="it is the sweep of another model"):
        Choices(other, COSTS[:1] * len(other), table_of(range(14)))


def test_the_plot_has_every_point_and_marks_the_chosen(swept):
    points = swept.points("gflops", "box")
    svg = plot_svg(points, "GFLOPs", "box AP", chosen=SPACE[4].name, limit=155).partition("<ul")[0]
    root = ElementTree.fromstring(svg)
    drawn = {use.get("data-stitch"): use for use in root.iter("use")}
    assert set(drawn) == {row["name"] for row, _, _ in points}
    assert SPACE[4].name in root.get("aria-label")
    (ring,) = [c for c in root.iter("circle") if c.get("class") == "ring"]
    chosen = drawn[SPACE[4].name]
    assert (ring.get("cx"), ring.get("cy")) == (chosen.get("x"), chosen.get("y"))
    # Dearer is further right, better is higher up.
    places = [tuple(float(drawn[row["name"]].get(k)) for k in "xy") for row, _, _ in points]
    assert places[0][0] < places[1][0] and places[0][1] > places[4][1]
    (beyond,) = [r for r in root.iter("rect") if r.get("class") == "beyond"]
    assert places[5][0] < float(beyond.get("x")) < places[6][0]
    (_, _, width, height) = map(float, root.get("viewBox").split())
    assert all(0 < x < width and 0 < y < height for x, y in places)


def test_a_plot_of_one_point_is_drawn(swept):
    point = swept.points("gflops", "box")[0]
    assert "nan" not in plot_svg([point], "GFLOPs", "box AP", chosen="S", limit=1000)


def test_of_thousands_of_points_the_frontier_has_markers_and_all_are_dots():
    stitch = {"stitch_id": 2, "name": "FS-1", "kind": "FS"}
    points = [(stitch | {"name": f"FS-1@{i}/9"}, i, i % 1500) for i in range(1, 2011)]
    points.append(({"stitch_id": 0, "name": "S", "kind": "S"}, 2000, 3))
    points.append(({"stitch_id": 0, "name": "S@64/9", "kind": "S"}, 2000, 2))
    svg = plot_svg(points, "GFLOPs", "box AP", chosen="FS-1@1700/9").partition("<ul")[0]
    root = ElementTree.fromstring(svg)
    named = {use.get("data-stitch") for use in root.iter("use")}
    assert named == {"S"} | {f"FS-1@{i}/9" for i in range(1, 1500)}
    dots = [path.get("d") for path in root.iter("path") if path.get("class") == "dots"]
    assert [path.count("M") for path in dots] == [2, 2010]
    # What is chosen has its ring, on the frontier or off it.
    (ring,) = [c for c in root.iter("circle") if c.get("class") == "ring"]
    assert f"M{ring.get('cx')} {ring.get('cy')}h0" in dots[1]
    assert root.get("aria-label").startswith("2,012 operating points, box AP over GFLOPs; chosen")
