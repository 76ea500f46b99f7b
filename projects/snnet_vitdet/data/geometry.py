"""Boxes and masks that do not fit each other or their image, though each is sound by itself."""

from collections import defaultdict
from collections.abc import Sequence

from pycocotools import mask as mask_util

from .sentences import about

__all__ = ["GEOMETRY_NOTES", "geometry_faults", "geometry_of"]

# Boxes drawn by hand are a few pixels off their masks. Less overlap means another layout or object.
_LOWEST_IOU = 0.5
_CLEARLY = 0.1  # more than a width that counts one pixel more
# In an image of longer sides, what lies within 0 to 1 is no object.
_FEW_PIXELS = 4
# A file is written in one way, so its first objects tell; all of COCO's would take half a minute.
_JUDGED = 10_000
# A single one may be odd by chance.
_FEWEST = 2

_MULTIPLY = "they look normalised: multiply by width and height of the image"
GEOMETRY_NOTES = {
    "box": f"have a box of numbers from 0 to 1; {_MULTIPLY}",
    "polygon": f"have polygons of numbers from 0 to 1; {_MULTIPLY}",
    "off": (
        "have a box that is not around its mask: training takes its boxes from the masks and "
        "leaves out empty ones, evaluation takes those that are given; are boxes written as "
        "[x1, y1, x2, y2]?"
    ),
}
"""What is odd about some objects, by kind."""

# The same kinds, of more than half of the objects.
_FAULTS = {
    "box": ("have a box of numbers from 0 to 1", _MULTIPLY),
    "polygon": ("have polygons of numbers from 0 to 1", _MULTIPLY),
    "off": (
        "have a box that is not around its mask",
        "are boxes written as [x1, y1, x2, y2]? Write them as [x, y, width, height]",
    ),
}


def geometry_of(annotation: dict, size: tuple[int, int]) -> list[str]:
    """What is odd about the box and the mask, if any, of an object: keys of ``GEOMETRY_NOTES``.

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
    corners = (left, top, left + width, top + height)
    if judged and isinstance(mask, list) and _is_normalised(corners):
        kinds.append("polygon")
    if kinds:
        return kinds  # then box and mask do not fit, or do by chance
    x, y, width, height = box
    as_box = _iou(box, bounds)
    as_corners = _iou((x, y, width - x, height - y), bounds) if width > x and height > y else 0.0
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
        A sentence by key of ``GEOMETRY_NOTES``.
    """
    odd: dict[str, list[str]] = defaultdict(list)
    judged = objects[:_JUDGED]
    for annotation, size in judged:
        for kind in geometry_of(annotation, size):
            odd[kind].append(_describe(annotation, kind))
    total = f"the first {_JUDGED}" if len(judged) == _JUDGED else len(judged)
    things = f"annotations of objects in {json_file}"
    return {
        kind: about(odd[kind], total, things, text, remedy, separator="; ")
        for kind, (text, remedy) in _FAULTS.items()
        if len(odd[kind]) > len(judged) / 2 and len(judged) >= _FEWEST
    }


def _describe(annotation: dict, kind: str) -> str:
    name = f"annotation {annotation.get('id')!r} of image {annotation['image_id']!r}"
    if kind == "polygon":
        numbers, rest = annotation["segmentation"][0][:4], ", …"
    else:
        numbers, rest = annotation["bbox"], ""
    return f"{name} has [{', '.join(f'{number:.4g}' for number in numbers)}{rest}]"


def _is_normalised(numbers: Sequence[float]) -> bool:
    # A hundredth is rounding.
    return min(numbers) >= -0.01 and max(numbers) <= 1.01


def _bounds_of(mask: dict | list, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The box x, y, width, height around a mask."""
    if isinstance(mask, dict):
        if isinstance(mask["counts"], list):
            mask = mask_util.frPyObjects(mask, size[1], size[0])
        return tuple(mask_util.toBbox(mask).tolist())
    xs = [x for polygon in mask for x in polygon[0::2]]
    ys = [y for polygon in mask for y in polygon[1::2]]
    left, top = float(min(xs)), float(min(ys))
    return left, top, max(xs) - left, max(ys) - top


def _iou(box: Sequence[float], other: Sequence[float]) -> float:
    width = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
    height = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
    intersection = max(width, 0) * max(height, 0)
    union = box[2] * box[3] + other[2] * other[3] - intersection
    return intersection / union if union > 0 else 0.0
