"""What is handled in a data set and yet worth knowing before a training."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

from .checks import Inspection
from .geometry import GEOMETRY_NOTES, geometry_of, is_box
from .image_entries import inspect_entries
from .summary import agree, some

__all__ = ["annotation_notes", "most_objects", "shared_images"]

_MAX_DETECTIONS = 100  # of an image, in COCO's evaluation and in the detectors here


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
            f"{len(twice)} of {len(names)} file names in {source} "
            f"{agree('are listed more than once', len(twice))} ({some(twice)}): "
            "these images count as often."
        )
    without = [summary.categories[key] for key, count in summary.instances.items() if not count]
    if without:
        of_all = f"{len(without)} of {len(summary.categories)} categories"
        yield f"{of_all} {agree('have no object', len(without))} in {source} ({some(without)})."
    if not for_evaluation:
        crowd_only = len(_images_with_crowds(found.data) - _images_with_objects(found.data))
        if summary.empty_images:
            yield (
                f"Training leaves out {summary.empty_images} of {summary.images} images of "
                f"{source}, which have no object ({crowd_only} of them have crowds)."
            )
    name, count = most_objects(found.data)
    if for_evaluation and count > _MAX_DETECTIONS:
        yield (
            f"{name} of {source} has {count} objects: a detector gives at most {_MAX_DETECTIONS} "
            "an image, and COCO's evaluation counts no more, so that the others count as missed."
        )
    yield from _object_notes(found.data, source, image_size, found.geometry)


def most_objects(data: Mapping[str, Sequence[dict]]) -> tuple[str, int]:
    """Name of the image with the largest number of objects, crowds aside, and that number."""
    counts = Counter(
        annotation.get("image_id")
        for annotation in data["annotations"]
        if type(annotation.get("image_id")) in (int, str) and not annotation.get("iscrowd")
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
    data: Mapping[str, Sequence[dict]], source: str, image_size: int, faults: Collection[str]
) -> Iterator[str]:
    sizes = inspect_entries(source, data["images"]).sizes
    over, tiny, twice, seen = [], [], [], set()
    odd = {kind: [] for kind in GEOMETRY_NOTES}
    for annotation in data["annotations"]:
        box, image_id = annotation.get("bbox"), annotation.get("image_id")
        size = sizes.get(image_id) if type(image_id) in (int, str) else None
        if size is None or not is_box(box) or annotation.get("iscrowd"):
            continue
        x, y, width, height = box
        text = f"annotation {annotation.get('id')!r} of image {image_id!r}"
        # A hundredth of a pixel is rounding.
        if min(x, y) < -0.01 or x + width > size[0] + 0.01 or y + height > size[1] + 0.01:
            over.append(text)
        if min(width, height) * image_size / max(size) < 1:
            tiny.append(text)
        for kind in geometry_of(annotation, size) or ():
            odd[kind].append(text)
        key = image_id, str(annotation.get("category_id")), x, y, width, height
        if key in seen:
            twice.append(text)
        seen.add(key)
    kinds = [
        (over, "have a box that reaches over the border of the image: it is clipped there"),
        *((odd[kind], text) for kind, text in GEOMETRY_NOTES.items() if kind not in faults),
        (tiny, f"are thinner than a pixel once the image is resized to {image_size} pixels"),
        (twice, "have the same box and category as another one of the image"),
    ]
    total = len(data["annotations"])
    for found, text in kinds:
        if found:
            said = agree(text, len(found))
            yield f"{len(found)} of {total} annotations in {source} {said} ({some(found)})."
