"""Sample detections, and the page that every sweep ends with."""

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode
from in_process import run_main, run_program
from PIL import Image

from snnet_vitdet import StitchTable
from snnet_vitdet.deploy import (
    ClassNames,
    Detections,
    sample_detections,
    stitches_to_show,
)
from snnet_vitdet.errors import InputError

LOW = "model.roi_heads.box_predictor.test_score_thresh=0.01"


def rows_of(*values):
    """Rows of (GFLOPs, on the frontier), or of (…, kind)."""
    return [
        {
            "stitch_id": i,
            "name": str(i),
            "kind": (*kind, "FS")[0],
            "gflops": gflops,
            "on_pareto": on,
            "bbox_AP": 1.0,
        }
        for i, (gflops, on, *kind) in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (rows_of((5, True), (1, True), (3.4, True), (2, True), (3, False)), [1, 2, 0]),
        (rows_of((2, True), (1, True), (9, False), (8, False)), [1, 0, 2]),
        (rows_of((2, True), (1, True), (9, False), (8, False, "L")), [1, 0, 3]),
        (rows_of((4, False), (3, True), (1, False, "S"), (9, False, "L")), [2, 1, 3]),
        (rows_of((1, True)), [0]),
        (rows_of((2, False), (3, False), (1, False)), [2, 0, 1]),
        (rows_of((2, False)), [0]),
    ],
    ids=["many", "two", "two, an anchor", "one", "alone", "no score", "alone without a score"],
)
def test_the_frontiers_ends_and_middle_are_shown_or_it_is_filled_up(rows, expected):
    assert [row["stitch_id"] for row in stitches_to_show(rows)] == expected


