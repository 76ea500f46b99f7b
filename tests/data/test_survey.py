import json
import os

import pytest
from bad_images import save
from PIL import Image

from snnet_vitdet.data import survey as survey_module
from snnet_vitdet.data.survey import DatasetSurvey
from snnet_vitdet.errors import InputError


@pytest.fixture
def survey_of(tmp_path):
    """Surveys images by name: a good one, an empty file, or one of a size."""

    def survey_of(images, **options):
        entries = []
        for number, (name, kind) in enumerate(images.items()):
            size = kind if isinstance(kind, tuple) else (64, 48)
            if kind == "empty":
                (tmp_path / name).touch()
            elif kind == "good":
                save()(tmp_path / name)
            else:
                Image.new("RGB", size).save(tmp_path / name)
            entries.append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
        coco = {"images": entries, "annotations": [], "categories": [{"id": 1, "name": "nut"}]}
        path = tmp_path / "some.json"
        path.write_text(json.dumps(coco))
        return DatasetSurvey(str(path), str(tmp_path), for_evaluation=True, **options)

    return survey_of


@pytest.mark.parametrize("workers", [0, 2])
def test_files_are_told_in_the_order_of_the_images(workers, survey_of):
    images = {f"{n}.png": "empty" if n % 2 else (10 + n, 10) for n in range(40)}
    survey = survey_of(images)
    survey.read_images(decode=True, workers=workers)
    assert survey.sizes == [(10 + n, 10) for n in range(0, 40, 2)]
    assert [os.path.basename(path) for path, _ in survey.images] == list(images)
    (fault,) = (fault for fault in survey.faults() if "are empty" in fault)
    assert "20 of 40" in fault
    positions = [fault.index(f"/{number}.png: the file is empty") for number in (1, 3, 5)]
    assert positions == sorted(positions)


def test_a_process_that_is_ended_from_outside_is_told_of(monkeypatch, survey_of):
    monkeypatch.setattr(survey_module, "inspect_image", lambda *_, **__: os._exit(1))
    with pytest.raises(InputError, match="out of memory: give fewer --workers"):
        survey_of({"some.png": "good"}).read_images(decode=True, workers=1)


def test_an_image_is_too_thin_from_the_given_aspect_on(survey_of):
    survey = survey_of({"127.png": (127, 1), "128.png": (128, 1)}, max_aspect=128)
    survey.read_images(decode=False, workers=0)
    _, fault = survey.faults()
    assert "1 of 2 images" in fault and "128.png: it has 128 x 1 pixels" in fault
