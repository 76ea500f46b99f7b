"""Boxes and masks that are no pixels of their image, or do not belong together."""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

from pycocotools import mask as mask_util

from .rle import covers
from .summary import EXAMPLES, agree, some

__all__ = ["GEOMETRY_NOTES", "geometry_faults", "geometry_of", "is_box"]

# Boxes drawn by hand are a few pixels off their masks. What is below is another layout or object.
_LOWEST_IOU = 0.5
_CLEARLY = 0.1  # more than a width that counts one pixel more
# What is all within 0 to 1 is no object of an image whose sides are longer.
_FEW_PIXELS = 4
# A whole file is written in one way: as many tell it, and COCO's would take half a minute.
_JUDGED = 10_000
# One alone may be odd by chance.
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
"""What is odd about a few annotations, by its kind."""

# The same of more than half of them.
_FAULTS = {
    "box": ("have a box of numbers from 0 to 1", _MULTIPLY),
    "polygon": ("have polygons of numbers from 0 to 1", _MULTIPLY),
    "off": (
        "have a box that is not around its mask",
        "are boxes written as [x1, y1, x2, y2]? Write them as [x, y, width, height]",
    ),
}


def geometry_of(annotation: Mapping[str, object], size: tuple[int, int]) -> Collection[str] | None:
    """What is odd about the box and the mask, if any, of an object.

    Args:
        annotation: The object.
        size: Width and height in pixels of its image.

    Returns:
        Keys of ``GEOMETRY_NOTES``; None if its box or its mask is faulty.
    """
    box, mask = annotation.get("bbox"), annotation.get("segmentation")
    if not is_box(box):
        return None
    judged = min(size) > _FEW_PIXELS
    kinds = []
    if judged and _is_normalised(box):
        kinds.append("box")
    if not mask:
        return kinds
    bounds = _bounds_of(mask, size)
    if bounds is None:
        return None
    x, y, width, height = map(float, box)
    if judged and isinstance(mask, list):
        left, top, across, down = bounds
        if _is_normalised((left, top, left + across, top + down)):
            kinds.append("polygon")
    if kinds:
        return kinds  # which do not fit each other, or do by chance
    given = _iou((x, y, width, height), bounds)
    corners = _iou((x, y, width - x, height - y), bounds) if width > x and height > y else 0.0
    # Two corners of an object that fills most of its image are not far off as a box.
    return ["off"] if given < _LOWEST_IOU or corners > given + _CLEARLY else []


def geometry_faults(
    json_file: str,
    annotations: Sequence[dict],
    sizes: Mapping[int | str, tuple[int, int]],
) -> dict[str, str]:
    """A sentence for each kind of what is odd about more than half of the objects.

    Args:
        json_file: Name of the annotation file.
        annotations: Its annotations, of which the first 10,000 are judged that can be.
        sizes: Width and height in pixels by image id.

    Returns:
        Sentences by keys of ``GEOMETRY_NOTES``.
    """
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = defaultdict(list)
    total = 0
    for annotation in annotations:
        image_id = annotation.get("image_id")
        size = sizes.get(image_id) if type(image_id) in (int, str) else None
        if size is None or annotation.get("iscrowd"):
            continue
        kinds = geometry_of(annotation, size)
        if kinds is None:
            continue
        total += 1
        for kind in kinds:
            counts[kind] += 1
            if len(examples[kind]) < EXAMPLES:
                place = f"annotation {annotation.get('id')!r} of image {image_id!r}"
                examples[kind].append(f"{place} has {_shown(annotation, kind)}")
        if total == _JUDGED:
            break
    looked = f"the first {total}" if total == _JUDGED else str(total)
    return {
        kind: (
            f"{counts[kind]} of {looked} annotations of objects in {json_file} "
            f"{agree(text, counts[kind])} ({some(examples[kind], counts[kind], '; ')}): {remedy}."
        )
        for kind, (text, remedy) in _FAULTS.items()
        if counts[kind] > total / 2 and total >= _FEWEST
    }


def _shown(annotation: Mapping[str, object], kind: str) -> str:
    numbers = annotation["segmentation"][0][:4] if kind == "polygon" else annotation["bbox"]
    return f"[{', '.join(f'{number:.4g}' for number in numbers)}{', …' * (kind == 'polygon')}]"


def is_box(box: object) -> bool:
    """Whether it is four finite numbers, and has an area."""
    if not isinstance(box, list) or len(box) != 4:
        return False
    try:
        # What is beyond all floats cannot become one.
        return (
            set(map(type, box)) <= {int, float}
            and math.isfinite(sum(map(float, box)))
            and min(box[2:]) > 0
        )
    except OverflowError:
        return False


def _is_normalised(numbers: Sequence[float]) -> bool:
    # A hundredth is rounding.
    return min(numbers) >= -0.01 and max(numbers) <= 1.01


def _bounds_of(mask: object, size: tuple[int, int]) -> tuple[float, ...] | None:
    """The box x, y, width, height around a mask; None for one that is faulty."""
    try:
        if isinstance(mask, dict):
            width, height = size
            if mask.get("size") != [height, width]:
                return None
            if not covers(mask.get("counts"), width * height):
                return None
            if isinstance(mask["counts"], list):
                mask = mask_util.frPyObjects(mask, height, width)
            return tuple(mask_util.toBbox(mask).tolist())
        xs = [x for polygon in mask for x in polygon[0::2]]
        ys = [y for polygon in mask for y in polygon[1::2]]
        if not math.isfinite(sum(xs) + sum(ys)):
            return None
        left, top, right, bottom = map(float, (min(xs), min(ys), max(xs), max(ys)))
        return left, top, right - left, bottom - top
    except (TypeError, ValueError, KeyError, OverflowError):
        return None


def _iou(box: Sequence[float], other: Sequence[float]) -> float:
    width = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
    height = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
    intersection = max(width, 0) * max(height, 0)
    union = box[2] * box[3] + other[2] * other[3] - intersection
    return intersection / union if union > 0 else 0.0
