"""Faults of single annotations of a COCO file, and whether boxes and masks fit each other."""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from pycocotools import mask as mask_util

from snnet_vitdet.text import shown

from .coco_json import Id

__all__ = [
    "ANNOTATION_FAULTS",
    "NO_CROWDS",
    "ODD_GEOMETRY",
    "SHAPE_FAULTS",
    "AnnotationChecker",
    "describe_annotation",
    "odd_geometry",
    "rle_pixels",
]

NO_CROWDS = (
    "Some annotation tools mark all masks of their brush as crowds: if these are single objects, "
    "set iscrowd to 0"
)
"""What to do about single objects that are marked as crowds."""

ANNOTATION_FAULTS = {
    "id": ("have no id that is a whole number", "give each annotation one, or a text"),
    "duplicate": ("have the same id as another one", "give each annotation an id of its own"),
    "image": (
        "name an image that is not listed",
        "remove them or add the images; an id in quotes is not the same as one without",
    ),
    "category id": (
        "have a category_id that is not a whole number",
        "write it without quotes or decimals, as in the list of categories",
    ),
    "category text": (
        "have a category_id that is not a text",
        "write it as in the list of categories",
    ),
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
        "have a polygon that is not a list of at least 3 points",
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
        "have an RLE mask whose counts are not run lengths",
        "write them as a list of whole numbers, or as the text that pycocotools makes of it",
    ),
    "rle pixels": (
        "have an RLE mask whose runs do not cover the image exactly",
        "make them add up to height times width, or export them again",
    ),
}
"""Predicate and remedy by kind of fault. Earlier kinds tend to cause later ones."""

_BOX_FAULTS = ("bbox", "flat", "outside", "far box")
_MASK_FAULTS = ("polygon", "far polygon", "rle size", "rle counts", "rle pixels")
SHAPE_FAULTS = frozenset(_BOX_FAULTS + _MASK_FAULTS)
"""The kinds of faults that boxes and masks have."""

_MULTIPLY = "they look normalised: multiply by width and height of the image"
ODD_GEOMETRY = {
    "normalised box": ("have a box of numbers from 0 to 1", _MULTIPLY),
    "normalised polygon": ("have polygons of numbers from 0 to 1", _MULTIPLY),
    "another box": (
        "have a box that is not around its mask",
        "training takes boxes from the masks and leaves out empty masks, evaluation takes the "
        "boxes as they are; are boxes written as [x1, y1, x2, y2]? Write them as [x, y, width, "
        "height]",
    ),
}
"""What is odd about boxes and masks without a fault: a note if some have it, a fault if most do."""

# A box or a polygon may go beyond the image by this many times the longer side. Objects that the
# border cuts are often annotated as a whole, but pycocotools follows outlines pixel by pixel, and
# huge numbers end in a segmentation fault.
_BEYOND = 10
# A compressed number of this length has 35 bits: no image has as many pixels, and no sum of runs
# reaches 64 bits.
_MOST_CHARACTERS = 7
# Boxes drawn by hand are a few pixels off their masks. Less overlap means another layout or object.
_LOWEST_IOU = 0.5
_CLEARLY = 0.1  # more than a width that counts one pixel more
# In an image with longer sides than this, a box within 0 to 1 is no object.
_FEW_PIXELS = 4


