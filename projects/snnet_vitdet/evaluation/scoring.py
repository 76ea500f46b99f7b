"""COCO's average precision: a fast scorer for arrays of detections, and detectron2's evaluators.

:class:`CocoScorer` uses hotcoco, whose numbers are those of pycocotools (a test compares them).
Images, annotations and categories get numbers of our own, so any ids work.
"""

import contextlib
import copy
import gc
import io
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators
from detectron2.utils.file_io import PathManager

from snnet_vitdet.building import located
from snnet_vitdet.data.coco_json import read_coco_json
from snnet_vitdet.data.datasets import mask_truth, numbered, restore_copy
from snnet_vitdet.errors import InputError
from snnet_vitdet.files import write_atomically

from .results import AP_NAMES, METRICS, TASKS
from .score_curves import Boxes, ScoreCurve, count_matches

if TYPE_CHECKING:
    from hotcoco import COCO

__all__ = ["CocoScorer", "evaluators_of", "restore_ids"]

_RESULTS = "coco_instances_results.json"


class CocoScorer:
    """Scores detections on one annotation file, which it reads once.

    hotcoco is imported by the methods that need it, and not before: its threads do not survive a
    fork, see :func:`.score_points`.
    """

    def __init__(self, dataset_name: str) -> None:
        """
        Args:
            dataset_name: Name of the data set in detectron2's catalogs.

        Raises:
            InputError: If the annotations cannot be read.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self._json_file = PathManager.get_local_path(metadata.json_file)
        # Data registered elsewhere may have ids that the scorer cannot take.
        truth = numbered(self._json_file, read_coco_json(self._json_file))
        self._image_numbers = {image_id: n for n, image_id in enumerate(truth.image_ids, start=1)}
        classes = metadata.thing_dataset_id_to_contiguous_id
        indexes = [classes[category_id] for category_id in truth.category_ids]
        self._category_numbers = {index: n for n, index in enumerate(indexes, start=1)}
        self._content = truth.content
        objects = truth.content["annotations"]
        self._objects = Boxes(
            np.array([each["image_id"] for each in objects], dtype=np.int64),
            np.array([each["category_id"] for each in objects], dtype=np.int64),
            np.array([each["bbox"] for each in objects], dtype=np.float64).reshape(-1, 4),
        )
        self._crowds = np.array([each["iscrowd"] for each in objects], dtype=bool)
        self._truths: dict[str, COCO] = {}

    def score_curve(
        self,
        name: str,
        detections: Mapping[str, np.ndarray],
        image_ids: Collection[int | str] | None = None,
    ) -> ScoreCurve:
        """Counts the detections and the correct ones above each score.

        Args:
            name: Name of the stitch.
            detections: Detections, see :meth:`score`.
            image_ids: The images to count, see :meth:`score`.
        """
        objects, crowds = self._objects, self._crowds
        found, scores = self._boxes_of(detections), detections["scores"]
        if image_ids is not None:
            numbers = list(map(self._number_of, image_ids))
            counted = np.isin(objects.images, numbers)
            objects, crowds = objects[counted], crowds[counted]
            counted = np.isin(found.images, numbers)
            found, scores = found[counted], scores[counted]
        return count_matches(name, objects, crowds, found, scores)

    def score(
        self,
        detections: Mapping[str, np.ndarray],
        image_ids: Collection[int | str] | None = None,
    ) -> dict[str, float]:
        """Box AP, and mask AP where the detections have masks.

        Args:
            detections: As :meth:`.DetectionStore.arrays_of` returns them.
            image_ids: The images to score; None for all images of the annotation file.

        Returns:
            AP on 0–100 by the names in ``METRICS``; NaN where there is nothing to score.
        """
        metrics = dict.fromkeys(METRICS, math.nan)
        if not len(detections["scores"]):
            return metrics
        from hotcoco import mask

        found = self._boxes_of(detections)
        columns = [found.images, found.boxes, detections["scores"], found.categories]
        with _without_garbage_collection():
            rles = _rles_of(detections)
            results = self._truth_of("bbox").load_res(
                np.column_stack(columns).astype(np.float64), segmentation=rles or None
            )
        metrics |= self._score_task("bbox", results, image_ids)
        if rles:
            # Until here, these are the areas of the boxes. Masks are small, medium or large by
            # their own areas.
            results.update_anns(
                ids=np.arange(1, len(rles) + 1), area=mask.area(rles).astype(np.float64)
            )
            metrics |= self._score_task("segm", results, image_ids)
        return metrics

    def _score_task(
        self, task: str, results: "COCO", image_ids: Collection[int | str] | None
    ) -> dict[str, float]:
        from hotcoco import COCOeval

        evaluation = COCOeval(self._truth_of(task), results, task)
        if image_ids is not None:
            evaluation.params.imgIds = sorted(map(self._number_of, image_ids))
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.run()
        return {
            f"{task}_{name}": 100 * float(value) if value >= 0 else math.nan
            for name, value in zip(AP_NAMES, evaluation.stats[:6], strict=True)
        }

    def _truth_of(self, task: str) -> "COCO":
        """The annotations for a task; both tasks share them if every object has a mask."""
        from hotcoco import COCO

        content = mask_truth(self._content) if task == "segm" else self._content
        task = "bbox" if content is self._content else task
        if task not in self._truths:
            self._truths[task] = COCO(content)
        return self._truths[task]

    def _boxes_of(self, detections: Mapping[str, np.ndarray]) -> Boxes:
        """The detections with the numbers of the annotations."""
        images = list(map(self._number_of, detections["image_ids"].tolist()))
        categories = list(map(self._category_numbers.__getitem__, detections["classes"].tolist()))
        return Boxes(
            np.array(images, dtype=np.int64),
            np.array(categories, dtype=np.int64),
            # Single precision is exact in double precision, in which COCO's scorers compute.
            detections["boxes"].astype(np.float64),
        )

    def _number_of(self, image_id: int | str) -> int:
        try:
            return self._image_numbers[image_id]
        except KeyError as error:
            raise InputError(
                f"The detections are of an image of id {image_id!r}, which {self._json_file} does "
                "not have: dataloader.test.dataset and dataloader.evaluator must be of one file."
            ) from error


def _rles_of(detections: Mapping[str, np.ndarray]) -> list[dict]:
    """The masks of detections as COCO's RLE, none for boxes alone."""
    text = detections["rles"].tobytes()
    ends = np.cumsum(detections["lengths"])
    starts = ends - detections["lengths"]
    parts = zip(detections["sizes"].tolist(), starts.tolist(), ends.tolist(), strict=True)
    return [{"size": size, "counts": text[start:end]} for size, start, end in parts]


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Half a million new dictionaries would start it often, and none of them is garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def evaluators_of(node: Any) -> Callable[[], DatasetEvaluator]:
    """Returns a function that makes evaluators of the annotations as they are now.

    A training evaluates hours after its start; the annotation file may have changed by then. The
    evaluators read a copy, which is made at once, so that a full disk shows at the start. COCO's
    scorer of masks needs a mask of every object: if some objects only have a box, masks get an
    evaluator of their own, on :func:`snnet_vitdet.data.datasets.mask_truth`.

    Args:
        node: ``dataloader.evaluator`` of a config.

    Raises:
        InputError: If the annotations cannot be used or copied. The returned function raises it
            if the copy is gone and the annotations have changed.
    """
    node = copy.deepcopy(node)
    if "dataset_name" not in node:
        return lambda: instantiate(node)
    # Instantiated once: a changed annotation file would get another name later.
    name = node.dataset_name = instantiate(node.dataset_name)

    def make() -> DatasetEvaluator:
        restore_copy(name)
        mask_dataset = MetadataCatalog.get(name).get("mask_dataset")
        target = located(node._target_)
        is_coco = isinstance(target, type) and issubclass(target, COCOEvaluator)
        if mask_dataset is None or not is_coco:
            return instantiate(node)
        return _evaluator_per_task(node, mask_dataset)

    return make


