"""tools/predict.py on the images of a trained tiny model."""

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from in_process import run_program
from pycocotools.coco import COCO

pytestmark = pytest.mark.slow


@pytest.fixture
def predict(trained_tiny, tmp_path):
    """Runs the program into the test's folder; gives what it printed, or its error."""
    config = trained_tiny(tmp_path / "unused")
    config_file = Path(config.train.init_checkpoint).parent / "config.yaml"

    def run(given, *options, fails=False, output=tmp_path / "out"):
        arguments = [str(given), "--config-file", str(config_file), "--device", "cpu"]
        arguments += options if output is None else ["--output", str(output), *options]
        # So short a training is sure of little.
        arguments += ["model.roi_heads.box_predictor.test_score_thresh=0.01"]
        done = run_program("tools/predict.py", *arguments)
        assert (done.code != 0) == fails, done.error
        return done.error if fails else done.printed

    run.images = Path(config.data.test_images)
    return run


def test_results_of_two_runs_are_not_mixed(predict, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = next(predict.images.iterdir())
    for folder in ("predictions", "predictions_2", "predictions_3"):
        assert f"output/{folder}/predictions.json" in predict(image, output=None)
        assert sorted(each.name for each in Path("output", folder).iterdir()) == sorted(
            [image.name, "predictions.json"]
        )


def test_a_folder_gives_pictures_and_a_coco_file(predict, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(predict.images, images)
    (images / "text.png").write_text("no image")
    cv2.imwrite(str(images / "strip.png"), np.zeros((2, 20000), np.uint8))
    (images / "notes.txt").write_text("left alone")
    printed = predict(images, "--stitch", "FS-2", "--threshold", "0.02")
    assert (
        "Stitch FS-2 of " in printed
        and ".pth, scores from 0.02" in printed
        and "text.png cannot be read" in printed
        and "strip.png: an image of 20000 x 2 pixels is too elongated" in printed
    )
    coco = COCO(str(tmp_path / "out/predictions.json"))
    assert len(coco.imgs) == len(list(predict.images.iterdir())) == 8
    assert len(coco.anns) > 0 and min(coco.cats) == 1
    for annotation in coco.anns.values():
        assert annotation["score"] >= 0.02 and annotation["category_id"] in coco.cats
        mask = coco.annToMask(annotation)
        image = coco.imgs[annotation["image_id"]]
        assert mask.shape == (image["height"], image["width"])
        assert mask.sum() == annotation["area"]
    drawn = {path.name for path in (tmp_path / "out").glob("*.jpg")}
    assert drawn == {image["file_name"] for image in coco.imgs.values()}
    annotated = coco.imgs[next(iter(coco.anns.values()))["image_id"]]["file_name"]
    before, after = (cv2.imread(str(f / annotated)) for f in (images, tmp_path / "out"))
    assert np.abs(before.astype(int) - after).max() > 60


def test_several_files_come_before_the_overrides(predict, tmp_path):
    first, second, *_ = sorted(predict.images.iterdir())
    printed = predict(first, str(second), "--stitch", "S", "--no-pictures")
    assert re.search(r"\d+ detections? in ", printed)
    coco = COCO(str(tmp_path / "out/predictions.json"))
    assert [image["file_name"] for image in coco.imgs.values()] == [first.name, second.name]


def test_several_files_are_images_with_names_of_their_own(predict, tmp_path):
    first, second, *_ = sorted(predict.images.iterdir())
    (tmp_path / "film.mp4").touch()
    shutil.copy(first, tmp_path)
    says = predict(first, str(tmp_path / "film.mp4"), fails=True)
    assert "film.mp4 is no image: give several images, or one folder or video" in says
    assert "two images are named" in predict(first, str(tmp_path / first.name), fails=True)
    assert "gone.jpg does not exist" in predict(second, "gone.jpg", fails=True)


def test_a_video_gives_a_video(predict, tmp_path):
    frames = [cv2.imread(str(path)) for path in sorted(predict.images.iterdir())]
    film = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter_fourcc(*"MJPG"), 12, (64, 64))
    for frame in frames:
        writer.write(frame)
    writer.release()
    predict(film, "--threshold", "0.02", "--stitch", "0")
    drawn = cv2.VideoCapture(str(tmp_path / "out/film.mp4"))
    assert drawn.get(cv2.CAP_PROP_FPS) == 12
    assert sum(1 for _ in iter(lambda: drawn.read()[0], False)) == len(frames)
    images = json.loads((tmp_path / "out/predictions.json").read_text())["images"]
    assert [image["file_name"] for image in images] == [f"film.avi#{i}" for i in range(8)]


def test_what_cannot_be_predicted_is_said_in_a_sentence(predict, tmp_path):
    assert "does not exist" in predict(tmp_path / "none.jpg", fails=True)
    (tmp_path / "film.mp4").write_text("no video")
    assert "nor a video" in predict(tmp_path / "film.mp4", fails=True)
    (tmp_path / "text.jpg").write_text("no image")
    assert "cannot be read as an image" in predict(tmp_path / "text.jpg", fails=True)
    shutil.copytree(predict.images, tmp_path / "out", dirs_exist_ok=True)
    assert "would be overwritten" in predict(tmp_path / "out", fails=True)
    image = next(predict.images.iterdir())
    threshold = predict(image, "--threshold", "7", fails=True)
    assert "a threshold is a score from 0 to 1, f1, or precision=" in threshold
    assert "no stitch 'FS-77'" in predict(image, "--stitch", "FS-77", fails=True)


def test_an_image_may_have_no_object_or_one(predict, tmp_path):
    image = next(predict.images.iterdir())
    predict(image, "--threshold", "0")
    written = tmp_path / "out/predictions.json"
    scores = sorted(a["score"] for a in json.loads(written.read_text())["annotations"])
    for threshold, count in ((1.0, 0), (scores[-1], 1)):
        printed = predict(image, "--threshold", str(threshold))
        assert f"{count} detection{'s' * (count != 1)} in" in printed
        assert len(json.loads(written.read_text())["annotations"]) == count
        assert cv2.imread(str(tmp_path / "out" / image.name)).shape == (64, 64, 3)
