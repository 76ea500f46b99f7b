"""Checks of COCO-format data before a training starts: each fault is one sentence."""

import logging
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from snnet_vitdet.errors import InputError

from .coco_json import read_categories, read_coco_json
from .rle import covers

__all__ = ["DatasetSummary", "check_coco_json", "check_same_categories"]

logger = logging.getLogger(__name__)

# COCO's own train2017 has 2 boxes of height 0 among 860,001 (cocodataset/cocoapi issue 355) and
# must pass. detectron2 leaves such objects out of training.
_TOLERATED_FLAT_BOXES = 1e-5

_EXAMPLES = 3

# What is wrong with annotations, as "<n> annotations <fault> (<examples>): <remedy>". Found in one
# pass, reported in this order: what is above tends to cause what is below.
_FAULTS = {
    "id": ("have no whole number as id", "give each annotation an id"),
    "duplicate": ("have an id that another one has", "give each annotation an id of its own"),
    "image": ("name an image that is not listed", "remove them or add the images"),
    "category": ("name a category that is not listed", "remove them or add the categories"),
    "ignore": ('are marked "ignore", which detectron2 cannot load', "remove them or the mark"),
    "iscrowd": ('have no "iscrowd" of 0 or 1, which the evaluation needs', "set it, usually to 0"),
    "area": (
        'have no "area" in pixels, which the evaluation needs',
        "set it to the area of the mask",
    ),
    "keypoints": ("have keypoints that are no list of finite numbers", "remove or correct them"),
    "bbox": ("have no bbox of four finite numbers", "write it as [x, y, width, height]"),
    "flat": ("have a box without area", "remove them or correct width and height"),
    "outside": ("have a box outside their image", "remove them or correct [x, y, width, height]"),
    "no mask": ("have no segmentation", "add masks, as polygons or RLE: Mask R-CNN learns them"),
    "polygon": (
        "have a polygon that is no list of at least 3 points",
        "write it as [x1, y1, x2, y2, x3, y3, …] or remove it",
    ),
    "rle": ("have an RLE mask that is incomplete or not of their image's size", "correct them"),
}


@dataclass(frozen=True)
class DatasetSummary:
    """What a checked data set consists of.

    Attributes:
        json_file: its annotation file.
        images: number of images.
        empty_images: number of images without an object (crowds aside).
        annotations: number of objects and crowds.
        crowds: how many of the annotations are crowds.
        rle_masks: how many objects have an RLE mask; with any, a mapper needs the mask format
            "bitmask".
        flat_boxes: how many objects have a box without area; training leaves these out.
        categories: name by id, in the order of the ids.
        instances: number of objects by category id.
        sizes: number of objects by COCO's size ranges small, medium and large (below 32² and 96²
            square pixels of mask area, or of box area where the file does not say).
    """

    json_file: str
    images: int
    empty_images: int
    annotations: int
    crowds: int
    rle_masks: int
    flat_boxes: int
    categories: dict[int, str]
    instances: dict[int, int]
    sizes: dict[str, int]

    def __str__(self) -> str:
        sizes = ", ".join(f"{count} {name}" for name, count in self.sizes.items())
        return (
            f"{self.json_file}: {self.images} images ({self.empty_images} empty), "
            f"{sum(self.instances.values())} objects ({sizes}) of {len(self.categories)} "
            f"categories, {self.crowds} crowds"
        )


def check_coco_json(json_file: str, image_root: str, *, for_evaluation: bool) -> DatasetSummary:
    """Checks all that training or evaluation would stumble over, without opening an image.

    Args:
        json_file: annotation file.
        image_root: folder of the images.
        for_evaluation: also ask for what COCO's evaluation needs, ``area`` and ``iscrowd``.

    Raises:
        InputError: naming the first kind of fault found, how often it occurs, and where.
    """
    data = read_coco_json(json_file)
    categories = read_categories(json_file)
    sizes = _check_images(json_file, data["images"])
    _check_image_files(json_file, data["images"], image_root)
    summary = _check_annotations(json_file, data["annotations"], sizes, categories, for_evaluation)
    if summary.empty_images == summary.images:
        purpose = "evaluation" if for_evaluation else "training"
        raise InputError(
            f"{json_file} has no image with an annotated object that is not a crowd: {purpose} "
            "needs at least one."
        )
    return summary


