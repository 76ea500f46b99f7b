"""COCO's average precision of a list of detections, by faster-coco-eval.

The numbers are pycocotools's (a test compares them); matching and accumulation run in C++. The
scorer gets numbers of our own for images, annotations and categories, whatever their ids are.
"""

import contextlib
import io
import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager
from faster_coco_eval import COCO
from faster_coco_eval.core.faster_eval_api import COCOeval_faster

from snnet_vitdet.data.coco_json import read_coco_json
from snnet_vitdet.data.datasets import mask_truth, numbered
from snnet_vitdet.errors import InputError

from .results import AP_NAMES, METRICS
from .score_curves import ScoreCurve, count_matches

__all__ = ["CocoScorer"]

# Where a detection has what a task scores.
_KEYS = {"bbox": "bbox", "segm": "segmentation"}


class CocoScorer:
    """Scores detections on one annotation file, which it reads once."""

    def __init__(self, dataset_name: str) -> None:
        """
        Args:
            dataset_name: Name of the data in detectron2's catalogues.

        Raises:
            InputError: If the annotations cannot be read.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self._json_file = PathManager.get_local_path(metadata.json_file)
        # The data may be registered by others, with ids that the scorer cannot take.
        truth = numbered(self._json_file, read_coco_json(self._json_file))
        self._image_numbers = {image_id: n for n, image_id in enumerate(truth.image_ids, start=1)}
        classes = metadata.thing_dataset_id_to_contiguous_id
        indexes = [classes[category_id] for category_id in truth.category_ids]
        self._category_numbers = {index: n for n, index in enumerate(indexes, start=1)}
        # Boxes alone: the scorer below writes into the annotations.
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
        """How many detections, and how many right ones, there are above each score.

        Args:
            name: Of the stitch.
            detections: As for :meth:`score`.
            image_ids: As for :meth:`score`.
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
            image_ids: The images to score, all of the annotation file if None.

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
        # The scorer writes into what it is given. Small, medium and large are of the mask where
        # masks are scored, which it does only if there is no box.
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
        """The annotations that a task counts, the same for both if every object has a mask."""
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
