"""What a predictor returns for an image, and the COCO-format file of many images."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from pycocotools import mask as mask_util

from snnet_vitdet.files import write_atomically

from .masks import as_index

__all__ = ["ClassNames", "CocoPredictions", "Detections"]


class ClassNames(np.ndarray):
    """An array of strings that is indexed, compared and joined like the tensors beside it."""

    def __new__(cls, names: Sequence[str]) -> "ClassNames":
        """
        Args:
            names: One name for each object.
        """
        return np.array(list(names), dtype=str).view(cls)

    def __getitem__(self, item: object) -> object:
        # numpy takes a tensor of one element for a number, and would return a string.
        if torch.is_tensor(item):
            item = as_index(item).numpy(force=True)
        return super().__getitem__(item)

    # Comparisons give tensors: `&` of a boolean array and a boolean tensor gives uint8.

    def __eq__(self, other: object) -> torch.Tensor:
        return torch.as_tensor(np.asarray(super().__eq__(other)))

    def __ne__(self, other: object) -> torch.Tensor:
        return torch.as_tensor(np.asarray(super().__ne__(other)))

    @classmethod
    def cat(cls, names: Sequence["ClassNames"]) -> "ClassNames":
        """Joins several arrays, as ``Instances.cat`` does."""
        return np.concatenate(names).view(cls)


class Detections(Instances):
    """detectron2's Instances, with every common way to select objects.

    ``found[item]`` selects objects by an integer, a slice, integers or booleans. Integers and
    booleans may be a tensor, an array, a list, or a tuple as ``torch.where`` returns it; uint8
    counts as boolean, as in torch. Iteration gives the objects one by one, as Detections of one.
    """

    def __getitem__(self, item: object) -> "Detections":
        rows = _rows(item, len(self))
        fields = {name: value[rows] for name, value in self.get_fields().items()}
        return Detections(self.image_size, **fields)

    def __iter__(self) -> Iterator["Detections"]:
        return (self[index] for index in range(len(self)))

    def to(self, *args: object, **kwargs: object) -> "Detections":
        """A copy whose fields are on another device, where they can be moved."""
        return Detections(self.image_size, **super().to(*args, **kwargs).get_fields())

    @staticmethod
    def cat(instance_lists: list[Instances]) -> "Detections":
        """Joins several groups of objects of one image."""
        joined = Instances.cat(instance_lists)
        return Detections(joined.image_size, **joined.get_fields())


def _rows(item: object, count: int) -> torch.Tensor:
    """Indexes of the objects that an item selects among ``count`` objects."""
    if isinstance(item, tuple) and len(item) == 1:
        (item,) = item
    if not isinstance(item, slice):
        index = as_index(item).cpu()
        is_mask = index.dtype == torch.bool
        if index.is_floating_point() or index.ndim > 1 or (is_mask and index.ndim == 0):
            raise IndexError(
                f"objects are selected by integers, a slice or booleans, not by {item!r}"
            )
        item = index if is_mask else index.long()
    return torch.arange(count)[item].reshape(-1)


class CocoPredictions:
    """Collects the detections of many images for one file in COCO format."""

    def __init__(self, class_names: Sequence[str]) -> None:
        """
        Args:
            class_names: Names by ``pred_classes``. Category ids count from 1 in this order: a model
                does not know the ids in the data that it was trained on.
        """
        self._categories = [{"id": i, "name": name} for i, name in enumerate(class_names, start=1)]
        self._images: list[dict] = []
        self._annotations: list[dict] = []

    def __len__(self) -> int:
        return len(self._annotations)

    @property
    def num_images(self) -> int:
        """Number of images that were added."""
        return len(self._images)

    def add(self, file_name: str, instances: Instances) -> None:
        """Adds the detections of one image.

        Args:
            file_name: Name of the image in the file.
            instances: Detections as a Predictor returns them.
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
        """Writes images, categories and annotations, each annotation with its ``score``.

        Raises:
            InputError: If the file cannot be written.
        """
        parts = {
            "images": self._images,
            "categories": self._categories,
            "annotations": self._annotations,
        }
        write_atomically(Path(path), json.dumps(parts).encode())
