"""The picture of several sweeps."""

from PIL import Image

from snnet_vitdet.evaluation import Candidate
from snnet_vitdet.report.comparison_plot import comparison_figure, plot_comparison


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


def test_all_stitches_are_drawn_and_each_frontier_goes_on_to_the_dearest():
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


def test_the_file_is_a_picture(tmp_path):
    plot_comparison(CANDIDATES, tmp_path / "new/comparison.png", "GFLOPs", "box AP")
    assert Image.open(tmp_path / "new/comparison.png").size == (1440, 900)
