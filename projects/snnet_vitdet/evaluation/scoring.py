"""COCO's average precision: a fast scorer for lists of detections, and detectron2's evaluators.

:class:`CocoScorer` uses faster-coco-eval, whose numbers are those of pycocotools (a test compares
them), with matching and accumulation in C++. Images, annotations and categories get numbers of our
own, so any ids work.
"""

import contextlib
import copy
import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators
from detectron2.utils.file_io import PathManager
from faster_coco_eval import COCO
from faster_coco_eval.core.faster_eval_api import COCOeval_faster

from snnet_vitdet.building import located
from snnet_vitdet.data.coco_json import read_coco_json
from snnet_vitdet.data.datasets import mask_truth, numbered, restore_copy
from snnet_vitdet.errors import InputError
from snnet_vitdet.files import write_atomically

from .results import AP_NAMES, METRICS, TASKS
from .score_curves import ScoreCurve, count_matches

__all__ = ["CocoScorer", "evaluators_of", "restore_ids"]

# The key of a detection that each task scores.
_KEYS = {"bbox": "bbox", "segm": "segmentation"}
_RESULTS = "coco_instances_results.json"


class CocoScorer:
    """Scores detections on one annotation file, which it reads once."""

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
        # Only what is needed is copied: the scorer writes into the annotations.
        self._objects = defaultdict(list)
        for annotation in truth.content["annotations"]:
            image_id = truth.image_ids[annotation["image_id"] - 1]
            box = {key: annotation[key] for key in ("bbox", "iscrowd")}
            self._objects[image_id, indexes[annotation["category_id"] - 1]].append(box)
        self._content = truth.content
        self._truths: dict[str, COCO] = {}

    def score_curve(
        self,
        name: str,
        detections: Sequence[Mapping[str, object]],
        image_ids: Collection[int | str] | None = None,
    ) -> ScoreCurve:
        """Counts the detections and the correct ones above each score.

        Args:
            name: Name of the stitch.
            detections: Detections, see :meth:`score`.
            image_ids: The images to count, see :meth:`score`.
        """
        return count_matches(name, self._objects, detections, image_ids)

    def score(
        self,
        detections: Sequence[Mapping[str, object]],
        image_ids: Collection[int | str] | None = None,
    ) -> dict[str, float]:
        """Box AP, and mask AP where the detections have masks.

        Args:
            detections: As detectron2's ``instances_to_coco_json`` makes them, categories counted
                from 0.
            image_ids: The images to score; None for all images of the annotation file.

        Returns:
            AP on 0–100 by the names in ``METRICS``; NaN where there is nothing to score.
        """
        metrics = dict.fromkeys(METRICS, math.nan)
        for task, key in _KEYS.items():
            if detections and key in detections[0]:
                metrics |= self._score_task(task, detections, image_ids)
        return metrics

    def _score_task(
        self,
        task: str,
        detections: Sequence[Mapping[str, object]],
        image_ids: Collection[int | str] | None,
    ) -> dict[str, float]:
        # Copied, as the scorer writes into its input. Without the box, it takes small, medium and
        # large from the area of the mask when it scores masks.
        key = _KEYS[task]
        results = [
            {
                "image_id": self._number_of(detection["image_id"]),
                "category_id": self._category_numbers[detection["category_id"]],
                "score": detection["score"],
                key: detection[key],
            }
            for detection in detections
        ]
        truth = self._truth_of(task)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval_faster(truth, truth.loadRes(results), task)
            if image_ids is not None:
                evaluation.params.imgIds = sorted(map(self._number_of, image_ids))
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return {
            f"{task}_{name}": 100 * float(value) if value >= 0 else math.nan
            for name, value in zip(AP_NAMES, evaluation.stats[:6], strict=True)
        }

    def _truth_of(self, task: str) -> COCO:
        """The annotations for a task; both tasks share them if every object has a mask."""
        content = mask_truth(self._content) if task == "segm" else self._content
        task = "bbox" if content is self._content else task
        if task not in self._truths:
            with contextlib.redirect_stdout(io.StringIO()):
                self._truths[task] = COCO(content)
        return self._truths[task]

    def _number_of(self, image_id: int | str) -> int:
        try:
            return self._image_numbers[image_id]
        except KeyError as error:
            raise InputError(
                f"The detections are of an image of id {image_id!r}, which {self._json_file} does "
                "not have: dataloader.test.dataset and dataloader.evaluator must be of one file."
            ) from error


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
