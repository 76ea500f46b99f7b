"""COCO-format data as detectron2 takes them: dataset dicts, and a name in its catalogues.

Ids of a file may be any distinct integers or texts. Scorers keep ids in arrays of 64 bits, and some
take 0 for "none", so ids are replaced by numbers from 1 on.
"""

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import (
    filter_images_with_only_crowd_annotations,
    print_instances_class_histogram,
)
from detectron2.structures import BoxMode
from pycocotools import mask as mask_util

from snnet_vitdet.errors import InputError
from snnet_vitdet.files import temporary_folder, write_atomically
from snnet_vitdet.text import neutral

from .annotations import NO_CROWDS
from .coco_json import Id, category_names, file_key, id_order, read_coco_json
from .images import ImageFolder

__all__ = ["Numbered", "coco_dicts", "dataset_name", "mask_truth", "numbered", "restore_copy"]


@dataclass(frozen=True)
class Numbered:
    """The content of an annotation file with numbers in place of ids.

    Attributes:
        content: ``images`` and ``annotations`` in the order of the file, ``categories`` in the
            order of their ids, with the keys that detectors use. Annotations are numbered from 1
            in their order, images and categories in the order of their ids, which decides between
            equal scores in COCO's evaluation.
        image_ids: Ids of the images in the file, in the order of the numbers.
        category_ids: Ids of the categories in the file, in the order of the numbers.
    """

    content: dict[str, list[dict]]
    image_ids: list[Id]
    category_ids: list[Id]


def numbered(json_file: str, data: Mapping[str, Sequence[dict]]) -> Numbered:
    """Numbers images, annotations and categories.

    Args:
        json_file: Name of the annotation file.
        data: Its content, see :func:`.read_coco_json`.

    Raises:
        InputError: Two images have one id, an entry is incomplete, or an object is marked
            "ignore".
    """
    try:
        categories = sorted(data["categories"], key=lambda category: id_order(category["id"]))
        category_numbers = {category["id"]: n for n, category in enumerate(categories, start=1)}
        image_ids = sorted((image["id"] for image in data["images"]), key=id_order)
        image_numbers = {image_id: number for number, image_id in enumerate(image_ids, start=1)}
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
                    **_object(annotation),
                }
                for number, annotation in enumerate(data["annotations"], start=1)
                # The checks refuse annotations of an image that is not listed.
                if annotation["image_id"] in image_numbers
            ],
            "categories": [
                {"id": category_numbers[category["id"]], "name": category["name"]}
                for category in categories
            ],
        }
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{json_file} has an incomplete or wrong entry ({type(error).__name__}: {error}): "
            "tools/check_dataset.py says which."
        ) from error
    if len(image_numbers) < len(image_ids):
        raise InputError(f"Images in {json_file} share an id: give each image an id of its own.")
    if any(annotation.get("ignore") for annotation in data["annotations"]):
        raise InputError(
            f'{json_file} has annotations that are marked "ignore", which COCO does not have: '
            "remove them or the mark."
        )
    return Numbered(content, image_ids, list(category_numbers))


def _object(annotation: dict) -> dict:
    kept = {"bbox": annotation["bbox"], "iscrowd": int(annotation.get("iscrowd") or 0)}
    if annotation.get("area") is not None:
        kept["area"] = annotation["area"]
    if mask := annotation.get("segmentation"):
        if isinstance(mask, dict):
            mask = {"size": [int(side) for side in mask["size"]], "counts": mask["counts"]}
        kept["segmentation"] = mask
    return kept


