"""Faults of the annotations of a COCO file, all kinds found in one pass."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from snnet_vitdet.text import shown

from .image_entries import ImageEntries
from .rle import pixels_of
from .summary import EXAMPLES, DatasetSummary, agree, some

__all__ = ["NO_CROWDS", "InspectedAnnotations", "inspect_annotations"]

# COCO's own train2017 has 2 boxes of height 0 among 860,001 (cocodataset/cocoapi issue 355) and
# must pass. detectron2 leaves such objects out of training.
_TOLERATED_FLAT_BOXES = 1e-5

NO_CROWDS = (
    "Some annotation tools mark every mask of their brush so: if they are single objects, set "
    "iscrowd to 0"
)
"""What to do about masks that are no crowds."""

# What is wrong with annotations, as "<n> annotations <fault> (<examples>): <remedy>". Found in one
# pass, reported in this order: what is above tends to cause what is below.
_FAULTS = {
    "id": ("have no whole number as id", "give each annotation one, or a text"),
    "duplicate": ("have an id that another one has", "give each annotation an id of its own"),
    "image": (
        "name an image that is not listed",
        "remove them or add the images; an id in quotes is another one than without",
    ),
    "category id": (
        "have a category_id that is no whole number",
        "write it as one, without quotes or decimals, as the ids of the categories are",
    ),
    "category text": ("have a category_id that is no text", "write it as the categories' ids are"),
    "category": ("name a category that is not listed", "remove them or add the categories"),
    "ignore": ('are marked "ignore", which detectron2 cannot load', "remove them or the mark"),
    "iscrowd": ('have no "iscrowd" of 0 or 1, which the evaluation needs', "set it, usually to 0"),
    "area": (
        'have no "area" in pixels, which the evaluation needs',
        "set it to the area of the mask, or of the box where there is no mask",
    ),
    "large area": (
        'have an "area" far larger than their image',
        "set it to the area of the mask in pixels",
    ),
    "bbox": ("have no bbox of four finite numbers", "write it as [x, y, width, height]"),
    "flat": ("have a box without area", "remove them or correct width and height"),
    "outside": ("have a box outside the image", "remove them or correct [x, y, width, height]"),
    "far box": (
        "have a box that goes far beyond the image",
        "correct [x, y, width, height], in pixels of the image",
    ),
    "no mask": (
        "have no segmentation",
        "add masks, as polygons or RLE, for Mask R-CNN to learn, or train boxes alone by "
        "data.masks=false",
    ),
    "polygon": (
        "have a polygon that is no list of at least 3 points",
        "write it as [x1, y1, x2, y2, x3, y3, …] in finite numbers, or remove it",
    ),
    "far polygon": (
        "have a polygon that goes far beyond the image",
        "correct its points, in pixels of the image",
    ),
    "rle size": (
        "have an RLE mask that is not of the image's size",
        'write "size" as [height, width] of the image, and its runs for that',
    ),
    "rle counts": (
        "have an RLE mask whose counts are no runs",
        "write them as a list of whole numbers, or as the text that pycocotools makes of it",
    ),
    "rle pixels": (
        "have an RLE mask whose runs do not end with the image",
        "make them add up to height times width, or export them again",
    ),
}

# How many times the longer side of an image a box or a polygon may go beyond it. What is cut off by
# the border is often annotated as a whole; an outline is followed pixel by pixel, and pycocotools
# ends in a segmentation fault where numbers are too large for it.
_BEYOND = 10
_NUMBERS = {int, float}


@dataclass(frozen=True)
class InspectedAnnotations:
    """What annotations are.

    Attributes:
        faults: A sentence for each kind of fault.
        warnings: A sentence for each kind of what is odd and not refused.
        summary: Of those in order.
    """

    faults: list[str]
    warnings: list[str]
    summary: DatasetSummary


def inspect_annotations(
    json_file: str,
    annotations: Sequence[dict],
    entries: ImageEntries,
    categories: Mapping[int | str, str],
    for_evaluation: bool,
    masks: bool = True,
) -> InspectedAnnotations:
    """Looks at every annotation.

    Args:
        json_file: Name of the annotation file.
        annotations: Its annotations.
        entries: Its images.
        categories: Names of its categories by id.
        for_evaluation: Also ask for what COCO's evaluation needs, ``area`` and ``iscrowd``.
        masks: Whether masks are to be learnt or scored. Training needs at least one.
    """
    fault_counts: Counter[str] = Counter()
    fault_examples: dict[str, list[str]] = defaultdict(list)
    seen: set[str] = set()
    occupied: set[int | str] = set()
    instances = dict.fromkeys(categories, 0)
    size_counts = {"small": 0, "medium": 0, "large": 0}
    crowds = object_masks = rle_masks = 0
    for position, annotation in enumerate(annotations):
        faults = list(_faults_of(annotation, seen, entries, categories, for_evaluation))
        in_order = not faults
        crowd, has_mask = annotation.get("iscrowd"), bool(annotation.get("segmentation"))
        if masks and not has_mask and (for_evaluation or not crowd):
            faults.append("no mask")
        for fault in faults:
            fault_counts[fault] += 1
            if len(fault_examples[fault]) < EXAMPLES:
                fault_examples[fault].append(_describe(annotation, position, fault))
        object_masks += has_mask and not crowd
        if crowd:
            crowds += 1
        elif in_order:
            if annotation["image_id"] in entries.sizes:
                occupied.add(annotation["image_id"])
            instances[annotation["category_id"]] += 1
            rle_masks += isinstance(annotation.get("segmentation"), dict)
            area = annotation.get("area", annotation["bbox"][2] * annotation["bbox"][3])
            size_counts["small" if area < 32**2 else "medium" if area < 96**2 else "large"] += 1

    def sentence(fault: str, text: str) -> str:
        examples = some(fault_examples[fault], fault_counts[fault], "; ")
        count = f"{fault_counts[fault]} of {len(annotations)} annotations in {json_file}"
        return f"{count} {agree(text, fault_counts[fault]).format(examples=examples)}"

    warnings = []
    flat_boxes = fault_counts["flat"]
    if 0 < flat_boxes <= _TOLERATED_FLAT_BOXES * len(annotations):
        text = "have a box without area ({examples}); training leaves them out."
        warnings.append(sentence("flat", text))
        del fault_counts["flat"]
    # No fault: boxes are learnt and scored without masks.
    if (for_evaluation or object_masks) and (without := fault_counts.pop("no mask", 0)):
        warnings.append(_about_masks(json_file, without, len(annotations), for_evaluation))
    if crowds:
        warnings.append(_about_crowds(json_file, crowds, len(annotations), for_evaluation))
    num_images = len(entries.sizes)
    return InspectedAnnotations(
        faults=[
            sentence(fault, f"{text} ({{examples}}): {remedy}.")
            for fault, (text, remedy) in _FAULTS.items()
            if fault_counts[fault]
        ],
        warnings=warnings,
        summary=DatasetSummary(
            json_file=json_file,
            images=num_images,
            empty_images=num_images - len(occupied),
            annotations=len(annotations),
            crowds=crowds,
            masks=object_masks,
            rle_masks=rle_masks,
            flat_boxes=flat_boxes,
            categories=dict(categories),
            instances=instances,
            sizes=size_counts,
        ),
    )


def _about_masks(json_file: str, without: int, total: int, for_evaluation: bool) -> str:
    consequence = (
        "box AP counts them, mask AP counts what is found in their boxes neither for nor against"
        if for_evaluation
        else "training learns their boxes, and masks from the others"
    )
    if without == total:
        consequence = "boxes alone are scored" if for_evaluation else "boxes alone are learnt"
    none = agree("have no mask", without)
    return f"{without} of {total} annotations in {json_file} {none}: {consequence}."


def _about_crowds(json_file: str, crowds: int, total: int, for_evaluation: bool) -> str:
    consequence = (
        "evaluation counts what is found there neither for nor against"
        if for_evaluation
        else "training leaves them out"
    )
    marked = agree("have iscrowd 1, as crowds have", crowds)
    return f"{crowds} of {total} annotations in {json_file} {marked}: {consequence}. {NO_CROWDS}."


def _faults_of(
    annotation: dict,
    seen: set[str],
    entries: ImageEntries,
    categories: Mapping[int | str, str],
    for_evaluation: bool,
) -> Iterable[str]:
    """Keys of ``_FAULTS``; adds the annotation's id to ``seen``."""
    annotation_id = annotation.get("id")
    if type(annotation_id) not in (int, str):
        yield "id"
    elif str(annotation_id) in seen:
        yield "duplicate"
    else:
        seen.add(str(annotation_id))

    image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
    size = entries.sizes.get(image_id) if type(image_id) in (int, str) else None
    if size is None and not _is_incomplete(image_id, entries):
        yield "image"
    if fault := _category_fault(category_id, categories):
        yield fault
    if annotation.get("ignore") not in (None, 0):
        yield "ignore"
    crowd = annotation.get("iscrowd", None if for_evaluation else 0)
    if crowd not in (0, 1):
        yield "iscrowd"
    # An area that is there but no number breaks the summary of training data as well.
    area = annotation.get("area", None if for_evaluation else 0)
    if not _all_finite([area]) or area < 0:
        yield "area"
    elif size is not None and area > ((2 * _BEYOND + 1) * max(size)) ** 2:
        yield "large area"

    box_fault = _box_fault(annotation.get("bbox"), size)
    if box_fault is not None:
        yield box_fault
    # Training leaves crowds out, but reads a mask that is there.
    if mask_fault := _mask_fault(annotation.get("segmentation"), size):
        yield mask_fault


