"""COCO-format data by path: read, registered with detectron2, ready for a LazyConfig."""

import functools
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import (
    filter_images_with_only_crowd_annotations,
    print_instances_class_histogram,
)
from detectron2.structures import BoxMode
from pycocotools import mask as mask_util

from snnet_vitdet.errors import InputError
from snnet_vitdet.files import read_json, temporary_folder, write_atomically
from snnet_vitdet.text import neutral, shown

from .annotations import NO_CROWDS
from .dialects import read_dialects
from .image_folder import ImageFolder
from .mask_truth import mask_truth
from .numbering import Id, Numbered, id_order, numbered

__all__ = [
    "category_names",
    "coco_dicts",
    "dataset_name",
    "has_masks",
    "num_categories",
    "read_categories",
    "read_coco_json",
    "restore_copy",
]

logger = logging.getLogger(__name__)

# COCO's own training file takes about ten seconds to parse, and one start asks for its categories
# several times: they are kept, keyed by what changes with the file.
_categories_of_file: dict[tuple[str, int, int], dict[Id, str]] = {}


def coco_dicts(
    json_file: str, image_root: str, filter_empty: bool, masks: bool = True
) -> list[dict]:
    """Loads COCO-format instances as detectron2's dataset dicts.

    Args:
        json_file: annotation file.
        image_root: folder that the file names in ``json_file`` are relative to.
        filter_empty: leave out images without an object that is not a crowd, as training wants.
        masks: read masks, where there are any.

    Returns:
        One dict an image, in the order of the file. Whatever ids the file has, ``image_id`` is from
        1 on and category ids are 0 … K-1, both in the order of the file's. Of annotations, dicts
        have boxes, masks, categories and crowds alone.

    Raises:
        InputError: the file cannot be used, or no image is left.
    """
    data = numbered(json_file, read_coco_json(json_file, masks)).content
    if not data["images"]:
        raise InputError(f"{json_file} lists no images: use an annotation file that does.")
    dicts = _dicts(data, ImageFolder(os.path.abspath(image_root)))
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
    """The name of these data in detectron2's catalogues, where it registers them if need be.

    It is a function of the arguments, as absolute paths, and of when the file was written. The
    metadata has all that ``COCOEvaluator`` and ``Visualizer`` need, whether or not the data have
    been loaded:
    ``json_file`` is a copy of the annotations for this process, with the numbers of
    :func:`coco_dicts` in place of ids, made anew if something has removed it; ``image_ids`` and
    ``category_ids`` are the file's own, by number less 1. If masks are read and some objects have
    none, ``mask_dataset`` is the name of the same data as :func:`.mask_truth` has them.

    Raises:
        InputError: the file cannot be used, or the copy cannot be written.
    """
    json_path, image_path = os.path.abspath(json_file), os.path.abspath(image_root)
    key = "\0".join(map(str, (*_file_key(json_path), image_path, *([] if masks else ["boxes"]))))
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()
    name = f"coco_json_{Path(json_path).stem}_{digest}"
    if name not in DatasetCatalog:
        data = numbered(json_path, read_coco_json(json_path, masks))
        contents = _contents(name, data, masks)
        for each, content in contents.items():
            _describe(each, data, content, image_path)
        DatasetCatalog.register(
            name, lambda: coco_dicts(json_path, image_path, filter_empty=False, masks=masks)
        )
        metadata = MetadataCatalog.get(name).set(source=_file_key(json_path), masks=masks)
        if len(contents) > 1:
            metadata.set(mask_dataset=f"{name}_masks")
    restore_copy(name)
    return name


def _contents(name: str, data: Numbered, masks: bool) -> dict[str, dict[str, list[dict]]]:
    """What copies are made of, by the names of data: once more where masks are scored apart."""
    contents = {name: data.content}
    truth = mask_truth(data.content) if masks else data.content
    return contents if truth is data.content else {**contents, f"{name}_masks": truth}


def _describe(name: str, data: Numbered, content: dict[str, list[dict]], image_root: str) -> None:
    """Sets the metadata of a name."""
    classes = [category["name"] for category in content["categories"]]
    MetadataCatalog.get(name).set(
        json_file=_write_copy(name, content),
        image_root=image_root,
        evaluator_type="coco",
        thing_classes=classes,
        thing_dataset_id_to_contiguous_id={index + 1: index for index in range(len(classes))},
        image_ids=data.image_ids,
        category_ids=data.category_ids,
    )


def restore_copy(name: str) -> None:
    """Makes the copy of the annotations anew if it is gone, as systems remove old temporary files.

    Args:
        name: Of data in detectron2's catalogues; nothing is done for those of others.

    Raises:
        InputError: the annotations have changed since :func:`dataset_name` has seen them, or cannot
            be copied.
    """
    metadata = MetadataCatalog.get(name)
    source = metadata.get("source")
    names = [name, *filter(None, [metadata.get("mask_dataset")])]
    if source is None or all(os.path.isfile(MetadataCatalog.get(n).json_file) for n in names):
        return
    json_path = source[0]
    if _file_key(json_path) != source:
        raise InputError(
            f"{json_path} has changed since the start, and the copy of what it was, "
            f"{metadata.json_file}, has been removed: start again, with --resume, and with TMPDIR "
            "set to a folder that nothing removes files from."
        )
    data = numbered(json_path, read_coco_json(json_path, metadata.masks))
    for each, content in _contents(name, data, metadata.masks).items():
        copied = MetadataCatalog.get(each)
        del copied.json_file
        copied.json_file = _write_copy(each, content)


