"""Checks of COCO-format data before a training starts: one sentence per kind of fault."""

import logging
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from snnet_vitdet.errors import InputError
from snnet_vitdet.text import shown

from .annotations import (
    ANNOTATION_FAULTS,
    NO_CROWDS,
    ODD_GEOMETRY,
    SHAPE_FAULTS,
    AnnotationChecker,
    describe_annotation,
    odd_geometry,
)
from .coco_json import Id, id_order, read_categories, read_coco_json
from .images import ImageFolder
from .sentences import about, some

__all__ = ["DatasetSummary", "Inspection", "check_coco_json", "check_same_categories"]

logger = logging.getLogger(__name__)

# COCO's own train2017 has 2 boxes of height 0 among 860,001 (cocodataset/cocoapi issue 355) and
# must pass. detectron2 leaves such objects out of training.
_TOLERATED_FLAT_BOXES = 1e-5
_LONGEST_SIDE = 1_000_000  # no format has more, and pycocotools counts pixels in 32 bits
# A file is written in one way, so its first objects tell; all of COCO's would take half a minute.
_JUDGED = 10_000
# A single odd object may be one by chance.
_FEWEST_JUDGED = 2

# What happens with annotations without a mask: by "in evaluation" and by "no annotation has one".
_NO_MASK = {
    (True, True): "boxes alone are scored",
    (False, True): "boxes alone are learnt",
    (True, False): "box AP counts them, mask AP ignores what is found in their boxes",
    (False, False): "training learns their boxes, and masks from the others",
}
_CROWD = {
    True: "evaluation ignores what is found in crowds",
    False: "training leaves crowds out",
}

# What an image needs, and what its values must be.
_IMAGE_FIELDS = {
    "id": lambda value: type(value) in (int, str),
    "file_name": lambda value: isinstance(value, str),
    "width": lambda value: type(value) is int and 0 < value <= _LONGEST_SIDE,
    "height": lambda value: type(value) is int and 0 < value <= _LONGEST_SIDE,
}

# Kinds of file names that are not in the image folder.
_MISSING = {
    "address": (
        "have a web address as file_name",
        "download the images, and write their names below the image folder",
    ),
    "drive": (
        "have a path of a drive of Windows as file_name",
        "write their names below the image folder",
    ),
    "other": ("are not in {root}", "correct the image folder, or add the files"),
}


@dataclass(frozen=True)
class DatasetSummary:
    """What a checked data set consists of.

    Attributes:
        json_file: Its annotation file.
        images: Number of images.
        empty_images: Number of images without an object (crowds aside).
        annotations: Number of objects and crowds.
        crowds: Number of crowds.
        masks: Number of objects with a mask.
        rle_masks: Number of objects with an RLE mask; with any, a mapper needs the mask format
            "bitmask".
        flat_boxes: Number of objects with a box without area, which training leaves out.
        categories: Name by id, in the order of the ids.
        instances: Number of objects by category id.
        sizes: Number of objects by COCO's size ranges small, medium and large (below 32² and 96²
            square pixels of the mask, or of the box where the file does not say).
    """

    json_file: str
    images: int
    empty_images: int
    annotations: int
    crowds: int
    masks: int
    rle_masks: int
    flat_boxes: int
    categories: dict[Id, str]
    instances: dict[Id, int]
    sizes: dict[str, int]

    def __str__(self) -> str:
        sizes = ", ".join(f"{count} {name}" for name, count in self.sizes.items())
        return (
            f"{self.json_file}: {self.images} images ({self.empty_images} empty), "
            f"{sum(self.instances.values())} objects ({sizes}) of {len(self.categories)} "
            f"categories, {self.crowds} crowds"
        )


