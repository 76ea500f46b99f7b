"""The picture of a study."""

import math

import pytest
from PIL import Image

from snnet_vitdet.report.gap_plot import Gap, gap_figure, plot_gaps

GAPS = [
    Gap("paper", (-5.0, -3.0), -4.0, 1.0, 1.0),
    Gap("dear", (1.0, 3.0), 2.0, 1.0, 1.5),
    Gap("single", (-1.0,), -1.0, math.nan, 1.3),
]


def test_variants_come_in_the_order_of_their_gaps_with_a_dot_for_each_seed():
    (axes,) = gap_figure(GAPS, dear=1.3).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "dear  (1.50×)",
        "single  (1.30×)",
        "paper  (1.00×)",
    ]
    dots = [each.get_offsets().tolist() for each in axes.collections if len(each.get_offsets())]
    assert [[1.0, 0.0], [3.0, 0.0]] in dots and [[-5.0, 2.0], [-3.0, 2.0]] in dots
    bottom, top = axes.get_ylim()
    assert bottom > top  # the first row is on top


def test_what_costs_more_has_another_colour():
    (axes,) = gap_figure(GAPS, dear=1.3).axes
    dear, single, paper = (container.lines[0].get_color() for container in axes.containers)
    assert dear != single == paper


@pytest.mark.parametrize("count", [1, 18])
def test_the_file_is_a_picture(tmp_path, count):
    path = tmp_path / "new" / "gaps.png"
    plot_gaps([GAPS[0]] * count, path, dear=1.3)
    assert Image.open(path).width == 1280
