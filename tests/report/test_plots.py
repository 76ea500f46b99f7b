import math
import random
import sys

import numpy as np
import pytest
from PIL import Image
from sweep_rows import point_rows

from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import Candidate
from snnet_vitdet.report.plots import (
    comparison_figure,
    pareto_figure,
    plot_pareto,
)

KINDS = ("S", "L", "FS", "FS", "SF", "SF", "SFS", "SFS", "FSF", "FSF")


def _rows(tasks=("bbox", "segm"), seed=0):
    rng = random.Random(seed)
    return [
        {
            "stitch_id": stitch_id,
            "name": kind,
            "kind": kind,
            "gflops": 1.0 + rng.random(),
            "bbox_AP": rng.uniform(30, 50) if "bbox" in tasks else math.nan,
            "segm_AP": rng.uniform(30, 50) if "segm" in tasks else math.nan,
        }
        for stitch_id, kind in enumerate(KINDS)
    ]


def _dots(axes):
    """The (kind, GFLOPs, AP) of every dot of a panel, sorted."""
    return sorted(
        (scatter.get_label(), *map(float, offset))
        for scatter in axes.collections
        for offset in scatter.get_offsets()
    )


def _frontier(axes, label="frontier"):
    (line,) = (line for line in axes.lines if line.get_label() == label)
    return [tuple(map(float, point)) for point in line.get_xydata()]


def _labels(axes):
    return [text.get_text() for text in axes.texts]


def test_each_panel_plots_every_stitch_by_kind_at_its_cost_and_score():
    rows = _rows()
    box, mask = pareto_figure(rows).axes

    assert _dots(box) == sorted((row["kind"], row["gflops"], row["bbox_AP"]) for row in rows)
    assert _dots(mask) == sorted((row["kind"], row["gflops"], row["segm_AP"]) for row in rows)


def test_kinds_differ_in_colour_and_the_walks_in_marker_too():
    scatters = {each.get_label(): each for each in pareto_figure(_rows()).axes[0].collections}

    assert set(scatters) == set(KINDS)
    assert len({tuple(each.get_facecolor()[0]) for each in scatters.values()}) == len(scatters)
    shapes = {scatters[kind].get_paths()[0].vertices.tobytes() for kind in ("FS", "SF", "SFS")}
    assert len(shapes | {scatters["S"].get_paths()[0].vertices.tobytes()}) == 4


def test_anchors_are_large_stars_with_their_letters():
    box = pareto_figure(_rows()).axes[0]
    sizes = {each.get_label(): each.get_sizes()[0] for each in box.collections}
    paths = {each.get_label(): each.get_paths()[0].vertices for each in box.collections}

    assert sizes["S"] == sizes["L"] > 3 * sizes["FS"]
    assert np.array_equal(paths["S"], paths["L"])
    assert len(paths["S"]) == 11  # ten corners of a five-pointed star, closed
    assert sorted(_labels(box)) == ["L", "S"]


@pytest.mark.parametrize("count", [1, 2])
def test_a_sweep_of_the_anchors_alone_is_drawn(tmp_path, count):
    plot_pareto(_rows()[:count], tmp_path / "pareto.png")

    assert len(_dots(pareto_figure(_rows()[:count]).axes[0])) == count
    assert (tmp_path / "pareto.png").exists()


def test_each_panel_has_the_frontier_of_its_own_score():
    rows = [
        {"name": "S", "kind": "S", "gflops": 1.0, "bbox_AP": 30.0, "segm_AP": 30.0},
        {"name": "FS", "kind": "FS", "gflops": 2.0, "bbox_AP": 29.0, "segm_AP": 35.0},
        {"name": "SF", "kind": "SF", "gflops": 3.0, "bbox_AP": 40.0, "segm_AP": 34.0},
    ]
    box, mask = pareto_figure(rows).axes

    assert _frontier(box) == [(1.0, 30.0), (3.0, 40.0)]
    assert _frontier(mask) == [(1.0, 30.0), (2.0, 35.0)]
    assert box.get_title() == "Box AP: 2 of 3 on the frontier"
    assert box.get_xlabel() == mask.get_xlabel() == "GFLOPs (multiply–accumulates / 1e9)"
    assert box.get_ylabel() == "box AP (COCO, 0–100)"
    assert mask.get_ylabel() == "mask AP (COCO, 0–100)"