class Inspection:
    """Finds all kinds of faults of an annotation file, without opening an image.

    Attributes:
        faults: A sentence per kind of fault; earlier ones tend to cause later ones.
        warnings: A sentence for each odd thing that is not refused.
        data: Content of the file; None if it cannot be read.
        missing: Names of the image files that are not there.
        geometry: Keys of :data:`.ODD_GEOMETRY` that are among the faults.
        objects: The objects, crowds aside, whose box and mask have no fault: annotation, its index
            in the file, and width and height of its image.
        summary: What the file consists of; None if it cannot be read.
    """

    def __init__(
        self, json_file: str, image_root: str, *, for_evaluation: bool, masks: bool = True
    ) -> None:
        """Reads and checks the file, see :func:`check_coco_json` for the arguments."""
        self.faults: list[str] = []
        self.warnings: list[str] = []
        self.data: dict | None = None
        self.missing: set[str] = set()
        self.geometry: set[str] = set()
        self.objects: list[tuple[dict, int, tuple[int, int]]] = []
        self.summary: DatasetSummary | None = None
        self._json_file = json_file
        self._for_evaluation = for_evaluation
        try:
            self.data = read_coco_json(json_file, masks)
            categories = read_categories(json_file)
        except InputError as error:
            self.faults.append(str(error))
            return
        sizes, incomplete = self._check_images()
        self._find_files(image_root)
        self._warn_of_equal_names(categories)
        checker = AnnotationChecker(sizes, incomplete, categories, for_evaluation)
        self._tell_of_annotations(self._check_annotations(checker, sizes, categories, masks))
        # If all objects have faults, those say more.
        if self.summary.empty_images == self.summary.images and not self.faults:
            crowds = self.summary.crowds
            remedy = f" All its {crowds} annotations are crowds (iscrowd 1). {NO_CROWDS}."
            self.faults.append(
                f"{json_file} has no image with an annotated object that is not a crowd: "
                f"{'evaluation' if for_evaluation else 'training'} needs at least one."
                f"{remedy if crowds else ''}"
            )

    def _add(self, sentences: list[str], found: Sequence, *args: object, **kwargs: object) -> None:
        """Adds a sentence about what is found, if anything; see :func:`.about`."""
        if found:
            sentences.append(about(found, *args, **kwargs))

    def _check_images(self) -> tuple[dict[Id, tuple[int, int]], set[Id]]:
        """Checks the entries of images.

        Returns:
            Width and height of the images in order, by id; and the ids of the other images.
        """
        images = self.data["images"]
        if not images:
            text = "lists no images: use an annotation file that does"
            self.faults.append(f"{self._json_file} {text}.")
        wrong, duplicates = [], []
        sizes: dict[Id, tuple[int, int]] = {}
        incomplete, seen = set(), set()
        for index, image in enumerate(images):
            image_id = image.get("id")
            keys = [key for key, is_right in _IMAGE_FIELDS.items() if not is_right(image.get(key))]
            if keys:
                has = (
                    f"{key} {shown(image[key])}" if key in image else f"no {key}" for key in keys
                )
                name = f"at index {index}" if "id" in keys else shown(image_id)
                wrong.append(f"image {name} has {' and '.join(has)}")
                if "id" not in keys:
                    incomplete.add(image_id)
            elif str(image_id) in seen:  # as texts: 1 and "1" are the same to many programs
                duplicates.append(image_id)
            else:
                seen.add(str(image_id))
                sizes[image_id] = (image["width"], image["height"])
        total, things = len(images), f"images in {self._json_file}"
        text = "have an incomplete or wrong entry"
        remedy = (
            "each needs an id, a file_name as text, and width and height in whole pixels from 1 to "
            "a million"
        )
        self._add(self.faults, wrong, total, things, text, remedy, separator="; ")
        text, remedy = "have the same id as another one", "give each image an id of its own"
        self._add(self.faults, duplicates, total, things, text, remedy, describe=repr)
        return sizes, incomplete

    def _find_files(self, image_root: str) -> None:
        # A name that is no text is a fault of its entry.
        names = [i["file_name"] for i in self.data["images"] if isinstance(i.get("file_name"), str)]
        self.missing = set(names)
        try:
            if not os.path.isdir(image_root):
                raise InputError(
                    f"The image folder {image_root} (for {self._json_file}) does not exist or is "
                    "not a folder: check the path."
                )
            folder = ImageFolder(image_root)
            missing = [name for name in names if not folder.has(name)]
        except InputError as error:
            self.faults.append(str(error))
            return
        self.missing = set(missing)
        by_kind: dict[str, list[str]] = defaultdict(list)
        for name in missing:
            is_address = re.match("[A-Za-z][A-Za-z0-9+.-]+://", name)
            kind = "address" if is_address else "drive" if re.match("[A-Za-z]:", name) else "other"
            by_kind[kind].append(name)
        total, things = len(self.data["images"]), f"images that {self._json_file} names"
        for kind, (text, remedy) in _MISSING.items():
            text = text.format(root=image_root)
            self._add(self.faults, by_kind[kind], total, things, text, remedy)

    def _warn_of_equal_names(self, categories: dict[Id, str]) -> None:
        ids_by_name: dict[str, list[Id]] = defaultdict(list)
        for category_id, name in categories.items():
            ids_by_name[name].append(category_id)
        twice = [f"{name!r} of ids {ids}" for name, ids in ids_by_name.items() if len(ids) > 1]
        if twice:
            self.warnings.append(
                f"{self._json_file} has categories of the same name ({some(twice)}): they are "
                "trained and scored as different classes; give them different names, or all their "
                "objects one id."
            )

    def _check_annotations(
        self,
        checker: AnnotationChecker,
        sizes: dict[Id, tuple[int, int]],
        categories: dict[Id, str],
        masks: bool,
    ) -> dict[str, list[tuple[dict, int]]]:
        """Fills ``objects`` and ``summary``.

        Returns:
            Annotations and their indexes, by kind of fault and "crowd".
        """
        faulty: dict[str, list[tuple[dict, int]]] = defaultdict(list)
        occupied: set[Id] = set()
        instances = dict.fromkeys(categories, 0)
        size_counts = {"small": 0, "medium": 0, "large": 0}
        object_masks = rle_masks = 0
        for index, annotation in enumerate(self.data["annotations"]):
            faults = checker.faults(annotation)
            crowd, mask = annotation.get("iscrowd"), annotation.get("segmentation")
            no_mask = masks and not mask and (self._for_evaluation or not crowd)
            for kind in (*faults, *["no mask"] * no_mask, *["crowd"] * bool(crowd)):
                faulty[kind].append((annotation, index))
            if crowd:
                continue
            object_masks += bool(mask)
            size = None if "image" in faults else sizes.get(annotation["image_id"])
            if size is not None and SHAPE_FAULTS.isdisjoint(faults):
                self.objects.append((annotation, index, size))
            if not faults:
                if size is not None:
                    occupied.add(annotation["image_id"])
                instances[annotation["category_id"]] += 1
                rle_masks += isinstance(mask, dict)
                area = annotation.get("area", annotation["bbox"][2] * annotation["bbox"][3])
                size_counts["small" if area < 32**2 else "medium" if area < 96**2 else "large"] += 1
        self.summary = DatasetSummary(
            json_file=self._json_file,
            images=len(sizes),
            empty_images=len(sizes) - len(occupied),
            annotations=len(self.data["annotations"]),
            crowds=len(faulty["crowd"]),
            masks=object_masks,
            rle_masks=rle_masks,
            flat_boxes=len(faulty["flat"]),
            categories=categories,
            instances=instances,
            sizes=size_counts,
        )
        return faulty

    def _tell_of_annotations(self, faulty: dict[str, list[tuple[dict, int]]]) -> None:
        about_all = (self.summary.annotations, f"annotations in {self._json_file}")
        if len(faulty["flat"]) <= _TOLERATED_FLAT_BOXES * self.summary.annotations:
            flat = [describe_annotation(*each, "flat") for each in faulty.pop("flat")]
            text, consequence = "have a box without area", "training leaves them out"
            self._add(self.warnings, flat, *about_all, text, consequence)
        # Boxes are learnt and scored without masks, but training on masks needs at least one.
        if self._for_evaluation or self.summary.masks:
            without = faulty.pop("no mask", [])
            consequence = _NO_MASK[self._for_evaluation, len(without) == self.summary.annotations]
            text = "have no mask"
            self._add(self.warnings, without, *about_all, text, consequence, describe=None)
        text = "have iscrowd 1"
        consequence = f"{_CROWD[self._for_evaluation]}. {NO_CROWDS}"
        self._add(self.warnings, faulty["crowd"], *about_all, text, consequence, describe=None)
        # What is wrong with most objects causes some of the other faults.
        self._tell_of_geometry()
        for kind, (text, remedy) in ANNOTATION_FAULTS.items():
            found = [describe_annotation(*each, kind) for each in faulty[kind]]
            self._add(self.faults, found, *about_all, text, remedy, separator="; ")

    def _tell_of_geometry(self) -> None:
        """Adds a fault for each oddity that more than half of the objects have."""
        odd: dict[str, list[str]] = defaultdict(list)
        judged = self.objects[:_JUDGED]
        for annotation, index, size in judged:
            for kind in odd_geometry(annotation, size):
                odd[kind].append(describe_annotation(annotation, index, kind))
        total = f"the first {_JUDGED}" if len(judged) == _JUDGED else len(judged)
        things = f"annotations of objects in {self._json_file}"
        for kind, (text, remedy) in ODD_GEOMETRY.items():
            if len(odd[kind]) > len(judged) / 2 and len(judged) >= _FEWEST_JUDGED:
                self.geometry.add(kind)
                self._add(self.faults, odd[kind], total, things, text, remedy, separator="; ")