def coco_dicts(
    json_file: str, image_root: str, filter_empty: bool, masks: bool = True
) -> list[dict]:
    """Loads COCO-format instances as detectron2's dataset dicts.

    Args:
        json_file: Annotation file.
        image_root: Folder that the file names in ``json_file`` are relative to.
        filter_empty: Leave out images without an object that is not a crowd, as training needs.
        masks: Read masks, where there are any.

    Returns:
        One dict per image, in the order of the file. ``image_id`` counts from 1 and category ids
        from 0, both in the order of the file's ids. Annotations have boxes, masks, categories and
        crowds, and no other keys.

    Raises:
        InputError: The file cannot be used, or no image is left.
    """
    content = numbered(json_file, read_coco_json(json_file, masks)).content
    if not content["images"]:
        raise InputError(f"{json_file} lists no images: use an annotation file that does.")
    folder = ImageFolder(os.path.abspath(image_root))
    # What detectron2's load_coco_json makes of a file with the same content.
    by_number = {
        image["id"]: {
            "file_name": folder.path(image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": [],
        }
        for image in content["images"]
    }
    for annotation in content["annotations"]:
        record = {
            "iscrowd": annotation["iscrowd"],
            "bbox": annotation["bbox"],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": annotation["category_id"] - 1,
        }
        if mask := annotation.get("segmentation"):
            if isinstance(mask, dict) and isinstance(mask["counts"], list):
                mask = mask_util.frPyObjects(mask, *mask["size"])
            record["segmentation"] = mask
        by_number[annotation["image_id"]]["annotations"].append(record)
    dicts = list(by_number.values())
    if filter_empty:
        dicts = filter_images_with_only_crowd_annotations(dicts)
        if not dicts:
            raise InputError(
                f"{json_file} has no image with an annotated object that is not a crowd: training "
                f"needs at least one. {NO_CROWDS}."
            )
    print_instances_class_histogram(dicts, list(map(neutral, category_names(json_file))))
    return dicts


def dataset_name(json_file: str, image_root: str, masks: bool = True) -> str:
    """Registers data in detectron2's catalogues, unless they are there, and returns their name.

    The name depends on the arguments, as absolute paths, and on the time and size of the file. The
    metadata has all that ``COCOEvaluator`` and ``Visualizer`` need, before any data are loaded:
    ``json_file`` is a copy of the annotations for this process, with the numbers of
    :func:`coco_dicts` in place of ids; ``image_ids`` and ``category_ids`` are the ids of the file,
    in the order of the numbers. If masks are read and some objects have none, ``mask_dataset`` is
    the name of the same data as :func:`mask_truth` gives them.

    Raises:
        InputError: The file cannot be used, or the copy cannot be written.
    """
    source, image_root = file_key(json_file), os.path.abspath(image_root)
    key = "\0".join(map(str, (*source, image_root, *([] if masks else ["boxes"]))))
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()
    name = f"coco_json_{Path(json_file).stem}_{digest}"
    MetadataCatalog.get(name).set(source=source, image_root=image_root, masks=masks)
    restore_copy(name)
    if name not in DatasetCatalog:
        DatasetCatalog.register(
            name, lambda: coco_dicts(source[0], image_root, filter_empty=False, masks=masks)
        )
    return name


def restore_copy(name: str) -> None:
    """Writes the copy of the annotations again if it is gone: systems remove old temporary files.

    Args:
        name: A name that :func:`dataset_name` has given; other data are left alone.

    Raises:
        InputError: The annotations have changed since :func:`dataset_name` has seen them, or cannot
            be copied.
    """
    metadata = MetadataCatalog.get(name)
    source = metadata.get("source")
    if source is None:
        return
    names = [name, *filter(None, [metadata.get("mask_dataset")])]
    copies = [MetadataCatalog.get(each).get("json_file") for each in names]
    if all(copy and os.path.isfile(copy) for copy in copies):
        return
    if file_key(source[0]) != source:
        raise InputError(
            f"{source[0]} has changed since the start, and the copy of what it was, {copies[0]}, "
            "has been removed: start again, with --resume, and with TMPDIR set to a folder that "
            "nothing removes files from."
        )
    data = numbered(source[0], read_coco_json(source[0], metadata.masks))
    _write_copy(name, metadata.image_root, data, data.content)
    truth = mask_truth(data.content) if metadata.masks else data.content
    if truth is not data.content:
        metadata.set(mask_dataset=f"{name}_masks")
        _write_copy(f"{name}_masks", metadata.image_root, data, truth)


def _write_copy(name: str, image_root: str, data: Numbered, content: dict[str, list[dict]]) -> None:
    """Writes annotations to a temporary file, and the metadata of a name."""
    if not os.path.isdir(_folder_of_copies().name):
        _folder_of_copies.cache_clear()
    path = os.path.join(_folder_of_copies().name, f"{name}.json")
    try:
        # In ASCII, which libraries read in every locale.
        write_atomically(path, json.dumps(content).encode("ascii"))
    except InputError as error:
        raise InputError(f"{error}, by TMPDIR.") from error
    metadata = MetadataCatalog.get(name)
    if "json_file" in metadata.as_dict():
        del metadata.json_file  # detectron2 refuses to change a value
    classes = [category["name"] for category in content["categories"]]
    metadata.set(
        json_file=path,
        image_root=image_root,
        evaluator_type="coco",
        thing_classes=classes,
        thing_dataset_id_to_contiguous_id={index + 1: index for index in range(len(classes))},
        image_ids=data.image_ids,
        category_ids=data.category_ids,
    )


@functools.cache
def _folder_of_copies() -> tempfile.TemporaryDirectory:
    """Removed at the end of the process."""
    return temporary_folder("snnet_vitdet_")


def mask_truth(content: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """The annotations that mask AP counts, where some objects have a box alone.

    An object without a mask becomes a crowd that fills its box: nobody knows whether a mask that is
    found there is right, so it counts neither for nor against a detector.

    Args:
        content: ``images``, ``annotations`` and ``categories``, see :class:`Numbered`; not changed.

    Returns:
        The same object if every annotation has a mask.
    """
    if all("segmentation" in annotation for annotation in content["annotations"]):
        return content
    return {**content, "annotations": [*map(_with_mask, content["annotations"])]}


def _with_mask(annotation: dict) -> dict:
    if "segmentation" in annotation:
        return annotation
    x, y, width, height = annotation["bbox"]
    right, bottom = x + width, y + height
    polygon = [x, y, right, y, right, bottom, x, bottom]
    return {**annotation, "segmentation": [polygon], "iscrowd": 1}