def check_same_categories(train: DatasetSummary | str, test: DatasetSummary | str) -> None:
    """Checks that training and test data have the same category ids with the same names.

    Args:
        train: summary of the training data, or its annotation file.
        test: summary of the test data, or its annotation file.

    Raises:
        InputError: they differ; the message lists the differences.
    """
    (train_file, train_names), (test_file, test_names) = map(_file_and_categories, (train, test))
    differences = []
    for category_id in sorted(train_names.keys() | test_names.keys()):
        pair = train_names.get(category_id), test_names.get(category_id)
        if pair[0] != pair[1]:
            here, there = ("absent" if name is None else repr(name) for name in pair)
            differences.append(f"id {category_id} is {here} in training and {there} in test")
    if differences:
        raise InputError(
            f"The categories of {train_file} and {test_file} differ: {_some(differences)}; give "
            "both files the same categories."
        )


def _file_and_categories(source: DatasetSummary | str) -> tuple[str, dict[int, str]]:
    if isinstance(source, DatasetSummary):
        return source.json_file, source.categories
    return source, read_categories(source)


def _some(items: list, total: int | None = None, separator: str = ", ") -> str:
    total = len(items) if total is None else total
    shown = separator.join(str(item) for item in items[:_EXAMPLES])
    return shown if total <= _EXAMPLES else f"{shown} and {total - _EXAMPLES} more"


# ------------------------------------------------------------------------------------------ images


def _check_images(json_file: str, images: list[dict]) -> dict[int | str, tuple[int, int]]:
    """(width, height) in pixels by image id."""
    if not images:
        raise InputError(f"{json_file} lists no images: use an annotation file that does.")
    incomplete, duplicates = [], []
    sizes: dict[int | str, tuple[int, int]] = {}
    for position, image in enumerate(images):
        image_id, width, height = image.get("id"), image.get("width"), image.get("height")
        if (
            not isinstance(image_id, (int, str))
            or not isinstance(image.get("file_name"), str)
            or not (isinstance(width, int) and width > 0)
            or not (isinstance(height, int) and height > 0)
        ):
            incomplete.append(f"entry {position}: id {image_id}")
        elif image_id in sizes:
            duplicates.append(image_id)
        else:
            sizes[image_id] = (width, height)
    if incomplete:
        raise InputError(
            f"{len(incomplete)} of {len(images)} images in {json_file} lack an id, a file_name, or "
            f"width and height in whole pixels ({_some(incomplete)}): complete them."
        )
    if duplicates:
        raise InputError(
            f"{len(duplicates)} of {len(images)} images in {json_file} have an id that another one "
            f"has ({_some(duplicates)}): give each image an id of its own."
        )
    of_each_type = {isinstance(image_id, str): image_id for image_id in sizes}
    if len(of_each_type) > 1:
        examples = ", ".join(map(repr, of_each_type.values()))
        raise InputError(
            f"Some images in {json_file} have a number as id and some a text ({examples}), which "
            "cannot be put in order: give all the same."
        )
    return sizes


def _check_image_files(json_file: str, images: list[dict], image_root: str) -> None:
    if not os.path.isdir(image_root):
        raise InputError(
            f"The image folder {image_root} (for {json_file}) does not exist or is no folder: "
            "check the path."
        )
    # One listing a folder: a stat call an image takes minutes on network file systems.
    names_in_folder: dict[str, set[str]] = {}
    missing = []
    for image in images:
        folder, name = os.path.split(os.path.join(image_root, image["file_name"]))
        if folder not in names_in_folder:
            names_in_folder[folder] = _list_folder(folder)
        if name not in names_in_folder[folder]:
            missing.append(image["file_name"])
    if missing:
        raise InputError(
            f"{len(missing)} of {len(images)} images that {json_file} names are not in "
            f"{image_root} ({_some(missing)}): correct the image folder, or add the files."
        )