def check_coco_json(
    json_file: str, image_root: str, *, for_evaluation: bool, masks: bool = True
) -> DatasetSummary:
    """Checks annotations and file names before training or evaluation, without opening an image.

    Args:
        json_file: Annotation file.
        image_root: Folder of the images.
        for_evaluation: Whether ``area`` and ``iscrowd`` are needed, as by COCO's evaluation.
        masks: Whether masks are learnt or scored; if not, they are not looked at.

    Raises:
        InputError: The first kind of fault found, how often it occurs, and where.
    """
    found = Inspection(json_file, image_root, for_evaluation=for_evaluation, masks=masks)
    if found.faults:
        raise InputError(found.faults[0])
    for warning in found.warnings:
        logger.warning("%s", warning)
    return found.summary


def check_same_categories(train_json: str, test_json: str) -> None:
    """Checks that training and test data have the same category ids with the same names.

    Raises:
        InputError: They differ; the message lists the differences.
    """
    train_names, test_names = read_categories(train_json), read_categories(test_json)
    differences = []
    for category_id in sorted(train_names.keys() | test_names.keys(), key=id_order):
        pair = train_names.get(category_id), test_names.get(category_id)
        if pair[0] != pair[1]:
            here, there = ("absent" if name is None else repr(name) for name in pair)
            differences.append(f"id {category_id!r} is {here} in training and {there} in test")
    if differences:
        raise InputError(
            f"The categories of {train_json} and {test_json} differ: {some(differences)}; give "
            "both files the same categories."
        )