class AnnotationChecker:
    """Finds faults of the annotations of a file, one annotation after the other."""

    def __init__(
        self,
        sizes: Mapping[Id, tuple[int, int]],
        incomplete: Collection[Id],
        categories: Collection[Id],
        for_evaluation: bool,
    ) -> None:
        """
        Args:
            sizes: Width and height in pixels of the images, by id.
            incomplete: Ids of images whose entries are faulty; their annotations are not blamed.
            categories: Ids of the categories.
            for_evaluation: Whether ``area`` and ``iscrowd`` are needed.
        """
        self._sizes = sizes
        self._incomplete = incomplete
        self._categories = categories
        self._category_types = {type(key) for key in categories}
        self._for_evaluation = for_evaluation
        self._ids: set[str] = set()

    def faults(self, annotation: dict) -> list[str]:
        """Keys of ``ANNOTATION_FAULTS``; an id is a duplicate from its second annotation on."""
        found = [self._id_fault(annotation.get("id"))]
        image_id = annotation.get("image_id")
        is_id = type(image_id) in (int, str)
        size = self._sizes.get(image_id) if is_id else None
        if size is None and not (is_id and image_id in self._incomplete):
            found.append("image")
        found.append(self._category_fault(annotation.get("category_id")))
        if annotation.get("ignore") not in (None, 0):
            found.append("ignore")
        # Training does not need these two, but its summary reads an area that is there.
        default = None if self._for_evaluation else 0
        if annotation.get("iscrowd", default) not in (0, 1):
            found.append("iscrowd")
        found.append(_area_fault(annotation.get("area", default), size))
        found.append(_box_fault(annotation.get("bbox"), size))
        # Training leaves crowds out, but reads their masks.
        found.append(_mask_fault(annotation.get("segmentation"), size))
        return [fault for fault in found if fault is not None]

    def _id_fault(self, annotation_id: object) -> str | None:
        if type(annotation_id) not in (int, str):
            return "id"
        # As texts: 1 and "1" are the same to many programs.
        if str(annotation_id) in self._ids:
            return "duplicate"
        self._ids.add(str(annotation_id))
        return None

    def _category_fault(self, category_id: object) -> str | None:
        if type(category_id) not in self._category_types:
            return "category id" if int in self._category_types else "category text"
        return None if category_id in self._categories else "category"


def describe_annotation(annotation: dict, index: int, kind: str = "") -> str:
    """Names an annotation by its id, or by its place in the file if it has no usable id.

    Args:
        annotation: The annotation.
        index: Its place in the file, from 0.
        kind: A key of ``ANNOTATION_FAULTS`` or ``ODD_GEOMETRY``, whose value is shown as Python
            writes it: "1" is not 1.
    """
    has_id = type(annotation.get("id")) in (int, str)
    name = shown(annotation["id"]) if has_id else f"at index {index}"
    text = f"annotation {name} of image {shown(annotation.get('image_id'))}"
    if kind == "normalised polygon":
        numbers = ", ".join(f"{number:.4g}" for number in annotation["segmentation"][0][:4])
        return f"{text} has [{numbers}, …]"
    if kind in (*_BOX_FAULTS, "normalised box", "another box"):
        return f"{text} has {shown(annotation.get('bbox'))}"
    if kind.startswith("category"):
        return f"{text} has category {shown(annotation.get('category_id'))}"
    key = "area" if kind == "large area" else kind
    if key in ("area", "id") and key in annotation:
        return f"{text} has {key} {shown(annotation[key])}"
    return text


def _area_fault(area: object, size: tuple[int, int] | None) -> str | None:
    """What is wrong with an area, as a key of ``ANNOTATION_FAULTS``; None if nothing is."""
    if not _all_finite([area]) or area < 0:
        return "area"
    if size is not None and area > ((2 * _BEYOND + 1) * max(size)) ** 2:
        return "large area"
    return None


def _box_fault(box: object, size: tuple[int, int] | None) -> str | None:
    """What is wrong with a box, if anything."""
    if not isinstance(box, list) or len(box) != 4 or not _all_finite(box):
        return "bbox"
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return "flat"
    if size is not None and (x >= size[0] or y >= size[1] or x + width <= 0 or y + height <= 0):
        return "outside"
    return "far box" if _is_far((x, y, x + width, y + height), size) else None


def _mask_fault(mask: object, size: tuple[int, int] | None) -> str | None:
    """What is wrong with a mask, if there is one."""
    if not mask:
        return None
    if isinstance(mask, dict):
        return _rle_fault(mask, size)
    if not isinstance(mask, list):
        return "polygon"
    for polygon in mask:
        is_list = isinstance(polygon, list)
        if not is_list or len(polygon) < 6 or len(polygon) % 2 or not _all_finite(polygon):
            return "polygon"
        if _is_far(polygon, size):
            return "far polygon"
    return None


