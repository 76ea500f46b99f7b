"""Sweeps of data in which no object, or not every object, has a mask."""

import copy
import json
from pathlib import Path

import pytest
import torch
from in_process import run_main, run_program

from snnet_vitdet import Predictor, StitchTable
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation.results import AP_NAMES

BOXES = [f"bbox_{name}" for name in AP_NAMES]
MASKS = [f"segm_{name}" for name in AP_NAMES]
MODES = ("one_pass", "separate")
# So short a training is sure of little.
LOW = "model.roi_heads.box_predictor.test_score_thresh=0.01"


@pytest.fixture(scope="module")
def base(tiny_scenes):
    return json.loads(Path(tiny_scenes.train_json).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Writes annotations to a file of their own."""

    def written(coco):
        path = tmp_path_factory.mktemp("annotations") / "case.json"
        path.write_text(json.dumps(coco), encoding="utf-8")
        return path

    return written


@pytest.fixture(scope="module")
def boxes_alone(base, written):
    coco = copy.deepcopy(base)
    for annotation in coco["annotations"]:
        del annotation["segmentation"]
    return written(coco)


def of_file(path):
    return [f"data.{part}_json={path}" for part in ("train", "test")]


@pytest.fixture(scope="module")
def scores(trained_tiny, tmp_path_factory, restored_logging):
    """Sweeps two stitches on annotations; returns their scores."""

    def scores(path, mode, *overrides):
        folder = tmp_path_factory.mktemp("case")
        stitches = "sweep.stitch_ids=[L,FS-1]"
        overrides = (*of_file(path), f"sweep.mode={mode}", stitches, LOW, *overrides)
        run_main(trained_tiny(folder, *overrides), "--eval-only")
        assert (folder / "sweep/report.html").is_file()
        return {each.name: each.result.metrics for each in StitchTable.read(folder)}

    return scores


@pytest.fixture(scope="module")
def expected(scores, written, base):
    rows = scores(written(base), "separate")
    assert 1 < rows["L"]["bbox_AP"] < 99 and 1 < rows["FS-1"]["segm_AP"] < 99
    return rows


def assert_same(found, expected, names):
    assert found.keys() == expected.keys()
    for stitch in expected:
        a, b = ([rows[stitch][name] for name in names] for rows in (found, expected))
        assert a == pytest.approx(b, rel=0, abs=1e-9, nan_ok=True), stitch


@pytest.fixture(scope="module")
def box_detector(trained_tiny, tmp_path_factory):
    """The checkpoint of the tiny detector without its mask head."""
    config = trained_tiny(tmp_path_factory.mktemp("unused"))
    state = torch.load(config.train.init_checkpoint)["model"]
    state = {key: value for key, value in state.items() if "mask_head" not in key}
    path = tmp_path_factory.mktemp("boxes") / "model_final.pth"
    torch.save({"model": state}, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_boxes_alone_score_as_boxes_with_masks(
    mode, scores, boxes_alone, expected, box_detector, trained_tiny, tmp_path
):
    checkpoint = f"train.init_checkpoint={box_detector}"
    found = scores(boxes_alone, mode, checkpoint)
    assert_same(found, expected, BOXES)
    assert all(row[name] != row[name] for row in found.values() for name in MASKS)  # NaN


@pytest.mark.slow
def test_boxes_alone_are_trained_reported_predicted_and_exported(
    tiny_config, boxes_alone, tiny_scenes, tmp_path, restored_logging
):
    images = [f"data.{part}_images={tiny_scenes.train_images}" for part in ("train", "test")]
    output = [f"train.output_dir={tmp_path}", "train.max_iter=3", "train.eval_period=0"]
    config = tiny_config(*of_file(boxes_alone), *images, *output, LOW, "train.log_period=1")
    assert config.data.masks is False
    run_main(copy.deepcopy(config))
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    losses = {key for line in lines for key in json.loads(line) if key.startswith("loss_")}
    assert losses == {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}

    # From here on by the saved config alone.
    saved = tmp_path / "config.yaml"
    assert "masks: false" in saved.read_text() and "mask_head" not in saved.read_text()
    assert run_program("train_net.py", "--config-file", str(saved), "--eval-only").code == 0
    page = (tmp_path / "sweep/report.html").read_text(encoding="utf-8")
    assert "box AP" in page and "mask AP" not in page and "image/webp" in page
    with pytest.raises(InputError, match="no stitch of .* has a segm_AP"):
        StitchTable.read(tmp_path).best("mask")
    image = next(Path(tiny_scenes.train_images).iterdir())
    found = Predictor(tmp_path, stitch="FS-1")(str(image))
    assert not found.has("pred_masks") and len(found) > 0
    export = run_program(
        "tools/export_stitch.py", "--config-file", str(saved), "--stitch", "FS-1", "--torchscript"
    )
    assert export.code == 0, export.error
    exported = Predictor.from_file(tmp_path / "export/FS-1.safetensors")(str(image))
    assert torch.equal(exported.scores, found.scores)


@pytest.fixture(scope="module")
def mixed(base):
    """Every other object has a box alone."""
    coco = copy.deepcopy(base)
    for annotation in coco["annotations"][::2]:
        del annotation["segmentation"]
    return coco


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_masks_are_scored_where_there_are_masks_and_all_boxes(
    mode, base, mixed, written, scores, expected
):
    found = scores(written(mixed), mode)
    assert_same(found, expected, BOXES)
    # What a user would have to write for the masks' scores: crowds in the boxes.
    by_hand = copy.deepcopy(base)
    for annotation, other in zip(by_hand["annotations"], mixed["annotations"], strict=True):
        if "segmentation" not in other:
            x, y, w, h = annotation["bbox"]
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            annotation |= {"iscrowd": 1, "segmentation": [polygon]}
    assert_same(found, scores(written(by_hand), "separate"), MASKS)
    assert found["L"]["segm_AP"] != pytest.approx(expected["L"]["segm_AP"], abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_detector_of_masks_is_scored_on_boxes_alone_where_the_test_data_have_no_masks(
    mode, boxes_alone, base, written, scores, expected
):
    found = scores(boxes_alone, mode, f"data.train_json={written(base)}")
    assert_same(found, expected, BOXES)
    assert all(row[name] != row[name] for row in found.values() for name in MASKS)  # NaN
