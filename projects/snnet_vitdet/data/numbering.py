"""COCO data with numbers of our own in place of the ids of the file.

Scorers keep ids in arrays of 64 bits, and take some of them, such as 0, for "none". With numbers
from 1 on, what the ids of a file look like makes no difference to anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from snnet_vitdet.errors import InputError

__all__ = ["Numbered", "id_order", "numbered"]

Id = int | str


@dataclass(frozen=True)
class Numbered:
    """Annotations by number.

    Attributes:
        content: ``images`` and ``annotations`` in the order of the file, ``categories`` in that of
            their ids; with the keys that detectors use, and no others. Annotations are numbered
            from 1 in their order, images and categories in the order of their ids, which decides
            between equal scores in COCO's evaluation.
        image_ids: The ids in the file, by number less 1.
        category_ids: The same of the categories.
    """

    content: dict[str, list[dict]]
    image_ids: list[Id]
    category_ids: list[Id]


def id_order(entry_id: Id) -> tuple[bool, Id]:
    """What to sort ids by: numbers come first, then texts."""
    return isinstance(entry_id, str), entry_id


def numbered(json_file: str, data: Mapping[str, Sequence[dict]]) -> Numbered:
    """Numbers images, annotations and categories.

    Args:
        json_file: Name of the annotation file.
        data: Its content, as ``read_coco_json`` gives it.

    Raises:
        InputError: If two images have one id, something is left out, or an object is to be
            ignored.
    """
    try:
        return _numbered(json_file, data)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{json_file} has an incomplete or wrong entry ({type(error).__name__}: {error}): "
            "tools/check_dataset.py says which."
        ) from error


def _numbered(json_file: str, data: Mapping[str, Sequence[dict]]) -> Numbered:
    categories = sorted(data["categories"], key=lambda category: id_order(category["id"]))
    category_numbers = {category["id"]: n for n, category in enumerate(categories, start=1)}
    image_ids = sorted((image["id"] for image in data["images"]), key=id_order)
    image_numbers = {image_id: number for number, image_id in enumerate(image_ids, start=1)}
    if len(image_numbers) < len(data["images"]):
        raise InputError(f"Images in {json_file} share an id: give each image an id of its own.")
    content = {
        "images": [
            {"id": image_numbers[image["id"]]}
            | {key: image[key] for key in ("file_name", "width", "height")}
            for image in data["images"]
        ],
        "annotations": [
            {
                "id": number,
                "image_id": image_numbers[annotation["image_id"]],
                "category_id": category_numbers[annotation["category_id"]],
                **_object(json_file, annotation),
            }
            for number, annotation in enumerate(data["annotations"], start=1)
            # Of an image that is not listed, which the check would refuse.
            if annotation["image_id"] in image_numbers
        ],
        "categories": [
            {"id": number, "name": category["name"]}
            for number, category in enumerate(categories, start=1)
        ],
    }
    return Numbered(content, image_ids, [*category_numbers])


def _object(json_file: str, annotation: dict) -> dict:
    if annotation.get("ignore"):
        raise InputError(
            f'{json_file} has annotations that are marked "ignore", which COCO does not have: '
            "remove them or the mark."
        )
    kept = {"bbox": annotation["bbox"], "iscrowd": int(annotation.get("iscrowd") or 0)}
    if annotation.get("area") is not None:
        kept["area"] = annotation["area"]
    if mask := annotation.get("segmentation"):
        if isinstance(mask, dict):
            mask = {"size": [int(side) for side in mask["size"]], "counts": mask["counts"]}
        kept["segmentation"] = mask
    return kept