def _evaluator_per_task(node: Any, mask_dataset: str) -> DatasetEvaluators:
    evaluators = []
    for task in node.get("tasks") or TASKS:
        own = copy.deepcopy(node)
        own.tasks = [task]
        if task == "segm":
            own.dataset_name = mask_dataset
        if evaluators:
            own.output_dir = None  # it would write the same detections
        evaluators.append(instantiate(own))
    return DatasetEvaluators(evaluators)


def restore_ids(evaluator: DatasetEvaluator) -> None:
    """Rewrites an evaluator's results file with the ids of the annotation file.

    Detectors and scorers use numbers of our own; other programs need the user's ids. Does nothing
    if the evaluator writes no file, or its data have no such numbers.

    Args:
        evaluator: An evaluator that has just evaluated.
    """
    # With an evaluator per task, the first one writes all detections.
    evaluator = getattr(evaluator, "_evaluators", [evaluator])[0]
    folder, metadata = (getattr(evaluator, name, None) for name in ("_output_dir", "_metadata"))
    image_ids = getattr(metadata, "image_ids", None)
    if not folder or image_ids is None:
        return
    path = Path(folder, _RESULTS)
    if not path.is_file():
        return
    results = json.loads(path.read_bytes())
    for result in results:
        result["image_id"] = image_ids[result["image_id"] - 1]
        result["category_id"] = metadata.category_ids[result["category_id"] - 1]
    write_atomically(path, json.dumps(results).encode())
