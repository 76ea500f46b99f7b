import os

import pytest
from bad_images import HEIGHT, WIDTH, save

from snnet_vitdet.data import survey as survey_module
from snnet_vitdet.data.images import ImageFacts, ImageFault
from snnet_vitdet.data.survey import ImageSurvey, inspect_images
from snnet_vitdet.errors import InputError


@pytest.mark.parametrize("workers", [0, 2])
def test_answers_come_in_the_order_of_the_images(workers, tmp_path):
    names = [f"{number}.png" for number in range(40)]
    for name in names[::2]:
        save()(tmp_path / name)
    images = [(str(tmp_path / name), (WIDTH, HEIGHT)) for name in names]
    found = list(inspect_images(images, decode=True, workers=workers))
    assert [type(each) for each in found] == [ImageFacts, ImageFault] * 20
    assert [each.path for each in found[1::2]] == [path for path, _ in images[1::2]]


def test_a_process_that_is_ended_from_outside_is_told_of(monkeypatch):
    monkeypatch.setattr(survey_module, "inspect_image", lambda *_, **__: os._exit(1))
    with pytest.raises(InputError, match="out of memory: give fewer --workers"):
        list(inspect_images([("some.jpg", None)], decode=True, workers=1))


def test_many_faults_of_a_kind_are_counted_and_the_first_are_shown():
    survey = ImageSurvey()
    for number in range(5):
        survey.add(f"{number}.jpg", ImageFault("empty", f"{number}.jpg", "the file is empty"))
    survey.add("5.jpg", ImageFacts(4, 3, "RGB", turned=False, large=False))
    (fault,) = survey.faults("some.json")
    assert fault.startswith("5 of 6 images of some.json are empty (0.jpg: the file is empty;")
    assert "2.jpg" in fault and "3.jpg" not in fault and "and 2 more): copy it again" in fault
    assert survey.sizes == [(4, 3)] and dict(survey.modes) == {"RGB": 1}


def test_an_image_is_too_thin_from_the_given_aspect_on():
    survey = ImageSurvey(max_aspect=128)
    for width in (127, 128):
        survey.add(f"{width}.png", ImageFacts(width, 1, "RGB", turned=False, large=False))
    (fault,) = survey.faults("some.json")
    assert "1 of 2 images" in fault and "128.png: it has 128 x 1 pixels" in fault