def test_stitches_scored_on_fewer_images_are_pale_and_not_on_the_frontier():
    rows = [
        {"name": "S", "kind": "S", "gflops": 1.0, "bbox_AP": 30.0, "num_images": 5000},
        {"name": "FS", "kind": "FS", "gflops": 2.0, "bbox_AP": 60.0, "num_images": 500},
        {"name": "FS", "kind": "FS", "gflops": 3.0, "bbox_AP": 40.0, "num_images": 5000},
        {"name": "SF", "kind": "SF", "gflops": 0.5, "bbox_AP": 10.0, "num_images": 500},
    ]
    (box,) = pareto_figure(rows).axes

    assert _frontier(box) == [(1.0, 30.0), (3.0, 40.0)]
    assert len(_dots(box)) == 4
    alphas = {
        (scatter.get_label(), float(cost)): float(colour[3])
        for scatter in box.collections
        for (cost, _), colour in zip(scatter.get_offsets(), scatter.get_facecolor(), strict=True)
    }
    assert alphas == {("S", 1.0): 1.0, ("FS", 2.0): 0.3, ("FS", 3.0): 1.0, ("SF", 0.5): 0.3}
    assert box.get_title() == (
        "Box AP: 2 of 2 on the frontier\n(2 on a subset of the images, pale)"
    )


@pytest.mark.parametrize("missing", [math.nan, None])
def test_missing_scores_are_left_out_and_counted(missing):
    rows = _rows()
    rows[3]["bbox_AP"] = rows[5]["bbox_AP"] = missing
    box, mask = pareto_figure(rows).axes

    assert (len(_dots(box)), len(_dots(mask))) == (8, 10)
    assert "2 without a score" in box.get_title()
    assert "without" not in mask.get_title()


@pytest.mark.parametrize(("task", "label"), [("bbox", "box AP"), ("segm", "mask AP")])
def test_one_task_gives_one_panel(task, label):
    (axes,) = pareto_figure(_rows(tasks=[task])).axes

    assert axes.get_ylabel().startswith(label)


def test_rows_without_any_score_give_a_panel_that_says_so():
    (axes,) = pareto_figure(_rows(tasks=[])).axes

    assert _labels(axes) == ["no stitch has a score"]


def test_legend_names_the_kinds_that_are_there_and_lies_outside_the_panels():
    figure = pareto_figure([row for row in _rows() if row["kind"] in ("S", "SFS")])
    (legend,) = figure.legends

    assert [text.get_text() for text in legend.get_texts()] == [
        "S: small anchor",
        "SFS: large→small→large",
        "on the frontier",
    ]
    figure.draw_without_rendering()
    box = legend.get_window_extent()
    assert not any(box.overlaps(axes.bbox) for axes in figure.axes)


def test_a_kind_with_more_cuts_is_drawn_as_well():
    rows = [
        *_rows(),
        {"name": "FSFS", "kind": "FSFS", "gflops": 1.5, "bbox_AP": 60.0, "segm_AP": 60.0},
    ]
    figure = pareto_figure(rows)

    assert ("FSFS", 1.5, 60.0) in _dots(figure.axes[0])
    assert "FSFS: small→large→small→large" in [
        text.get_text() for text in figure.legends[0].get_texts()
    ]


