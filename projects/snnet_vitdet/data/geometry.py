"""Boxes, polygons and RLE masks: their faults, and whether they fit each other."""

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from pycocotools import mask as mask_util

from .sentences import about

__all__ = [
    "ODD_GEOMETRY",
    "area_fault",
    "box_fault",
    "geometry_faults",
    "geometry_of",
    "mask_fault",
    "rle_pixels",
]

_MULTIPLY = "they look normalised: multiply by width and height of the image"
ODD_GEOMETRY = {
    "box": ("have a box of numbers from 0 to 1", _MULTIPLY),
    "polygon": ("have polygons of numbers from 0 to 1", _MULTIPLY),
    "off": (
        "have a box that is not around its mask",
        "training takes boxes from the masks and leaves out empty masks, evaluation takes the "
        "boxes as they are; are boxes written as [x1, y1, x2, y2]? Write them as [x, y, width, "
        "height]",
    ),
}
"""What is odd about boxes and masks without a fault: a note if few, a fault if most have it."""

# How many times the longer side of an image a box or a polygon may go beyond it. Objects that the
# border cuts are often annotated as a whole, but pycocotools follows outlines pixel by pixel, and
# ends in a segmentation fault for huge numbers.
_BEYOND = 10
# Of a compressed number, 35 bits: no image has as many pixels, and no sum reaches 64 bits.
_MOST_CHARACTERS = 7
# Boxes drawn by hand are a few pixels off their masks. Less overlap means another layout or object.
_LOWEST_IOU = 0.5
_CLEARLY = 0.1  # more than a width that counts one pixel more
# In an image of longer sides, what lies within 0 to 1 is no object.
_FEW_PIXELS = 4
# A file is written in one way, so its first objects tell; all of COCO's would take half a minute.
_JUDGED = 10_000
# A single one may be odd by chance.
_FEWEST = 2


def area_fault(area: object, size: tuple[int, int] | None) -> str | None:
    """What is wrong with an area, as a key of :data:`.ANNOTATION_FAULTS`; None if nothing is.

    Args:
        area: Value of the annotation file.
        size: Width and height in pixels of the image, if it is known.
    """
    if not _all_finite([area]) or area < 0:
        return "area"
    if size is not None and area > ((2 * _BEYOND + 1) * max(size)) ** 2:
        return "large area"
    return None


def box_fault(box: object, size: tuple[int, int] | None) -> str | None:
    """What is wrong with a box, see :func:`area_fault`."""
    if not isinstance(box, list) or len(box) != 4 or not _all_finite(box):
        return "bbox"
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return "flat"
    if size is not None and (x >= size[0] or y >= size[1] or x + width <= 0 or y + height <= 0):
        return "outside"
    return "far box" if _is_far((x, y, x + width, y + height), size) else None


def mask_fault(mask: object, size: tuple[int, int] | None) -> str | None:
    """What is wrong with a mask, if there is one, see :func:`area_fault`."""
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
    """The runs of COCO's compressed text, (runs,); None if it is none.

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


def geometry_of(annotation: dict, size: tuple[int, int]) -> list[str]:
    """What is odd about the box and the mask, if any, of an object: keys of ``ODD_GEOMETRY``.

    Args:
        annotation: The object. Its box and its mask have no fault.
        size: Width and height in pixels of its image.
    """
    box, mask = list(map(float, annotation["bbox"])), annotation.get("segmentation")
    judged = min(size) > _FEW_PIXELS
    kinds = ["box"] if judged and _is_normalised(box) else []
    if not mask:
        return kinds
    bounds = _bounds_of(mask, size)
    left, top, width, height = bounds
    corners = [left, top, left + width, top + height]
    if judged and isinstance(mask, list) and _is_normalised(corners):
        kinds.append("polygon")
    if kinds:
        return kinds  # then box and mask do not fit, or do by chance
    x, y, right, bottom = box
    as_box, as_corners = mask_util.iou([box, [x, y, right - x, bottom - y]], [bounds], [0])[:, 0]
    # As a box, two corners of an object that fills most of its image are not far off.
    return ["off"] if as_box < _LOWEST_IOU or as_corners > as_box + _CLEARLY else []


def geometry_faults(
    json_file: str, objects: Sequence[tuple[dict, tuple[int, int]]]
) -> dict[str, str]:
    """Sentences about what is odd about more than half of the objects.

    Args:
        json_file: Name of the annotation file.
        objects: Annotations and sizes of their images, as for :func:`geometry_of`. The first
            10,000 are judged.

    Returns:
        A sentence by key of ``ODD_GEOMETRY``.
    """
    odd: dict[str, list[str]] = defaultdict(list)
    judged = objects[:_JUDGED]
    for annotation, size in judged:
        for kind in geometry_of(annotation, size):
            odd[kind].append(_describe_geometry(annotation, kind))
    total = f"the first {_JUDGED}" if len(judged) == _JUDGED else len(judged)
    things = f"annotations of objects in {json_file}"
    return {
        kind: about(odd[kind], total, things, text, remedy, separator="; ")
        for kind, (text, remedy) in ODD_GEOMETRY.items()
        if len(odd[kind]) > len(judged) / 2 and len(judged) >= _FEWEST
    }


def _describe_geometry(annotation: dict, kind: str) -> str:
    name = f"annotation {annotation.get('id')!r} of image {annotation['image_id']!r}"
    if kind == "polygon":
        numbers, rest = annotation["segmentation"][0][:4], ", …"
    else:
        numbers, rest = annotation["bbox"], ""
    return f"{name} has [{', '.join(f'{number:.4g}' for number in numbers)}{rest}]"


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
