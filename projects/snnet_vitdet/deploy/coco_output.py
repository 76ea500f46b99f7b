"""Detections of many images as one COCO-format file, which annotation tools and viewers open."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from pycocotools import mask as mask_util

from snnet_vitdet.files import write_atomically

__all__ = ["CocoPredictions"]


class CocoPredictions:
    """Collects detections image by image."""

    def __init__(self, class_names: Sequence[str]) -> None:
        """
        Args:
            class_names: By ``pred_classes``. Category ids count from 1 in this order: a model does
                not know the ids of the data it was trained on.
        """
        self._categories = [{"id": i, "name": name} for i, name in enumerate(class_names, start=1)]
        self._images: list[dict] = []
        self._annotations: list[dict] = []

    def __len__(self) -> int:
        return len(self._annotations)

    @property
    def num_images(self) -> int:
        """How many images were added, with detections or without."""
        return len(self._images)

    def add(self, file_name: str, instances: Instances) -> None:
        """Takes in the detections of one more image.

        Args:
            file_name: Its name in the file.
            instances: As a Predictor returns them.
        """
        image_id = len(self._images) + 1
        height, width = instances.image_size
        self._images.append(
            {"id": image_id, "file_name": file_name, "height": height, "width": width}
        )
        for found in instances_to_coco_json(instances, image_id):
            box_area = found["bbox"][2] * found["bbox"][3]
            mask = found.get("segmentation")
            self._annotations.append(
                {
                    **found,
                    "id": len(self._annotations) + 1,
                    "category_id": found["category_id"] + 1,
                    "area": box_area if mask is None else int(mask_util.area(mask)),
                    "iscrowd": 0,
                }
            )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes images, categories and annotations, each with its ``score``.

        Raises:
            InputError: If the file cannot be written.
        """
        parts = {
            "images": self._images,
            "categories": self._categories,
            "annotations": self._annotations,
        }
        write_atomically(Path(path), json.dumps(parts).encode())
