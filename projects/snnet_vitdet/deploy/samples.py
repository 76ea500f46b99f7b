"""Detections of several stitches in the same images, for the report of a sweep."""

import io
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from detectron2.data import transforms as T
from detectron2.data.detection_utils import (
    annotations_to_instances,
    transform_instance_annotations,
)
from PIL import Image

from snnet_vitdet.errors import InputError
from snnet_vitdet.report import SampleColumn, SamplePicture, SampleRow, Samples
from snnet_vitdet.report.kinds import ANCHORS

from .instances import ClassNames, Detections
from .pictures import draw_detections, reduced_image, reduced_objects, reduced_size, to_rgb
from .predictor import Predictor

__all__ = ["sample_detections", "stitches_to_show"]

# Pixels of the longer side. A column of the page is less than 300 pixels wide: names in a larger
# picture could not be read.
_SIDE = 360
_QUALITY = 85
_NO_CURVE_THRESHOLD = 0.5
_NUM_STITCHES = 3

Row = Mapping[str, object]


def stitches_to_show(rows: Sequence[Row]) -> list[Row]:
    """The cheapest stitch of the frontier by box AP, one in its middle, and its best.

    A frontier of fewer than three is filled up with the anchors, then with the most expensive
    stitches.

    Args:
        rows: Rows of ``StitchTable.rows``. If none has a box AP, the cheapest is among the chosen.

    Returns:
        At most three rows, by cost.
    """
    by_cost = sorted(rows, key=lambda row: row["gflops"])
    chosen = [row for row in by_cost if row["on_pareto"]] or by_cost[:1]
    if len(chosen) > _NUM_STITCHES:
        half = (chosen[0]["gflops"] + chosen[-1]["gflops"]) / 2
        middle = min(chosen[1:-1], key=lambda row: abs(row["gflops"] - half))
        return [chosen[0], middle, chosen[-1]]
    others = [row for row in reversed(by_cost) if row not in chosen]
    others.sort(key=lambda row: row["kind"] not in ANCHORS)
    chosen += others[: _NUM_STITCHES - len(chosen)]
    return sorted(chosen, key=lambda row: row["gflops"])


def sample_detections(
    predictor: Predictor,
    rows: Sequence[Row],
    images: Sequence[Mapping[str, object]],
    annotated_names: Sequence[str],
    num_images: int = 4,
) -> Samples:
    """Draws the detections of some stitches, and the annotations.

    A stitch shows the detections at or above the score of its largest F1, or 0.5 if the sweep has
    no score curve of it.

    Args:
        predictor: The swept model. Afterwards, its stitch and threshold are those of the last row.
        rows: Rows of the sweep, as :func:`stitches_to_show` chooses them.
        images: detectron2's dataset dicts of the test images.
        annotated_names: Names of their categories.
        num_images: Number of images to show, spread over those with annotations.

    Raises:
        InputError: If no image is there, or one cannot be read.
    """
    records = _spread([image for image in images if os.path.isfile(image["file_name"])], num_images)
    if not records:
        raise InputError("none of the test images is there")
    columns = [_put_into_effect(predictor, row) for row in rows]
    columns.append(SampleColumn("annotated", "what is in the annotation file"))
    samples = []
    for record in records:
        # One image at a time: they may be large.
        image = to_rgb(record["file_name"])
        found = []
        for row in rows:
            _put_into_effect(predictor, row)
            found.append(reduced_objects(predictor(image), _SIDE))
        found.append(_annotated(record, image.shape[:2], annotated_names))
        image = reduced_image(image, _SIDE)
        drawn = [_draw(image, each) for each in found]
        samples.append(SampleRow(os.path.basename(record["file_name"]), drawn))
    return Samples(columns, samples)


def _spread(images: Sequence[Mapping], count: int) -> list[Mapping]:
    with_objects = [image for image in images if image.get("annotations")] or images
    step = max(1, math.floor(len(with_objects) / count))
    return list(with_objects[::step][:count])


def _put_into_effect(predictor: Predictor, row: Row) -> SampleColumn:
    if predictor.stitch is not None:
        predictor.set_score_threshold(0.0)
        predictor.set_stitch(row["stitch_id"])
    try:
        score, why = predictor.set_score_threshold("f1"), "its largest F1"
    except InputError:
        score, why = predictor.set_score_threshold(_NO_CURVE_THRESHOLD), "no score curve"
    ap = row["bbox_AP"]
    known = "" if ap is None or math.isnan(ap) else f"box AP {ap:.1f}, "
    gflops = f"{row['gflops']:.{2 if row['gflops'] < 100 else 1}f}"
    caption = f"{gflops} GFLOPs, {known}scores from {score:.2f} ({why})"
    return SampleColumn(str(row["name"]), caption, str(row["kind"]))


def _annotated(record: Mapping, size: tuple[int, int], names: Sequence[str]) -> Detections:
    """The annotations of an image as detections without scores, in the reduced image."""
    annotations = [each for each in record.get("annotations", ()) if not each.get("iscrowd")]
    keys = ("bbox", "bbox_mode", "category_id", "segmentation")
    drawn = reduced_size(size, _SIDE)
    resize = T.TransformList([T.ResizeTransform(*size, *drawn)])
    resized = [
        transform_instance_annotations({k: each[k] for k in keys if k in each}, resize, drawn)
        for each in annotations
    ]
    if any("segmentation" in each for each in resized):
        # All or none of them must have a mask: a box alone gets an empty one.
        empty = np.zeros(drawn, dtype=np.uint8)
        resized = [{"segmentation": empty, **each} for each in resized]
    truth = annotations_to_instances(resized, drawn, mask_format="bitmask")
    found = Detections(drawn, pred_boxes=truth.gt_boxes, pred_classes=truth.gt_classes)
    if truth.has("gt_masks"):
        found.pred_masks = truth.gt_masks.tensor
    found.class_names = ClassNames(names[i] for i in truth.gt_classes.tolist())
    return found


def _draw(image: np.ndarray, instances: Detections) -> SamplePicture:
    # Drawn into the reduced image, so that text and lines keep their size.
    drawn = Image.fromarray(draw_detections(image, instances, min_side=round(0.7 * _SIDE)))
    drawn.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    drawn.save(file, "webp", quality=_QUALITY)
    return SamplePicture(file.getvalue(), drawn.width, drawn.height, _in_words(instances))


def _in_words(instances: Detections) -> str:
    counts = Counter(instances.class_names.tolist())
    return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"