class OneBox:
    """Stands for a predictor of a baseline, which finds one object, at the same place always."""

    def __init__(self, box, with_mask):
        self.box, self.with_mask = box, with_mask

    def set_point(self, name):
        """It has one point."""

    def set_score_threshold(self, score):
        if isinstance(score, str):
            raise InputError("a baseline")
        return score

    def __call__(self, image):
        x0, y0, x1, y1 = self.box
        found = Detections(image.shape[:2], pred_boxes=Boxes(torch.tensor([self.box]).float()))
        found.scores, found.pred_classes = torch.tensor([0.9]), torch.tensor([0])
        found.class_names = ClassNames(["nut"])
        if self.with_mask:
            found.pred_masks = torch.zeros(1, *image.shape[:2], dtype=torch.bool)
            found.pred_masks[0, y0:y1, x0:x1] = True
        return found


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("size", [(1200, 900), (320, 240)])
def test_objects_are_drawn_at_their_places_in_images_of_any_size(tmp_path, size, with_mask):
    width, height = size
    box = [width // 2, height // 2, width * 3 // 4, height * 3 // 4]
    file = tmp_path / "image.png"
    Image.new("RGB", size, "black").save(file)
    annotation = {
        "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 1,
        "iscrowd": 0,
    }
    if with_mask:
        x0, y0, x1, y1 = box
        annotation["segmentation"] = [[x0, y0, x1, y0, x1, y1, x0, y1]]
    record = {"file_name": str(file), "annotations": [annotation]}
    row = {"stitch_id": 0, "name": "baseline", "kind": "baseline", "gflops": 2.0, "bbox_AP": None}
    samples = sample_detections(OneBox(box, with_mask), [row], [record], ["nut", "fruit"])
    assert [column.title for column in samples.columns] == ["baseline", "annotated"]
    assert "scores from 0.50 (no score curve)" in samples.columns[0].caption
    for picture, text in zip(samples.rows[0].pictures, ("1 nut", "1 fruit"), strict=True):
        assert picture.text == text
        image = Image.open(io.BytesIO(picture.webp)).convert("L")
        assert image.size == (picture.width, picture.height)
        assert max(image.size) <= 360 and image.width * height == pytest.approx(
            image.height * width, rel=0.01
        )
        drawn = np.asarray(image) > 60
        # The text is at the corner; the opposite edges of the box are its own.
        rows, columns = np.nonzero(drawn)
        assert rows.max() / image.height == pytest.approx(0.75, abs=0.02)
        assert columns.max() / image.width == pytest.approx(0.75, abs=0.02)


def test_of_annotations_the_masks_that_are_there_are_drawn(tmp_path):
    file = tmp_path / "image.png"
    Image.new("RGB", (300, 300), "black").save(file)
    # Each a triangle in its box.
    annotations = [
        {
            "bbox": [x, 60, 120, 120],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": 0,
            "segmentation": [[x, 60, x + 120, 60, x, 180]],
        }
        for x in (20, 160)
    ]
    row = {"stitch_id": 0, "name": "baseline", "kind": "baseline", "gflops": 2.0, "bbox_AP": None}

    def inside(count):
        """How bright the two objects are inside their masks, where ``count`` have one."""
        given = [dict(each) for each in annotations]
        for each in given[count:]:
            del each["segmentation"]
        record = {"file_name": str(file), "annotations": given}
        samples = sample_detections(OneBox([1, 1, 9, 9], False), [row], [record], ["nut"])
        picture = Image.open(io.BytesIO(samples.rows[0].pictures[1].webp)).convert("L")
        scale = picture.width / 300
        pixels = np.asarray(picture)
        return [pixels[round(100 * scale), round((x + 30) * scale)] > 20 for x in (20, 160)]

    assert inside(2) == [True, True]
    assert inside(1) == [True, False]


def test_images_that_are_not_there_are_not_taken(tmp_path):
    row = {"stitch_id": 0, "name": "n", "kind": "baseline", "gflops": 2.0, "bbox_AP": 3.0}
    records = [{"file_name": str(tmp_path / f"{i}.png"), "annotations": []} for i in range(9)]
    with pytest.raises(InputError, match="none of the test images is there"):
        sample_detections(OneBox([1, 1, 9, 9], False), [row], records, ["nut"])
    for record in records[2:4]:
        Image.new("RGB", (40, 30)).save(record["file_name"])
    samples = sample_detections(OneBox([1, 1, 9, 9], False), [row], records, ["nut"])
    assert [row.file_name for row in samples.rows] == ["2.png", "3.png"]
    assert samples.rows[0].pictures[1].text == "nothing"


@pytest.fixture(scope="module")
def swept(trained_tiny, tmp_path_factory, restored_logging):
    """The config of a trained model, with a sweep beside it that these tests may change."""
    config = trained_tiny(tmp_path_factory.mktemp("swept"), LOW)
    run_main(config, "--eval-only")
    return config


@pytest.fixture
def make_report(swept):
    """Runs the program on the sweep with more arguments; gives the page."""
    config_file = Path(swept.train.init_checkpoint).parent / "config.yaml"
    folder = Path(swept.train.output_dir)

    def run(*options, overrides=(), fails=False):
        page = folder / "sweep" / "report.html"
        page.unlink(missing_ok=True)
        done = run_program(
            "tools/make_report.py",
            *("--config-file", str(config_file), "--device", "cpu"),
            *("--weights", swept.train.init_checkpoint),
            *options,
            f"train.output_dir={folder}",
            LOW,
            *overrides,
        )
        assert (done.code != 0) == fails, done.error
        return done.error if fails else page.read_text(encoding="utf-8")

    return run


@pytest.mark.slow
def test_a_sweep_ends_with_a_page_that_shows_three_stitches_and_the_truth(swept, make_report):
    folder = Path(swept.train.output_dir)
    html = (folder / "sweep" / "report.html").read_text(encoding="utf-8")
    table = StitchTable.read(folder)
    shown = stitches_to_show(table.rows())
    assert html.count("data:image/webp") == 4 * (len(shown) + 1)
    for row in shown:
        threshold = table.threshold(row["stitch_id"], "f1")
        text = f"box AP {row['bbox_AP']:.1f}, scores from {threshold:.2f} (its largest F1)"
        assert f"<strong>{row['name']}</strong>" in html and text in html
    assert "latency, ms" not in html
    # The program, from a checkpoint, writes what the sweep wrote from the model at hand; pictures
    # may differ in a pixel, as batches do in the last digit.
    again = make_report()
    without_pictures = [re.sub('base64,[^"]+', "", page) for page in (html, again)]
    assert without_pictures[0] == without_pictures[1]


@pytest.mark.slow
def test_the_page_has_what_was_measured_and_the_training(swept, make_report):
    folder = Path(swept.train.output_dir)
    rows = [
        {
            "stitch_id": i,
            "name": entry.name,
            "latency_ms": 5.0 + i,
            "latency_ms_p90": 6,
            "memory_mb": 7,
        }
        for i, entry in enumerate(StitchTable.read(folder))
    ]
    latency = folder / "sweep" / "latency.json"
    latency.write_text(json.dumps({"device": "an abacus", "rows": rows}))
    shutil.copy(Path(swept.train.init_checkpoint).parent / "metrics.json", folder)
    try:
        html = make_report("--no-samples")
        assert "an abacus" in html and "latency, ms" in html and '"latency_ms":18.0' in html
        assert "The total loss went from" in html and "None were asked for." in html
        # Measurements of another sweep are left out.
        latency.write_text(latency.read_text().replace('"FS-1"', '"FS-7"'))
        assert "latency, ms" not in make_report("--no-samples")
    finally:
        latency.unlink()
        (folder / "metrics.json").unlink()


@pytest.mark.slow
def test_without_images_or_weights_there_is_a_page_that_says_so(make_report, tmp_path):
    html = make_report(overrides=[f"data.test_images={tmp_path}"])
    assert "There are none: none of the test images is there." in html
    html = make_report("--weights", str(tmp_path / "none.pth"))
    assert "There are none: " in html and "none.pth" in html
    assert html.count("<tr data-row") == 14
    error = make_report(overrides=[f"train.output_dir={tmp_path}"], fails=True)
    assert str(tmp_path / "sweep" / "stitches.json") in error


@pytest.mark.slow
def test_a_sweep_of_a_model_that_was_only_fitted_has_samples(trained_tiny, tmp_path):
    config = trained_tiny(tmp_path, LOW, "sweep.at_initialisation=true", "sweep.stitch_ids=anchors")
    config.train.init_checkpoint = ""
    run_main(config, "--eval-only")
    assert "data:image/webp" in (tmp_path / "sweep" / "report.html").read_text(encoding="utf-8")