def test_points_have_the_frontier_of_all_and_that_of_the_stitches_alone():
    rows = [
        {"name": "S", "kind": "S", "gflops": 2.0, "bbox_AP": 30.0},
        {"name": "L", "kind": "L", "gflops": 4.0, "bbox_AP": 40.0},
        {"name": "S@64/5", "kind": "S", "gflops": 1.0, "bbox_AP": 20.0},
        {"name": "L@64/5", "kind": "L", "gflops": 3.0, "bbox_AP": 45.0},
        # On fewer images: on no frontier.
        {"name": "FS-1", "kind": "FS", "gflops": 1.0, "bbox_AP": 99.0, "num_images": 3},
    ]
    rows = [{"num_images": 9} | row for row in rows]
    figure = pareto_figure(rows)
    (box,) = figure.axes

    assert _frontier(box) == [(1.0, 20.0), (2.0, 30.0), (3.0, 45.0)]
    assert _frontier(box, "stitches alone") == [(2.0, 30.0), (4.0, 40.0)]
    assert [text.get_text() for text in figure.legends[0].get_texts()][-2:] == [
        "frontier of all points",
        "frontier of the stitches alone, as trained",
    ]
    # The stars and letters of anchors are those of the stitches.
    assert sorted(_labels(box)) == ["L", "S"]
    large = [each for each in box.collections if each.get_sizes()[0] > 300]
    assert sum(len(each.get_offsets()) for each in large) == 2


def test_thousands_of_points_are_small_and_pale_below_their_frontier():
    rows = point_rows()
    for axes in pareto_figure(rows).axes:
        (line,) = (line for line in axes.lines if line.get_label() == "frontier")
        below = [each for each in axes.collections if each.get_zorder() < line.get_zorder()]
        above = [each for each in axes.collections if each.get_zorder() > line.get_zorder()]
        assert sum(len(each.get_offsets()) for each in [*below, *above]) == len(rows) == 2010
        drawn_above = {tuple(p) for each in above for p in each.get_offsets().tolist()}
        assert set(_frontier(axes)) <= drawn_above and len(drawn_above) < 60
        assert max(each.get_sizes()[0] for each in below) < 10
        assert max(float(each.get_facecolor()[:, 3].max()) for each in below) < 0.5


@pytest.mark.parametrize(
    ("tasks", "size"), [(("bbox", "segm"), (1600, 700)), (("bbox",), (1000, 700))]
)
def test_the_picture_is_a_png_of_the_stated_size(tmp_path, tasks, size):
    path = tmp_path / "sweep" / "pareto.png"
    plot_pareto(_rows(tasks), path, title="A sweep")

    with Image.open(path) as picture:
        assert (picture.format, picture.size) == ("PNG", size)
    assert [each.name for each in path.parent.iterdir()] == ["pareto.png"]


def test_plotting_does_not_need_pyplot():
    loaded_before = "matplotlib.pyplot" in sys.modules
    pareto_figure(_rows())

    assert ("matplotlib.pyplot" in sys.modules) == loaded_before


def test_no_rows_are_an_error():
    with pytest.raises(InputError, match="no result to plot. Sweep at least one stitch first"):
        pareto_figure([])


def run(points):
    return tuple(
        {"name": f"FS-{i}", "kind": "FS", "gflops": cost, "bbox_AP": score, "num_images": 9}
        for i, (cost, score) in enumerate(points)
    )


CANDIDATES = [
    Candidate(
        "ours", (run([(1, 10), (2, 8), (3, 20)]), run([(1, 12), (3, 18)])), "gflops", "bbox_AP"
    ),
    Candidate("theirs", (run([(2, 15)]),), "gflops", "bbox_AP"),
]


def test_all_stitches_are_drawn_and_each_frontier_goes_on_to_the_highest_cost():
    (axes,) = comparison_figure(CANDIDATES, "GFLOPs", "box AP").axes
    dots = [sorted(map(tuple, each.get_offsets().tolist())) for each in axes.collections]
    assert dots == [[(1, 10), (2, 8), (3, 20)], [(1, 12), (3, 18)], [(2, 15)]]
    lines = [
        list(map(tuple, line.get_xydata().tolist()))
        for line in axes.lines
        if line.get_drawstyle() == "steps-post"
    ]
    assert lines == [[(1, 10), (3, 20), (3, 20)], [(1, 12), (3, 18), (3, 18)], [(2, 15), (3, 15)]]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("GFLOPs", "box AP")


def test_runs_of_one_candidate_share_their_colour_and_candidates_differ():
    figure = comparison_figure(CANDIDATES, "GFLOPs", "box AP")
    colours = [
        line.get_color() for line in figure.axes[0].lines if line.get_drawstyle() == "steps-post"
    ]
    assert colours[0] == colours[1] != colours[2]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["ours (2 runs)", "theirs"]
