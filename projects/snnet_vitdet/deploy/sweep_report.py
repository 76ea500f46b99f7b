"""The report of a sweep: its page, with detections of several stitches in the same test images."""

import io
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from detectron2.data import transforms as T
from detectron2.data.detection_utils import (
    annotations_to_instances,
    transform_instance_annotations,
)
from PIL import Image

from snnet_vitdet.data import category_names, coco_dicts
from snnet_vitdet.engine import Config
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import StitchTable
from snnet_vitdet.report import (
    SampleColumn,
    SamplePicture,
    SampleRow,
    Samples,
    drawing,
    read_training,
    write_report,
)
from snnet_vitdet.report.kinds import ANCHORS

from .instances import ClassNames, Detections
from .pictures import draw_detections, reduced_image, reduced_objects, reduced_size, to_rgb
from .predictor import Predictor

__all__ = ["REPORT_FILE", "sample_detections", "stitches_to_show", "write_sweep_report"]

logger = logging.getLogger(__name__)

REPORT_FILE = "report.html"
"""The file beside a sweep's results."""

# Pixels of the longer side. A column of the page is less than 300 pixels wide: names in a larger
# picture could not be read.
_SIDE = 360
_QUALITY = 85
_NO_CURVE_THRESHOLD = 0.5
_NUM_STITCHES = 3

Row = Mapping[str, object]


def write_sweep_report(
    config: Config, make_predictor: Callable[[StitchTable], Predictor] | None
) -> Path:
    """Writes ``report.html`` beside the results of a sweep.

    Without test images or weights, the page has no sample detections and says why.

    Args:
        config: Config of the training.
        make_predictor: Returns a predictor of the swept model with the table, or raises
            InputError; None for a page without sample detections.

    Returns:
        The page's path.

    Raises:
        InputError: If there is no sweep, or the page cannot be written.
    """
    folder = Path(config.train.output_dir, "sweep")
    table = _read(folder)
    samples, reason = None, "None were asked for."
    if make_predictor is not None:
        try:
            with drawing("their pictures"):
                samples, reason = _samples(config, table, make_predictor), ""
        except InputError as error:
            reason = f"There are none: {str(error).rstrip('.')}."
            logger.warning("The report has no sample detections: %s", error)
    path = folder / REPORT_FILE
    write_report(
        path,
        table.rows(),
        title=config.train.output_dir,
        facts=_facts(config, table),
        training=read_training(Path(config.train.output_dir, "metrics.json")),
        samples=samples,
        no_samples=reason,
    )
    return path


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


def _read(folder: Path) -> StitchTable:
    try:
        return StitchTable.read(folder)
    except InputError as error:
        # A page without measurements is better than none, e.g. if they are of an earlier sweep.
        table = StitchTable.read_results(folder)
        logger.warning("The report has no latency and memory: %s", error)
        return table


def _samples(
    config: Config, table: StitchTable, make_predictor: Callable[[StitchTable], Predictor]
) -> Samples:
    images = coco_dicts(config.data.test_json, config.data.test_images, filter_empty=False)
    names = category_names(config.data.test_json)
    rows = stitches_to_show(table.rows())
    return sample_detections(make_predictor(table), rows, images, names)


def _facts(config: Config, table: StitchTable) -> list[tuple[str, str]]:
    net = config.model.backbone.net
    vits = [net[anchor] for anchor in ("small", "large")] if "small" in net else [net]
    facts = []
    if all("depth" in vit and "embed_dim" in vit for vit in vits):
        sizes = " + ".join(f"{vit.depth} × {vit.embed_dim}" for vit in vits)
        facts.append(("ViT blocks × width", sizes))
    sizes = {entry.result.image_size for entry in table} - {None} or {config.data.image_size}
    if any(entry.result.padding == "tight" for entry in table):
        shapes = ", ".join(map(str, sorted(sizes))) + " pixels on the longer side"
    else:
        shapes = ", ".join(f"{side} × {side}" for side in sorted(sizes)) + " pixels"
    facts.append(("Image size", shapes))
    if table.device is not None:
        facts.append(("Latency and memory on", table.device))
    return facts


def _spread(images: Sequence[Mapping], count: int) -> list[Mapping]:
    with_objects = [image for image in images if image.get("annotations")] or images
    step = max(1, math.floor(len(with_objects) / count))
    return list(with_objects[::step][:count])


def _put_into_effect(predictor: Predictor, row: Row) -> SampleColumn:
    predictor.set_score_threshold(0.0)
    predictor.set_point(row["name"])
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
