"""AP of hotcoco against pycocotools, as detectron2's COCOEvaluator runs it."""

import contextlib
import copy
import io
import json
import math
import uuid
from collections import OrderedDict

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detection_arrays import as_arrays
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator

from snnet_vitdet.data.coco_json import id_order
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import CocoScorer
from snnet_vitdet.evaluation.results import METRICS

HEIGHT, WIDTH = 300, 400
# Gaps, as in COCO, and not in the order of the file; the last has no object.
CATEGORY_IDS = [90, 3, 17, 1, 44]
# Nothing is detected in the last image, which has objects; the first two have no object.
IMAGE_IDS = [139, 285, 632, 5, 1000000, 724, 776, 785, 802, 872, 885, 1268]
EMPTY, UNDETECTED = IMAGE_IDS[:2], IMAGE_IDS[-1]
TOLERANCE = dict(rel=0, abs=1e-9)


def ellipse(box):
    """A mask that touches the sides of an (x, y, width, height)."""
    x, y, width, height = box
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    across = (columns + 0.5 - x - width / 2) / (width / 2)
    down = (rows + 0.5 - y - height / 2) / (height / 2)
    return across**2 + down**2 <= 1


def encoded(mask):
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


def uncompressed(mask):
    """Counts of equal pixels, column by column, from 0, as COCO writes crowds."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *changes, flat.size]).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": [0, *counts] if flat[0] else counts}


def random_box(rng):
    """Small, medium and large ones alike often."""
    side = rng.choice([rng.uniform(6, 32), rng.uniform(33, 95), rng.uniform(100, 240)])
    width, height = side * rng.uniform(0.7, 1.4), side * rng.uniform(0.7, 1.2)
    width, height = min(width, WIDTH - 2), min(height, HEIGHT - 2)
    return [rng.uniform(0, WIDTH - width), rng.uniform(0, HEIGHT - height), width, height]


def make_truth(rng, crowds=True):
    annotations = []
    for image_id in IMAGE_IDS:
        if image_id in EMPTY:
            continue
        for _ in range(rng.integers(1, 9)):
            x, y, width, height = box = random_box(rng)
            mask = ellipse(box)
            crowd = bool(crowds and rng.random() < 0.15)
            if crowd:
                segmentation = uncompressed(mask)
            elif rng.random() < 0.3:
                segmentation = encoded(mask)
            else:
                corners = [x, y, x + width, y, x + width * 0.8, y + height, x + width * 0.1, y + 9]
                segmentation = [corners] if rng.random() < 0.7 else [corners, corners[::-1]]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(rng.choice(CATEGORY_IDS[:-1])),
                    "bbox": box,
                    "area": float(mask.sum()),
                    "iscrowd": int(crowd),
                    "segmentation": segmentation,
                }
            )
    return {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH} for i in IMAGE_IDS
        ],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"category {i}"} for i in CATEGORY_IDS],
    }


def make_detections(rng, truth, masks=True, per_image=40):
    """Objects found more or less well, twice or as another category, and much that is not there."""
    indexes = {category_id: index for index, category_id in enumerate(sorted(CATEGORY_IDS))}
    detections = []
    for image_id in IMAGE_IDS:
        if image_id == UNDETECTED:
            continue
        objects = [a for a in truth["annotations"] if a["image_id"] == image_id]
        for _ in range(per_image):
            box, category = random_box(rng), int(rng.integers(len(CATEGORY_IDS)))
            if objects and rng.random() < 0.7:
                target = objects[rng.integers(len(objects))]
                box = np.array(target["bbox"]) * (1 + rng.normal(0, 0.06, 4))
                box = [max(box[0], 0), max(box[1], 0), *np.maximum(box[2:], 3)]
                if rng.random() < 0.9:
                    category = indexes[target["category_id"]]
            box = np.array(box, dtype=np.float32)
            detection = {
                "image_id": image_id,
                "category_id": category,
                "bbox": [float(value) for value in box],
                # Many are equal.
                "score": float(np.float32(rng.integers(1, 40) / 40)),
            }
            if masks:
                detection["segmentation"] = encoded(ellipse(box.tolist()))
            detections.append(detection)
    return detections


class Case:
    """Annotations on disk, registered, and both ways to score detections on them."""

    def __init__(self, truth, folder):
        self.truth = truth
        path = folder / f"{uuid.uuid4().hex}.json"
        path.write_text(json.dumps(truth))
        # As others register data, with the ids of the file.
        self.name = path.stem
        ids = sorted((category["id"] for category in truth["categories"]), key=id_order)
        MetadataCatalog.get(self.name).set(
            json_file=str(path),
            thing_classes=[str(category_id) for category_id in ids],
            thing_dataset_id_to_contiguous_id={each: index for index, each in enumerate(ids)},
        )
        self.scorer = CocoScorer(self.name)

    def reference(self, detections, image_ids=None):
        """What COCOEvaluator gives for the same detections, by the names of the results."""
        with contextlib.redirect_stdout(io.StringIO()):
            evaluator = COCOEvaluator(self.name, distributed=False)
            evaluator.reset()
            by_image = OrderedDict((image_id, []) for image_id in IMAGE_IDS)
            for detection in copy.deepcopy(detections):
                by_image[detection["image_id"]].append(detection)
            evaluator._predictions = [
                {"image_id": i, "instances": found} for i, found in by_image.items()
            ]
            results = evaluator.evaluate(image_ids)
        return {name: results.get(name[:4], {}).get(name[5:], math.nan) for name in METRICS}

    def assert_equal(self, detections, image_ids=None):
        expected = self.reference(detections, image_ids)
        found = self.scorer.score(as_arrays(detections), image_ids)
        assert tuple(found) == METRICS
        assert found == pytest.approx(expected, nan_ok=True, **TOLERANCE)
        return found


@pytest.fixture
def make_case(tmp_path):
    names = set()

    def make(truth):
        case = Case(truth, tmp_path)
        names.add(case.name)
        return case

    yield make
    for name in names:
        MetadataCatalog.remove(name)


@pytest.mark.parametrize("seed", range(6))
def test_boxes_and_masks_score_as_pycocotools_scores_them(seed, make_case):
    rng = np.random.default_rng(seed)
    truth = make_truth(rng)
    assert {a["iscrowd"] for a in truth["annotations"]} == {0, 1}
    found = make_case(truth).assert_equal(make_detections(rng, truth))
    # Nothing degenerate: all sizes occur, and what is found is neither nothing nor all.
    assert all(0.5 < value < 99 for value in found.values())
    assert len(set(found.values())) == len(METRICS)


def test_boxes_alone(make_case):
    rng = np.random.default_rng(1)
    case = make_case(make_truth(rng))
    found = case.assert_equal(make_detections(rng, case.truth, masks=False))
    assert found["bbox_AP"] > 0 and math.isnan(found["segm_AP"])


def test_only_the_best_hundred_of_an_image_count(make_case):
    rng = np.random.default_rng(2)
    case = make_case(make_truth(rng))
    detections = make_detections(rng, case.truth, masks=False, per_image=700)
    # COCO's limit is for each category.
    counts = {}
    for detection in detections:
        key = detection["image_id"], detection["category_id"]
        counts[key] = counts.get(key, 0) + 1
    assert sum(count > 100 for count in counts.values()) > 10
    found = case.assert_equal(detections)
    assert found["bbox_AP"] > 1


def test_detections_of_one_score_alone_keep_their_order(make_case):
    rng = np.random.default_rng(3)
    case = make_case(make_truth(rng))
    detections = [{**d, "score": 0.5} for d in make_detections(rng, case.truth)]
    found = case.assert_equal(detections)
    reordered = case.assert_equal(detections[::-1])
    assert found["bbox_AP"] != reordered["bbox_AP"]


def test_large_objects_alone_leave_other_sizes_without_a_score(make_case):
    rng = np.random.default_rng(5)
    truth = make_truth(rng)
    truth["annotations"] = [a for a in truth["annotations"] if a["area"] > 96**2]
    case = make_case(truth)
    found = case.assert_equal(make_detections(rng, truth))
    assert math.isnan(found["bbox_APs"]) and math.isnan(found["segm_APm"])
    assert found["bbox_APl"] > 0


def test_no_detection_gives_no_score(make_case):
    case = make_case(make_truth(np.random.default_rng(7)))
    found = case.assert_equal([])
    assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize("kept", [EMPTY, [UNDETECTED]], ids=["no object", "no detection"])
def test_detections_where_nothing_is_and_nothing_where_objects_are(kept, make_case):
    rng = np.random.default_rng(8)
    case = make_case(make_truth(rng))
    detections = make_detections(rng, case.truth)
    only_empty = [d for d in detections if d["image_id"] in EMPTY]
    assert case.assert_equal(only_empty)["bbox_AP"] == 0
    case.assert_equal(detections, kept)


def test_some_images_alone(make_case):
    rng = np.random.default_rng(9)
    case = make_case(make_truth(rng))
    detections = make_detections(rng, case.truth)
    chosen = [IMAGE_IDS[0], IMAGE_IDS[4], IMAGE_IDS[3], UNDETECTED, IMAGE_IDS[8], IMAGE_IDS[6]]
    whole = case.assert_equal(detections)
    assert case.assert_equal(detections, chosen)["bbox_AP"] != whole["bbox_AP"]
    # As in a sweep over a subset, where there are no others.
    of_chosen = [d for d in detections if d["image_id"] in chosen]
    assert case.assert_equal(of_chosen, chosen)["segm_AP"] != whole["segm_AP"]
    # The score curve counts them, too.
    others = [image_id for image_id in IMAGE_IDS if image_id not in chosen]
    one, rest, both = (
        case.scorer.score_curve("S", as_arrays(detections), images)
        for images in (chosen, others, None)
    )
    assert one.num_objects + rest.num_objects == both.num_objects > rest.num_objects > 0
    assert tuple(map(sum, zip(one.matched, rest.matched, strict=True))) == both.matched


# What becomes of an id, from 1 on.
KINDS_OF_IDS = {
    "from 0": lambda n: n - 1,
    "negative": lambda n: -n,
    "above 2^53": lambda n: 2**53 + n,
    "64-bit hashes": lambda n: n * 0x9E3779B97F4A7C15 % 2**64,
    "signed hashes": lambda n: n * 0x9E3779B97F4A7C15 % 2**64 - 2**63,
    "above 2^64": lambda n: 2**80 + n,
    "texts": "image {}".format,
    "texts of digits": str,
    "texts and numbers": lambda n: n if n % 2 else f"{n}.jpg",
}


@pytest.mark.parametrize("kind", KINDS_OF_IDS)
@pytest.mark.parametrize("of", ["images", "annotations", "categories"])
def test_ids_of_any_kind_score_as_small_numbers_do(of, kind, make_case):
    """Also small, medium and large, and the score curve."""
    rng = np.random.default_rng(10)
    truth = make_truth(rng)
    detections = make_detections(rng, truth)
    case = make_case(truth)
    expected = case.scorer.score(as_arrays(detections))
    curve = case.scorer.score_curve("S", as_arrays(detections))
    new = KINDS_OF_IDS[kind]
    # In the order of the old ones: classes keep their index, and equal scores their order.
    old_ids = sorted({entry["id"] for entry in truth[of]})
    ordered = sorted((new(n) for n in range(1, len(old_ids) + 1)), key=id_order)
    new_ids = dict(zip(old_ids, ordered, strict=True))
    key = {"images": "image_id", "categories": "category_id"}.get(of)
    changed = copy.deepcopy(truth)
    for entry in changed[of]:
        entry["id"] = new_ids[entry["id"]]
    if key:
        for annotation in changed["annotations"]:
            annotation[key] = new_ids[annotation[key]]
    if of == "images":
        detections = [d | {"image_id": new_ids[d["image_id"]]} for d in detections]
    scorer, arrays = make_case(changed).scorer, as_arrays(detections)
    assert scorer.score(arrays) == pytest.approx(expected, nan_ok=True, **TOLERANCE)
    assert scorer.score_curve("S", arrays) == curve


def test_an_image_that_the_annotations_do_not_have_is_named(make_case):
    rng = np.random.default_rng(11)
    truth = make_truth(rng)
    case = make_case(truth)
    detections = [d | {"image_id": 7} for d in make_detections(rng, truth)]
    with pytest.raises(InputError, match="are of an image of id 7, which"):
        case.scorer.score(as_arrays(detections))
