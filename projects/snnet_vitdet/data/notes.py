"""What is handled in a data set and yet worth to be known before a training."""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from pycocotools import mask as mask_util

from .checks import Inspection
from .rle import covers
from .summary import some

__all__ = ["annotation_notes", "most_objects", "shared_images"]

_MAX_DETECTIONS = 100  # of an image, in COCO's evaluation and in the detectors here
# Boxes drawn by hand are a few pixels off their masks. What is below is another layout or object.
_LOWEST_IOU = 0.5


def annotation_notes(found: Inspection, image_size: int, *, for_evaluation: bool) -> Iterator[str]:
    """A sentence for each kind of what is odd about images and objects of an annotation file.

    Args:
        found: The file, which could be read.
        image_size: Side in pixels of what the images are resized to.
        for_evaluation: Whether it is for evaluation.
    """
    summary, source = found.summary, found.summary.json_file
    yield from found.warnings
    names = Counter(str(image.get("file_name")) for image in found.data["images"])
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        yield (
            f"{len(twice)} of {len(names)} file names in {source} are listed more than once "
            f"({some(twice)}): these images count as often."
        )
    without = [summary.categories[key] for key, count in summary.instances.items() if not count]
    if without:
        of_all = f"{len(without)} of {len(summary.categories)} categories"
        yield f"{of_all} have no object in {source} ({some(without)})."
    if not for_evaluation:
        crowd_only = len(_images_with_crowds(found.data) - _images_with_objects(found.data))
        if summary.empty_images:
            yield (
                f"Training leaves out {summary.empty_images} of {summary.images} images of "
                f"{source}, which have no object ({crowd_only} of them have crowds)."
            )
        if summary.crowds:
            yield f"Training leaves out the crowds of {source}, {summary.crowds} in number."
    name, count = most_objects(found.data)
    if for_evaluation and count > _MAX_DETECTIONS:
        yield (
            f"{name} of {source} has {count} objects: a detector gives at most {_MAX_DETECTIONS} "
            "an image, and COCO's evaluation counts no more, so that the others count as missed."
        )
    yield from _object_notes(found.data, source, image_size)


def most_objects(data: Mapping[str, Sequence[dict]]) -> tuple[str, int]:
    """Name of the image with the largest number of objects, crowds aside, and that number."""
    counts = Counter(
        annotation.get("image_id")
        for annotation in data["annotations"]
        if isinstance(annotation.get("image_id"), (int, str)) and not annotation.get("iscrowd")
    )
    if not counts:
        return "", 0
    image_id, count = counts.most_common(1)[0]
    names = (i.get("file_name") for i in data["images"] if i.get("id") == image_id)
    return str(next(names, image_id)), count


def shared_images(
    train: Collection[str],
    test: Collection[str],
    train_digests: Mapping[str, str],
    test_digests: Mapping[str, str],
) -> Iterator[str]:
    """Says which images are in both training and test, by their files or by what is in them.

    Args:
        train: Real paths of the training images.
        test: Real paths of the test images.
        train_digests: Path by digest of the content, of the training images.
        test_digests: The same of the test images.
    """
    same = sorted(set(train) & set(test))
    if same:
        yield (
            f"{len(same)} of {len(test)} test images are training images as well ({some(same)}): "
            "scores on them are not those on new images."
        )
    copies = [
        f"{train_digests[digest]} and {test_digests[digest]}"
        for digest in train_digests.keys() & test_digests.keys()
        if train_digests[digest] != test_digests[digest]
    ]
    if copies and not same:
        yield (
            f"{len(copies)} of {len(test)} test images are copies of training images "
            f"({some(sorted(copies))}): scores on them are not those on new images."
        )


def _images_with_objects(data: Mapping[str, Sequence[dict]]) -> set[str]:
    return {str(a.get("image_id")) for a in data["annotations"] if not a.get("iscrowd")}


def _images_with_crowds(data: Mapping[str, Sequence[dict]]) -> set[str]:
    return {str(a.get("image_id")) for a in data["annotations"] if a.get("iscrowd")}


def _object_notes(
    data: Mapping[str, Sequence[dict]], source: str, image_size: int
) -> Iterator[str]:
    sizes = {
        image["id"]: (image["width"], image["height"])
        for image in data["images"]
        if isinstance(image.get("id"), (int, str))
        and all(isinstance(image.get(key), int) for key in ("width", "height"))
    }
    over, tiny, off, twice, seen = [], [], [], [], set()
    for annotation in data["annotations"]:
        box, image_id = annotation.get("bbox"), annotation.get("image_id")
        size = sizes.get(image_id) if isinstance(image_id, (int, str)) else None
        if size is None or not _is_box(box) or annotation.get("iscrowd"):
            continue
        x, y, width, height = box
        text = f"annotation {annotation.get('id')} of image {image_id}"
        # A hundredth of a pixel is rounding.
        if min(x, y) < -0.01 or x + width > size[0] + 0.01 or y + height > size[1] + 0.01:
            over.append(text)
        if min(width, height) * image_size / max(size) < 1:
            tiny.append(text)
        bounds = _bounds_of(annotation.get("segmentation"), size)
        if bounds is not None and _iou(box, bounds) < _LOWEST_IOU:
            off.append(text)
        key = image_id, str(annotation.get("category_id")), x, y, width, height
        if key in seen:
            twice.append(text)
        seen.add(key)
    kinds = [
        (over, "have a box that reaches over the border of their image: it is clipped there"),
        (
            off,
            "have a box that is not around their mask: training takes its boxes from the masks "
            "and leaves out empty ones, evaluation takes those that are given; are boxes written "
            "as [x1, y1, x2, y2]?",
        ),
        (tiny, f"are thinner than a pixel once their image is resized to {image_size} pixels"),
        (twice, "have the same box and category as another one of their image"),
    ]
    total = len(data["annotations"])
    for found, text in kinds:
        if found:
            yield f"{len(found)} of {total} annotations in {source} {text} ({some(found)})."


def _is_box(box: object) -> bool:
    if not isinstance(box, list) or len(box) != 4:
        return False
    try:
        return math.isfinite(sum(box)) and min(box[2:]) > 0
    except TypeError:
        return False


def _bounds_of(mask: object, size: tuple[int, int]) -> Sequence[float] | None:
    """The box [x, y, width, height] around a mask; None for one that is faulty."""
    if isinstance(mask, dict):
        width, height = size
        if mask.get("size") != [height, width] or not covers(mask.get("counts"), width * height):
            return None
        if isinstance(mask["counts"], list):
            mask = mask_util.frPyObjects(mask, height, width)
        return mask_util.toBbox(mask).tolist()
    try:
        xs = [x for polygon in mask for x in polygon[0::2]]
        ys = [y for polygon in mask for y in polygon[1::2]]
        x, y = min(xs), min(ys)
        return x, y, max(xs) - x, max(ys) - y
    except (TypeError, ValueError):
        return None


def _iou(box: Sequence[float], other: Sequence[float]) -> float:
    width = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
    height = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
    intersection = max(width, 0) * max(height, 0)
    union = box[2] * box[3] + other[2] * other[3] - intersection
    return intersection / union if union > 0 else 0.0
