"""COCO's average precision of a list of detections, by faster-coco-eval.

The numbers are pycocotools's (a test compares them); matching and accumulation run in C++.
"""

import contextlib
import io
import json
import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager
from faster_coco_eval import COCO
from faster_coco_eval.core.faster_eval_api import COCOeval_faster

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
            InputError: If the ids of the images are not whole numbers.
        """
        metadata = MetadataCatalog.get(dataset_name)
        classes = metadata.thing_dataset_id_to_contiguous_id
        self._category_ids = {index: category_id for category_id, index in classes.items()}
        with open(PathManager.get_local_path(metadata.json_file)) as file:
            truth = json.load(file)
        # faster-coco-eval makes whole numbers of what is none, and fails if it cannot.
        odd = [image["id"] for image in truth["images"] if not isinstance(image["id"], int)]
        if odd:
            raise InputError(
                f"{metadata.json_file} has image ids that are no whole numbers, such as "
                f"{odd[0]!r}: number the images, or set sweep.mode=separate"
            )
        indexes = {category_id: index for index, category_id in self._category_ids.items()}
        # Boxes alone: the scorer below writes into the annotations.
        self._objects = defaultdict(list)
        for annotation in truth["annotations"]:
            key = annotation["image_id"], indexes[annotation["category_id"]]
            box = {"bbox": annotation["bbox"], "iscrowd": annotation.get("iscrowd", 0)}
            self._objects[key].append(box)
        with contextlib.redirect_stdout(io.StringIO()):
            self._truth = COCO(truth)

    def score_curve(
        self,
        name: str,
        detections: Sequence[Mapping[str, object]],
        image_ids: Collection[int] | None = None,
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
        image_ids: Collection[int] | None = None,
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
        image_ids: Collection[int] | None,
    ) -> dict[str, float]:
        # The scorer writes into what it is given. Small, medium and large are of the mask where
        # masks are scored, which it does only if there is no box.
        key = _KEYS[task]
        results = [
            {
                "image_id": detection["image_id"],
                "category_id": self._category_ids[detection["category_id"]],
                "score": detection["score"],
                key: detection[key],
            }
            for detection in detections
        ]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval_faster(self._truth, self._truth.loadRes(results), task)
            if image_ids is not None:
                evaluation.params.imgIds = sorted(image_ids)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return {
            f"{task}_{name}": 100 * float(value) if value >= 0 else math.nan
            for name, value in zip(AP_NAMES, evaluation.stats[:6], strict=True)
        }