def _rle_fault(mask: dict, size: tuple[int, int] | None) -> str | None:
    if size is None:
        return None  # nothing to compare with, and a fault already
    if mask.get("size") != [size[1], size[0]]:
        return "rle size"
    pixels = rle_pixels(mask.get("counts"))
    if pixels is None:
        return "rle counts"
    # pycocotools fails on runs that are longer than the image, and leaves the pixels behind
    # shorter ones as the memory was.
    return None if pixels == size[0] * size[1] else "rle pixels"


def rle_pixels(counts: object) -> int | None:
    """Number of pixels that the runs of an RLE mask cover.

    Args:
        counts: Lengths of the runs, or COCO's compressed text of them.

    Returns:
        None if these are no runs.
    """
    if isinstance(counts, str):
        runs = _decompressed(counts)
        return None if runs is None or runs.min() < 0 else int(runs.sum())
    if not isinstance(counts, list) or not all(type(run) is int and run >= 0 for run in counts):
        return None
    return sum(counts)


def _decompressed(text: str) -> np.ndarray | None:
    """The runs of COCO's compressed text, (runs,); None if the text is no such one.

    A character stands for six bits: five of a number, lowest first, and one for "goes on". The
    highest bit of a number is its sign. From the fourth on, a number is the difference to the run
    two before. Computed on whole arrays, as a data set may have a million masks.
    """
    if not text or not text.isascii():
        return None
    codes = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    if codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MOST_CHARACTERS:
        return None
    places = 5 * (np.arange(codes.size) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 31) << places, starts)
    runs -= (codes[ends] & 16 > 0).astype(np.int64) << (5 * lengths)
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs


def _all_finite(numbers: list) -> bool:
    # On whole lists: COCO has forty million coordinates. True is no number here.
    if not set(map(type, numbers)) <= {int, float}:
        return False
    try:
        return math.isfinite(sum(numbers)) and math.isfinite(max(numbers) - min(numbers))
    except OverflowError:  # an integer beyond all floats
        return False


def _is_far(coordinates: Sequence[float], size: tuple[int, int] | None) -> bool:
    if size is None:
        return False
    beyond = _BEYOND * max(size)
    return min(coordinates) < -beyond or max(coordinates) > max(size) + beyond


def odd_geometry(annotation: dict, size: tuple[int, int]) -> list[str]:
    """What is odd about the box and the mask of an object: keys of ``ODD_GEOMETRY``.

    Args:
        annotation: The object. Its box and its mask have no fault.
        size: Width and height in pixels of its image.
    """
    box, mask = list(map(float, annotation["bbox"])), annotation.get("segmentation")
    judged = min(size) > _FEW_PIXELS
    kinds = ["normalised box"] if judged and _is_normalised(box) else []
    if not mask:
        return kinds
    bounds = _bounds_of(mask, size)
    left, top, width, height = bounds
    corners = [left, top, left + width, top + height]
    if judged and isinstance(mask, list) and _is_normalised(corners):
        kinds.append("normalised polygon")
    if kinds:
        return kinds  # then box and mask do not fit, or do by chance
    x, y, right, bottom = box
    as_box, as_corners = mask_util.iou([box, [x, y, right - x, bottom - y]], [bounds], [0])[:, 0]
    # As a box, two corners of an object that fills most of its image are not far off.
    return ["another box"] if as_box < _LOWEST_IOU or as_corners > as_box + _CLEARLY else []


def _is_normalised(numbers: Sequence[float]) -> bool:
    # A hundredth is rounding.
    return min(numbers) >= -0.01 and max(numbers) <= 1.01


def _bounds_of(mask: dict | list, size: tuple[int, int]) -> list[float]:
    """The box x, y, width, height around a mask."""
    if isinstance(mask, dict):
        if isinstance(mask["counts"], list):
            mask = mask_util.frPyObjects(mask, size[1], size[0])
        return mask_util.toBbox(mask).tolist()
    xs = [x for polygon in mask for x in polygon[0::2]]
    ys = [y for polygon in mask for y in polygon[1::2]]
    return [float(min(xs)), float(min(ys)), float(max(xs) - min(xs)), float(max(ys) - min(ys))]