def _write_copy(name: str, content: dict[str, list[dict]]) -> str:
    if not os.path.isdir(_folder_of_copies().name):
        _folder_of_copies.cache_clear()
    # In ASCII, which libraries read in every locale.
    path = os.path.join(_folder_of_copies().name, f"{name}.json")
    try:
        write_atomically(path, json.dumps(content).encode("ascii"))
    except InputError as error:
        raise InputError(f"{error}, by TMPDIR.") from error
    return path


@functools.cache
def _folder_of_copies() -> tempfile.TemporaryDirectory:
    """Removed at the end of the process."""
    return temporary_folder("snnet_vitdet_")


def _dicts(data: Mapping[str, list[dict]], folder: ImageFolder) -> list[dict]:
    """What detectron2's ``load_coco_json`` makes of a file with the same content."""
    dicts = {
        image["id"]: {
            "file_name": folder.path(image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": [],
        }
        for image in data["images"]
    }
    for annotation in data["annotations"]:
        record = {
            "iscrowd": annotation["iscrowd"],
            "bbox": annotation["bbox"],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": annotation["category_id"] - 1,
        }
        if "segmentation" in annotation:
            record["segmentation"] = _compressed(annotation["segmentation"])
        dicts[annotation["image_id"]]["annotations"].append(record)
    return list(dicts.values())


def _compressed(mask: dict | list) -> dict | list:
    if isinstance(mask, dict) and isinstance(mask["counts"], list):
        return mask_util.frPyObjects(mask, *mask["size"])
    return mask


def num_categories(json_file: str) -> int:
    """How many categories an annotation file has."""
    return len(read_categories(json_file))


def category_names(json_file: str) -> list[str]:
    """Names of the categories in contiguous order: sorted by id, as detectron2 does."""
    return list(read_categories(json_file).values())


def read_categories(json_file: str) -> dict[Id, str]:
    """The names of the categories by their id, in the order of the ids: numbers, then texts.

    Raises:
        InputError: see ``read_coco_json``.
    """
    path = os.path.abspath(json_file)
    key = _file_key(path)
    if key not in _categories_of_file:
        read_coco_json(path)
    return dict(_categories_of_file[key])


def has_masks(json_file: str) -> bool:
    """Whether any object of an annotation file, crowds aside, has a mask.

    A file without annotations does not tell, and is taken for one with masks.

    Raises:
        InputError: see ``read_coco_json``.
    """
    return _has_masks(_file_key(os.path.abspath(json_file)))


@functools.cache
def _has_masks(key: tuple[str, int, int]) -> bool:
    annotations = read_coco_json(key[0])["annotations"]
    return not annotations or any(
        annotation.get("segmentation") and not annotation.get("iscrowd")
        for annotation in annotations
    )


def read_coco_json(json_file: str, masks: bool = True) -> dict:
    """Parses an annotation file and checks its outline.

    Args:
        json_file: annotation file.
        masks: keep the masks; without them, nothing else reads or checks them.

    Returns:
        The file's content as :mod:`.dialects` reads it: ``images``, ``annotations`` and
        ``categories`` are lists of objects, and every category has an id of its own and a name.

    Raises:
        InputError: the file is missing, no JSON or not in COCO's instance format.
    """
    path = os.path.abspath(json_file)
    key = _file_key(path)
    try:
        data = read_json(path)
    except OSError as error:
        raise InputError(f"Cannot read the annotation file {path}: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(
            f"{path} is not valid JSON ({error}): it may be truncated, or not the annotation "
            "file; copy or export it again."
        ) from error
    if not isinstance(data, dict):
        raise InputError(
            f"{path} holds a JSON {type(data).__name__}, but COCO annotations are an object with "
            "images, annotations and categories."
        )
    for section in ("images", "annotations", "categories"):
        if section not in data:
            raise InputError(
                f'{path} has no "{section}": a COCO annotation file needs images, annotations and '
                "categories; export it in COCO's instance format."
            )
        entries = data[section]
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise InputError(f'"{section}" in {path} must be a list of objects.')
    _categories_of_file[key] = _checked_categories(path, data["categories"])
    if not masks:
        for annotation in data["annotations"]:
            annotation.pop("segmentation", None)
    read_dialects(data)
    return data


def _file_key(path: str) -> tuple[str, int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(
            f"The annotation file {path} cannot be opened ({error.strerror}): check the path."
        ) from error
    if not os.path.isfile(path):
        what = "a folder" if os.path.isdir(path) else "no regular file"
        raise InputError(f"{path} is {what}, but must be a COCO annotation file (JSON).")
    return path, status.st_mtime_ns, status.st_size


def _checked_categories(path: str, entries: list[dict]) -> dict[Id, str]:
    if not entries:
        raise InputError(f'"categories" in {path} is empty: list at least one category.')
    categories: dict[Id, str] = {}
    as_texts: dict[str, str] = {}
    for entry in entries:
        category_id, name = entry.get("id"), entry.get("name")
        if type(category_id) not in (int, str) or not isinstance(name, str):
            raise InputError(
                f"A category in {path} has the id {shown(category_id)} and the name {shown(name)}, "
                "but needs a whole number or a text as id, and a text as name."
            )
        if not _is_text(name):
            raise InputError(
                f"The name of category {category_id!r} in {path} has half of a surrogate pair "
                f"({name!r}), which is no character: correct it."
            )
        # 1 and "1" would be told apart here, and by few other programs.
        if str(category_id) in as_texts:
            raise InputError(
                f"Category id {category_id} in {path} stands for both "
                f"{shown(as_texts[str(category_id)])} and {shown(name)}: give each category an "
                "id of its own."
            )
        as_texts[str(category_id)] = categories[category_id] = name
    return dict(sorted(categories.items(), key=lambda item: id_order(item[0])))


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