def _list_folder(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last: no name a path can have
        return set()
    except OSError as error:
        raise InputError(
            f"The image folder {folder} cannot be listed ({error.strerror}): check the path."
        ) from error


# ------------------------------------------------------------------------------------- annotations


def _check_annotations(
    json_file: str,
    annotations: list[dict],
    sizes: dict[int | str, tuple[int, int]],
    categories: dict[int, str],
    for_evaluation: bool,
) -> DatasetSummary:
    fault_counts: Counter[str] = Counter()
    fault_examples: dict[str, list[str]] = defaultdict(list)
    seen: set[int] = set()
    occupied: set[int | str] = set()
    instances = dict.fromkeys(categories, 0)
    size_counts = {"small": 0, "medium": 0, "large": 0}
    crowds = rle_masks = 0
    for position, annotation in enumerate(annotations):
        faults = list(_faults_of(annotation, seen, sizes, categories, for_evaluation))
        for fault in faults:
            fault_counts[fault] += 1
            if len(fault_examples[fault]) < _EXAMPLES:
                fault_examples[fault].append(_describe(annotation, position, fault))
        if annotation.get("iscrowd"):
            crowds += 1
        elif not faults:
            occupied.add(annotation["image_id"])
            instances[annotation["category_id"]] += 1
            rle_masks += isinstance(annotation["segmentation"], dict)
            area = annotation.get("area", annotation["bbox"][2] * annotation["bbox"][3])
            size_counts["small" if area < 32**2 else "medium" if area < 96**2 else "large"] += 1

    flat_boxes = fault_counts["flat"]
    if 0 < flat_boxes <= _TOLERATED_FLAT_BOXES * len(annotations):
        logger.warning(
            "%d of %d annotations in %s have a box without area (%s); training leaves them out.",
            flat_boxes,
            len(annotations),
            json_file,
            _some(fault_examples["flat"], flat_boxes, "; "),
        )
        del fault_counts["flat"]
    for fault, (sentence, remedy) in _FAULTS.items():
        if fault_counts[fault]:
            examples = _some(fault_examples[fault], fault_counts[fault], "; ")
            raise InputError(
                f"{fault_counts[fault]} of {len(annotations)} annotations in {json_file} "
                f"{sentence} ({examples}): {remedy}."
            )
    if for_evaluation and 0 in seen:
        logger.warning(
            "%s has an annotation with id 0, which pycocotools takes for no match: that object "
            "always counts as missed. Number annotations from 1.",
            json_file,
        )
    return DatasetSummary(
        json_file=json_file,
        images=len(sizes),
        empty_images=len(sizes) - len(occupied),
        annotations=len(annotations),
        crowds=crowds,
        rle_masks=rle_masks,
        flat_boxes=flat_boxes,
        categories=categories,
        instances=instances,
        sizes=size_counts,
    )


def _faults_of(
    annotation: dict,
    seen: set[int],
    sizes: dict[int | str, tuple[int, int]],
    categories: dict[int, str],
    for_evaluation: bool,
) -> Iterable[str]:
    """Keys of ``_FAULTS``; adds the annotation's id to ``seen``."""
    annotation_id = annotation.get("id")
    if type(annotation_id) is not int:
        yield "id"
    elif annotation_id in seen:
        yield "duplicate"
    else:
        seen.add(annotation_id)

    image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
    size = sizes.get(image_id) if isinstance(image_id, (int, str)) else None
    if size is None:
        yield "image"
    if not isinstance(category_id, int) or category_id not in categories:
        yield "category"
    if annotation.get("ignore", 0) != 0:
        yield "ignore"
    crowd = annotation.get("iscrowd", None if for_evaluation else 0)
    if crowd not in (0, 1):
        yield "iscrowd"
    # An area that is there but no number breaks the summary of training data as well.
    area = annotation.get("area", None if for_evaluation else 0)
    if not _all_finite([area]):
        yield "area"

    points = annotation.get("keypoints")
    # They are not used, but read.
    if points and not (isinstance(points, list) and _all_finite(points)):
        yield "keypoints"
    box_fault = _box_fault(annotation.get("bbox"), size)
    if box_fault is not None:
        yield box_fault
    mask = annotation.get("segmentation")
    mask_fault = _mask_fault(mask, size)
    # Training leaves crowds out, but reads a mask that is there; evaluation needs theirs.
    if mask_fault is not None and (for_evaluation or not crowd or mask):
        yield mask_fault


def _box_fault(box: object, size: tuple[int, int] | None) -> str | None:
    if not isinstance(box, list) or len(box) != 4 or not _all_finite(box):
        return "bbox"
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return "flat"
    if size is not None and (x >= size[0] or y >= size[1] or x + width <= 0 or y + height <= 0):
        return "outside"
    return None


def _mask_fault(mask: object, size: tuple[int, int] | None) -> str | None:
    if not mask:
        return "no mask"
    if isinstance(mask, dict):
        # Without an image there is another fault, and no size to compare with.
        fits = size is None or (
            mask.get("size") == [size[1], size[0]] and covers(mask.get("counts"), size[0] * size[1])
        )
        return None if fits else "rle"
    if not isinstance(mask, list):
        return "no mask"
    for polygon in mask:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            return "polygon"
        if not _all_finite(polygon):
            return "polygon"
    return None


def _all_finite(numbers: list) -> bool:
    try:
        # One addition a number instead of one test: COCO has forty million coordinates.
        return math.isfinite(sum(numbers))
    except (TypeError, OverflowError):  # no numbers, or one beyond all floats
        return False


def _describe(annotation: dict, position: int, fault: str) -> str:
    annotation_id = annotation.get("id", f"number {position}")
    text = f"annotation {annotation_id} of image {annotation.get('image_id')}"
    if fault == "category":
        return f"{text} has category {annotation.get('category_id')}"
    if fault in ("bbox", "flat", "outside"):
        return f"{text} has {annotation.get('bbox')}"
    return text
