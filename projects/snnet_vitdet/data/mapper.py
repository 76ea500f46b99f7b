"""Mapping a dataset dict to a sample, or to the reason why it cannot be used."""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.structures import BitMasks, Instances, PolygonMasks
from PIL import Image

from snnet_vitdet.errors import InputError

from .images import ImageFault, check_image, inspect_image

__all__ = ["DATA_ERRORS", "CheckedMapper", "Failure", "failure_of", "raise_failures"]

DATA_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What reading and mapping raise for wrong data; Pillow raises SyntaxError for damaged files."""


class CheckedMapper(DatasetMapper):
    """A ``DatasetMapper`` that checks image files and takes objects without masks.

    It refuses images that detectron2 would read wrongly, such as grey of 16 bits, or not at all.
    Images may have no object. Objects may have no mask: then the instances of the image have the
    field ``gt_has_mask``, (N,) booleans, and the missing masks are empty.
    """

    def __call__(self, dataset_dict: dict) -> dict:
        """Maps a dataset dict to what a model takes.

        Raises:
            InputError: The image file cannot be used.
        """
        path, size = dataset_dict["file_name"], None
        if "width" in dataset_dict and "height" in dataset_dict:
            size = (dataset_dict["width"], dataset_dict["height"])
        check_image(path, size)
        try:
            return super().__call__(dataset_dict)
        except Exception as error:
            # Decoding finds out whether the file is damaged.
            fault = inspect_image(path, size, decode=True)
            if isinstance(fault, ImageFault):
                raise InputError(str(fault)) from error
            raise

    def _transform_annotations(
        self, dataset_dict: dict, transforms: object, image_shape: tuple[int, int]
    ) -> None:
        objects = [a for a in dataset_dict["annotations"] if a.get("iscrowd", 0) == 0]
        with_masks, without = objects, []
        if self.use_instance_mask:
            with_masks = [a for a in objects if "segmentation" in a]
            without = [a for a in objects if "segmentation" not in a]
        if with_masks:
            dataset_dict["annotations"] = with_masks
            super()._transform_annotations(dataset_dict, transforms, image_shape)
        else:
            # detectron2 would look for masks to compute boxes from.
            del dataset_dict["annotations"]
            dataset_dict["instances"] = utils.annotations_to_instances([], image_shape)
        if without:
            boxes = self._boxes_alone(without, transforms, image_shape)
            if with_masks:
                masked = dataset_dict["instances"]
                masked.gt_has_mask = torch.ones(len(masked), dtype=torch.bool)
                boxes = Instances.cat([masked, boxes])
            dataset_dict["instances"] = boxes

    def _boxes_alone(
        self, objects: list[dict], transforms: object, image_shape: tuple[int, int]
    ) -> Instances:
        transformed = [
            utils.transform_instance_annotations(each, transforms, image_shape) for each in objects
        ]
        instances = utils.annotations_to_instances(transformed, image_shape)
        instances = utils.filter_empty_instances(instances)
        count = len(instances)
        if self.instance_mask_format == "polygon":
            instances.gt_masks = PolygonMasks([[] for _ in range(count)])
        else:
            instances.gt_masks = BitMasks(torch.zeros(count, *image_shape, dtype=torch.bool))
        instances.gt_has_mask = torch.zeros(count, dtype=torch.bool)
        return instances


@dataclass(frozen=True)
class Failure:
    """What a worker hands over in place of a sample.

    An exception that a worker raises would arrive as the text of its traceback, without its cause.

    Attributes:
        message: What is wrong, for an InputError.
        cause: What was raised.
    """

    message: str
    cause: BaseException | None = None


def failure_of(record: dict, error: Exception, purpose: str) -> Failure:
    """The failure of a sample.

    Args:
        record: Its dataset dict.
        error: What the mapper has raised.
        purpose: ``training`` or ``test``.
    """
    if isinstance(error, InputError):
        return Failure(str(error), _portable(error.__cause__))
    portable = _portable(error)
    return Failure(
        f"The {purpose} image {record.get('file_name')} cannot be used "
        f"({portable}): replace the file, or take it out of the annotations.",
        portable,
    )


def raise_failures(batch: Sequence) -> None:
    """Raises the first failure of a batch.

    Raises:
        InputError: There is one.
    """
    for sample in batch:
        if isinstance(sample, Failure):
            raise InputError(sample.message) from sample.cause


def _portable(error: BaseException | None) -> BaseException | None:
    """The error, or its text if it cannot leave the worker."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # any failure means that it cannot
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
