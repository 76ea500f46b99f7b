"""Faults of single annotations of a COCO file."""

from collections.abc import Collection, Mapping

from snnet_vitdet.text import shown

from .coco_json import Id
from .geometry import area_fault, box_fault, mask_fault

__all__ = [
    "ANNOTATION_FAULTS",
    "NO_CROWDS",
    "SHAPE_FAULTS",
    "AnnotationChecker",
    "describe_annotation",
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
"""What annotations are said to have, and the remedy. Earlier kinds tend to cause later ones."""

_BOX_FAULTS = ("bbox", "flat", "outside", "far box")
_MASK_FAULTS = ("polygon", "far polygon", "rle size", "rle counts", "rle pixels")
SHAPE_FAULTS = frozenset(_BOX_FAULTS + _MASK_FAULTS)
"""Kinds of faults of boxes and masks that are there."""


class AnnotationChecker:
    """Finds faults of the annotations of a file, one annotation after the other.

    Attributes:
        sizes: Width and height in pixels of the images, by id.
    """

    def __init__(
        self,
        sizes: Mapping[Id, tuple[int, int]],
        incomplete: Collection[Id],
        categories: Collection[Id],
        for_evaluation: bool,
    ) -> None:
        """
        Args:
            sizes: See above.
            incomplete: Ids of images whose entries are faulty, which is no fault of annotations.
            categories: Ids of the categories.
            for_evaluation: Ask for ``area`` and ``iscrowd`` as well.
        """
        self.sizes = sizes
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
        size = self.sizes.get(image_id) if is_id else None
        if size is None and not (is_id and image_id in self._incomplete):
            found.append("image")
        found.append(self._category_fault(annotation.get("category_id")))
        if annotation.get("ignore") not in (None, 0):
            found.append("ignore")
        # Training does not need these two, but its summary reads an area that is there.
        default = None if self._for_evaluation else 0
        if annotation.get("iscrowd", default) not in (0, 1):
            found.append("iscrowd")
        found.append(area_fault(annotation.get("area", default), size))
        found.append(box_fault(annotation.get("bbox"), size))
        # Training leaves crowds out, but reads their masks.
        found.append(mask_fault(annotation.get("segmentation"), size))
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


def describe_annotation(annotation: dict, position: int, fault: str = "") -> str:
    """An annotation as a fault names it, with values as Python writes them: "1" is not 1.

    Args:
        annotation: The annotation.
        position: Its position in the file, for one without an id.
        fault: A key of ``ANNOTATION_FAULTS``, whose value is shown.
    """
    name = shown(annotation["id"]) if "id" in annotation else f"number {position}"
    text = f"annotation {name} of image {shown(annotation.get('image_id'))}"
    if fault.startswith("category"):
        return f"{text} has category {shown(annotation.get('category_id'))}"
    if fault in _BOX_FAULTS:
        return f"{text} has {shown(annotation.get('bbox'))}"
    if fault in ("area", "large area") and "area" in annotation:
        return f"{text} has {shown(annotation['area'])}"
    return text
