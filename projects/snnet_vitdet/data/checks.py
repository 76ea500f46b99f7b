"""Checks of COCO-format data before a training starts: each fault is one sentence."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from snnet_vitdet.errors import InputError

from .annotations import NO_CROWDS, inspect_annotations
from .coco_json import read_categories, read_coco_json
from .geometry import geometry_faults
from .image_entries import inspect_entries, missing_files
from .numbering import id_order
from .summary import DatasetSummary, some

__all__ = ["Inspection", "check_coco_json", "check_same_categories", "inspect_coco_json"]

logger = logging.getLogger(__name__)


@dataclass
class Inspection:
    """What an annotation file is found to be.

    Attributes:
        faults: a sentence for each kind of fault, what tends to cause others first.
        warnings: a sentence for each kind of what is odd and not refused.
        data: its content; None if it cannot be read.
        missing: names of the image files that are not there.
        geometry: kinds of :mod:`.geometry` that are among the faults.
        summary: of what is in order; None if it cannot be read.
    """

    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    data: dict | None = None
    missing: set[str] = field(default_factory=set)
    geometry: set[str] = field(default_factory=set)
    summary: DatasetSummary | None = None


def check_coco_json(
    json_file: str, image_root: str, *, for_evaluation: bool, masks: bool = True
) -> DatasetSummary:
    """Checks all that training or evaluation would stumble over, without opening an image.

    Args:
        json_file: annotation file.
        image_root: folder of the images.
        for_evaluation: also ask for what COCO's evaluation needs, ``area`` and ``iscrowd``.
        masks: whether masks are to be learnt or scored; if not, they are not looked at.

    Raises:
        InputError: naming the first kind of fault found, how often it occurs, and where.
    """
    inspection = inspect_coco_json(
        json_file, image_root, for_evaluation=for_evaluation, masks=masks
    )
    if inspection.faults:
        raise InputError(inspection.faults[0])
    for warning in inspection.warnings:
        logger.warning("%s", warning)
    return inspection.summary


def inspect_coco_json(
    json_file: str, image_root: str, *, for_evaluation: bool, masks: bool = True
) -> Inspection:
    """Looks for all kinds of faults, see :func:`check_coco_json`."""
    found = Inspection()
    try:
        found.data = read_coco_json(json_file, masks)
        categories = read_categories(json_file)
    except InputError as error:
        found.faults.append(str(error))
        return found
    images = found.data["images"]
    entries = inspect_entries(json_file, images)
    found.faults += entries.faults
    try:
        faults, found.missing = missing_files(json_file, images, image_root)
        found.faults += faults
    except InputError as error:
        found.faults.append(str(error))
        found.missing = {str(image.get("file_name")) for image in images}
    annotations = inspect_annotations(
        json_file, found.data["annotations"], entries, categories, for_evaluation, masks
    )
    # First: what is wrong with most of them makes some of the other faults.
    geometry = geometry_faults(json_file, found.data["annotations"], entries.sizes)
    found.geometry = set(geometry)
    found.faults += [*geometry.values(), *annotations.faults]
    found.warnings += _same_names(json_file, categories)
    found.warnings += annotations.warnings
    found.summary = annotations.summary
    # Where all objects have faults, those say more.
    if found.summary.empty_images == found.summary.images and not found.faults:
        purpose = "evaluation" if for_evaluation else "training"
        found.faults.append(
            f"{json_file} has no image with an annotated object that is not a crowd: {purpose} "
            f"needs at least one.{_all_are_crowds(found.summary)}"
        )
    return found


def _all_are_crowds(summary: DatasetSummary) -> str:
    if not summary.crowds:
        return ""
    return f" All its {summary.crowds} annotations are crowds (iscrowd 1). {NO_CROWDS}."


def _same_names(json_file: str, categories: Mapping[int | str, str]) -> Iterator[str]:
    ids_of_name: dict[str, list[int | str]] = {}
    for category_id, name in categories.items():
        ids_of_name.setdefault(name, []).append(category_id)
    twice = [f"{name!r} of ids {ids}" for name, ids in ids_of_name.items() if len(ids) > 1]
    if twice:
        yield (
            f"{json_file} has categories of the same name ({some(twice)}): they are trained and "
            "scored as different classes; give them different names, or all their objects one id."
        )


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
    for category_id in sorted(train_names.keys() | test_names.keys(), key=id_order):
        pair = train_names.get(category_id), test_names.get(category_id)
        if pair[0] != pair[1]:
            here, there = ("absent" if name is None else repr(name) for name in pair)
            differences.append(f"id {category_id!r} is {here} in training and {there} in test")
    if differences:
        raise InputError(
            f"The categories of {train_file} and {test_file} differ: {some(differences)}; give "
            "both files the same categories."
        )


def _file_and_categories(source: DatasetSummary | str) -> tuple[str, dict[int | str, str]]:
    if isinstance(source, DatasetSummary):
        return source.json_file, source.categories
    return source, read_categories(source)
