"""Counts above a score against COCO's own matching, and the thresholds that follow from them."""

import contextlib
import io
import itertools
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation.score_curves import (
    CURVES_FILE,
    Boxes,
    count_matches,
    read_curves,
    write_curves,
)

IMAGES, CATEGORIES = (3, 5, 8, 9), (0, 1, 2)


def boxes(rng, number):
    return np.concatenate([rng.uniform(0, 60, (number, 2)), rng.uniform(15, 50, (number, 2))], 1)


def random_case(seed):
    """Annotations, some of them crowds, and detections near them and elsewhere."""
    rng = np.random.default_rng(seed)
    annotations, detections = [], []
    for image_id in IMAGES[:-1]:
        for box in boxes(rng, rng.integers(2, 8)):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(rng.integers(2)),
                    "bbox": box.tolist(),
                    "area": float(box[2] * box[3]),
                    "iscrowd": int(rng.random() < 0.2),
                }
            )
    for image_id in IMAGES:
        near = [a["bbox"] for a in annotations if a["image_id"] == image_id] * 3
        given = np.concatenate([np.array(near).reshape(-1, 4), boxes(rng, 6)])
        for box in given * rng.normal(1, 0.08, given.shape):
            detections.append(
                {
                    "image_id": image_id,
                    "category_id": int(rng.integers(3)),
                    "bbox": box.tolist(),
                    "score": float(np.float32(rng.integers(1, 101) / 100)),
                }
            )
    return annotations, detections


def boxes_of(entries):
    columns = ([e[key] for e in entries] for key in ("image_id", "category_id"))
    boxes = np.array([e["bbox"] for e in entries], dtype=float).reshape(-1, 4)
    return Boxes(*(np.array(column, dtype=int) for column in columns), boxes)


def curve_of(annotations, detections, name="FS-1"):
    crowds = np.array([a.get("iscrowd", 0) for a in annotations], dtype=bool)
    scores = np.array([d["score"] for d in detections])
    return count_matches(name, boxes_of(annotations), crowds, boxes_of(detections), scores)


def counts_of_pycocotools(annotations, detections, score):
    """How many detections of a score or more there are, and how many match an object."""
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": i} for i in IMAGES],
        "categories": [{"id": i} for i in CATEGORIES],
        "annotations": [dict(a) for a in annotations],
    }
    shown = matched = 0
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        results = truth.loadRes([dict(d) for d in detections])
        evaluation = COCOeval(truth, results, "bbox")
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.params.areaRng = [[0, 1e10]]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.evaluate()
    for each in filter(None, evaluation.evalImgs):
        counts = (np.array(each["dtScores"]) >= score - 1e-6) & ~each["dtIgnore"][0].astype(bool)
        shown += int(counts.sum())
        matched += int((counts & (each["dtMatches"][0] > 0)).sum())
    return shown, matched


@pytest.mark.parametrize("seed", range(8))
def test_counts_are_those_of_pycocotools(seed):
    annotations, detections = random_case(seed)
    curve = curve_of(annotations, detections)
    assert curve.num_objects == sum(not a["iscrowd"] for a in annotations)
    for step in (0, 1, 37, 50, 99, 100):
        expected = counts_of_pycocotools(annotations, detections, step / 100)
        assert (curve.detections[step], curve.matched[step]) == expected
    # Some but not all are right.
    assert 0 < curve.matched[0] < curve.detections[0] <= len(detections)


def test_nothing_found_is_counted_as_such():
    annotations, _ = random_case(0)
    curve = curve_of(annotations, [], "S")
    assert curve.detections == curve.matched == (0,) * 101
    with pytest.raises(InputError, match="S finds no object at any score"):
        curve.threshold("f1")
    with pytest.raises(InputError, match=r"precision of 0.9 at no score: 0.00 is its best"):
        curve.threshold("precision=0.9")


def curve_of_points(points, num_objects=10):
    """A curve from (score, right or wrong) of each detection."""
    places = itertools.count(step=20.0)
    detections = [
        {
            "image_id": 1,
            "category_id": 0,
            "bbox": [next(places) if hit else 1e4, 0, 10, 10],
            "score": score,
        }
        for score, hit in points
    ]
    place = {"image_id": 1, "category_id": 0}
    objects = [{**place, "bbox": [20.0 * i, 0, 10, 10]} for i in range(num_objects)]
    return curve_of(objects, detections)


def test_thresholds_are_what_the_curve_says():
    # 5 right above 0.8, then 1 of 3 right, then 4 of 14.
    points = [(0.9, True)] * 5
    points += [(0.6, True), (0.6, False), (0.6, False)]
    points += [(0.3, True)] * 4 + [(0.3, False)] * 10
    curve = curve_of_points(points)
    assert curve.matched[0] == 10 and curve.detections[0] == 22
    assert curve.matched[60] == 6 and curve.precision()[60] == 0.75
    # F1: 0.67 at 0.9 and 0.67 at 0.6 (12/18), 0.625 at all; of equal ones the higher score.
    assert curve.threshold("f1") == 0.9
    assert curve.threshold("precision=1") == 0.9
    assert curve.threshold("precision=0.7") == 0.6
    assert curve.threshold("precision=0.1") == 0.3


def test_a_precision_that_is_not_reached_names_the_best():
    curve = curve_of_points([(0.9, True), (0.9, False)])
    with pytest.raises(InputError, match="FS-1 has a precision of 0.8 at no score: 0.50"):
        curve.threshold("precision=0.8")


@pytest.mark.parametrize(
    "criterion", ["F1", "f1=3", "precision", "precision=", "precision=2", "precision=x", "0.5", ""]
)
def test_other_criteria_are_refused(criterion):
    with pytest.raises(InputError, match=r"a threshold is a score from 0 to 1, f1, or precision"):
        curve_of_points([(0.9, True)]).threshold(criterion)


def test_what_was_written_is_read_and_damage_is_named(tmp_path):
    assert read_curves(tmp_path) == {}
    curves = {
        (4, 0, 0): curve_of_points([(0.5, True)]),
        (4, 48, 5): curve_of_points([(0.7, False)]),
    }
    write_curves(tmp_path, curves)
    assert read_curves(tmp_path) == curves
    path = tmp_path / CURVES_FILE
    rows = json.loads(path.read_text())
    # Earlier versions wrote the stitch alone.
    for row in rows:
        del row["image_size"], row["num_proposals"]
    path.write_text(json.dumps(rows[:1]))
    assert read_curves(tmp_path) == {(4, 0, 0): curves[4, 0, 0]}
    for damaged in ("[", "3", json.dumps([{**rows[0], "matched": [1]}]), '[{"name": 1}]'):
        path.write_text(damaged)
        with pytest.raises(InputError, match=r"score_curves.json is damaged"):
            read_curves(tmp_path)
