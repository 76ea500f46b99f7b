import io

import pytest
from PIL import Image
from research.proxy.gap_plot import gap_figure
from research.proxy.table import StudyTable


@pytest.fixture
def table():
    made = StudyTable(paper_cost=0.5)
    gaps = {"paper": ((-5.0, -3.0), 0.5), "dear": ((1.0, 3.0), 0.75), "single": ((-1.0,), 0.65)}
    for name, (values, cost) in gaps.items():
        for seed, gap in enumerate(values):
            made.add(seed, name, {"small_gap": gap, "cost": cost})
    made.add(0, "small_alone", {"small": 40.0, "cost": 0.2})
    return made


def test_variants_come_in_the_order_of_their_gaps_with_a_dot_for_each_seed(table):
    (axes,) = gap_figure(table).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "dear  (1.50×)",
        "single  (1.30×)",
        "paper  (1.00×)",
    ]
    dots = [each.get_offsets().tolist() for each in axes.collections if len(each.get_offsets())]
    assert [[1.0, 0.0], [3.0, 0.0]] in dots and [[-5.0, 2.0], [-3.0, 2.0]] in dots
    bottom, top = axes.get_ylim()
    assert bottom > top  # the first row is on top


def test_what_costs_more_has_another_colour(table):
    (axes,) = gap_figure(table).axes
    dear, single, paper = (container.lines[0].get_color() for container in axes.containers)
    assert dear != single == paper


@pytest.mark.parametrize("count", [1, 18])
def test_the_figure_can_be_saved(count):
    table = StudyTable(1.0)
    for number in range(count):
        table.add(0, f"run{number}", {"small_gap": 1.0, "cost": 1.0})
    file = io.BytesIO()
    gap_figure(table).savefig(file)
    assert Image.open(file).width == 1280