def _category_fault(category_id: object, categories: Mapping[int | str, str]) -> str | None:
    types = {type(key) for key in categories}
    if type(category_id) not in types:
        return "category id" if int in types else "category text"
    return None if category_id in categories else "category"


def _is_incomplete(image_id: object, entries: ImageEntries) -> bool:
    # Which is a fault of the image, and none of its annotations.
    return type(image_id) in (int, str) and image_id in entries.incomplete


def _box_fault(box: object, size: tuple[int, int] | None) -> str | None:
    if not isinstance(box, list) or len(box) != 4 or not _all_finite(box):
        return "bbox"
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return "flat"
    if size is not None and (x >= size[0] or y >= size[1] or x + width <= 0 or y + height <= 0):
        return "outside"
    return "far box" if _is_far((x, y, x + width, y + height), size) else None


def _mask_fault(mask: object, size: tuple[int, int] | None) -> str | None:
    if not mask:
        return None
    if isinstance(mask, dict):
        return _rle_fault(mask, size)
    if not isinstance(mask, list):
        return "polygon"
    for polygon in mask:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            return "polygon"
        if not _all_finite(polygon):
            return "polygon"
        if _is_far(polygon, size):
            return "far polygon"
    return None


def _rle_fault(mask: dict, size: tuple[int, int] | None) -> str | None:
    if size is None:
        # Without an image there is another fault, and no size to compare with.
        return None
    if mask.get("size") != [size[1], size[0]]:
        return "rle size"
    pixels = pixels_of(mask.get("counts"))
    if pixels is None:
        return "rle counts"
    return None if pixels == size[0] * size[1] else "rle pixels"


def _all_finite(numbers: list) -> bool:
    # Whole lists at a time: COCO has forty million coordinates. True is no number here.
    if not set(map(type, numbers)) <= _NUMBERS:
        return False
    try:
        return math.isfinite(sum(numbers)) and math.isfinite(max(numbers) - min(numbers))
    except OverflowError:  # one beyond all floats
        return False


def _is_far(coordinates: Sequence[float], size: tuple[int, int] | None) -> bool:
    if size is None:
        return False
    beyond = _BEYOND * max(size)
    return min(coordinates) < -beyond or max(coordinates) > max(size) + beyond


def _describe(annotation: dict, position: int, fault: str) -> str:
    # As Python writes them: "1" is not 1.
    name = shown(annotation["id"]) if "id" in annotation else f"number {position}"
    text = f"annotation {name} of image {shown(annotation.get('image_id'))}"
    if fault in ("category", "category id", "category text"):
        return f"{text} has category {shown(annotation.get('category_id'))}"
    if fault in ("bbox", "flat", "outside", "far box"):
        return f"{text} has {shown(annotation.get('bbox'))}"
    if fault in ("area", "large area") and "area" in annotation:
        return f"{text} has {shown(annotation['area'])}"
    return text
