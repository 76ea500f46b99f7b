"""What visitors are answered, without a model."""

import numpy as np
import pytest
from found_objects import found_in
from PIL import Image

from snnet_vitdet.demo.answers import BY_NAME, F1, Answers, Wish
from snnet_vitdet.demo.choices import Choices
from snnet_vitdet.errors import InputError
from snnet_vitdet.stitching import Cost, StitchSpace

SPACE = StitchSpace((4, 8))
COSTS = [Cost(flops=(100 + 10 * i) * 1e9, params=5e6) for i in range(len(SPACE))]
WISH = dict(budget="gflops", limit=155, name="L", by="box", threshold="fixed", min_score=0.5)


class Recorder:
    """A model that finds the same in everything, and remembers what it was asked for."""

    def __init__(self, objects):
        self.objects, self.asked = objects, []

    def __call__(self, image, stitch_id):
        self.asked.append((image.shape, stitch_id))
        return found_in(image, *self.objects)


@pytest.fixture
def file(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


def answers_of(*objects):
    return Answers(Recorder(objects), Choices(list(SPACE), COSTS, None), max_pixels=1000)


def test_the_model_runs_as_it_is_wanted(file):
    answers = answers_of(("cat", 0.3), ("dog", 0.9))
    picture, said = answers.detect(file, Wish(**WISH))
    assert isinstance(picture, np.ndarray) and picture.shape == (448, 672, 3)
    assert f"<strong>{SPACE[5].name}</strong> found <strong>1 object</strong>" in said
    assert "at least 0.50, in" in said and " ms</strong>" in said
    assert "<td>dog</td><td>0.90</td>" in said and "cat" not in said
    _, said = answers.detect(file, Wish(**WISH | dict(budget=BY_NAME, min_score=0.2)))
    assert "<strong>2 objects</strong>" in said and said.index("dog") < said.index("cat")
    assert answers._predict.asked == [((20, 30, 3), "SF-1"), ((20, 30, 3), "L")]


def test_names_of_classes_are_no_html(file):
    _, said = answers_of(("<script>", 0.9)).detect(file, Wish(**WISH))
    assert "&lt;script&gt;" in said and "<script>" not in said


def test_what_there_is_not_is_said(file):
    answers = answers_of()
    with pytest.raises(InputError, match="without a sweep there is no best F1: give a score"):
        answers.detect(file, Wish(**WISH | dict(threshold=F1)))
    with pytest.raises(InputError, match="The model has no stitch 'X'"):
        answers.detect(file, Wish(**WISH | dict(budget=BY_NAME, name="X")))
    assert answers._predict.asked == []
    _, said = answers.detect(file, Wish(**WISH))
    assert "0 objects" in said and "<table" not in said


def test_the_plot_follows_and_runs_no_model():
    answers = answers_of()
    plots = {limit: answers.preview(Wish(**WISH | dict(limit=limit))) for limit in (101, 155)}
    assert f"chosen: {SPACE[0].name} " in plots[101] and f"chosen: {SPACE[5].name} " in plots[155]
    assert "<dt>GFLOPs</dt><dd>150</dd>" in plots[155]
    # Nothing was scored, so nothing is said of being best.
    assert "AP" not in plots[155] and "frontier" not in plots[155]
    above = answers.preview(Wish(**WISH | dict(limit=99)))
    assert 'role="alert">no stitch takes at most 99' in above and "chosen:" not in above
    assert answers._predict.asked == []


def test_a_single_stitch_has_facts_and_no_plot():
    answers = Answers(Recorder(()), Choices([SPACE[3]], COSTS[3:4], None), max_pixels=1000)
    html = answers.preview(Wish(**WISH | dict(limit=answers.choices.limits("gflops")[0])))
    assert SPACE[3].name in html and "<svg" not in html


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (1600, 40)])
def test_a_picture_of_any_shape_is_drawn(tmp_path, size):
    Image.new("RGB", size[::-1]).save(tmp_path / "a.png")
    answers = Answers(Recorder(()), Choices(list(SPACE), COSTS, None), max_pixels=100_000)
    drawn, _ = answers.detect(str(tmp_path / "a.png"), Wish(**WISH))
    assert max(size) <= max(drawn.shape) <= 1601
    # The aspect is kept, to a pixel of the shorter side.
    assert min(drawn.shape[:2]) == pytest.approx(
        max(drawn.shape[:2]) * min(size) / max(size), abs=1
    )
