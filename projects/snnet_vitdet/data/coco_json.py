"""COCO-format data by path: read, registered with detectron2, ready for a LazyConfig."""

import hashlib
import json
import logging
import os
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import (
    filter_images_with_only_crowd_annotations,
    print_instances_class_histogram,
)
from detectron2.data.datasets import register_coco_instances

from snnet_vitdet.errors import InputError
from snnet_vitdet.text import neutral

__all__ = [
    "category_names",
    "coco_dicts",
    "dataset_name",
    "num_categories",
    "read_categories",
    "read_coco_json",
]

logger = logging.getLogger(__name__)

# COCO's own training file takes about ten seconds to parse, and one start asks for its categories
# several times: they are kept, keyed by what changes with the file.
_categories_of_file: dict[tuple[str, int, int], dict[int, str]] = {}


def coco_dicts(json_file: str, image_root: str, filter_empty: bool) -> list[dict]:
    """Loads COCO-format instances as detectron2's dataset dicts.

    Args:
        json_file: annotation file.
        image_root: folder that the file names in ``json_file`` are relative to.
        filter_empty: leave out images without an object that is not a crowd, as training wants.

    Returns:
        One dict an image, ordered by image id, category ids mapped to 0 … K-1.

    Raises:
        InputError: the file cannot be used, or no image is left.
    """
    name = dataset_name(json_file, image_root)
    dicts = DatasetCatalog.get(name)
    if not dicts:
        raise InputError(f"{json_file} lists no images: use an annotation file that does.")
    if filter_empty:
        dicts = filter_images_with_only_crowd_annotations(dicts)
        if not dicts:
            raise InputError(
                f"{json_file} has no image with an annotated object: training needs at least one."
            )
    print_instances_class_histogram(dicts, list(map(neutral, category_names(json_file))))
    return dicts


def dataset_name(json_file: str, image_root: str) -> str:
    """The name of these data in detectron2's catalogues, where it registers them if need be.

    It is a function of the two absolute paths. The metadata has all that ``COCOEvaluator`` and
    ``Visualizer`` need, whether or not the data have been loaded.
    """
    json_path, image_path = os.path.abspath(json_file), os.path.abspath(image_root)
    digest = hashlib.blake2b(f"{json_path}\0{image_path}".encode(), digest_size=6).hexdigest()
    # detectron2 warns about category ids with gaps unless the name has "coco" in it.
    name = f"coco_json_{Path(json_path).stem}_{digest}"
    if name not in DatasetCatalog:
        categories = read_categories(json_path)
        register_coco_instances(name, {}, json_path, image_path)
        MetadataCatalog.get(name).set(
            thing_classes=list(categories.values()),
            thing_dataset_id_to_contiguous_id={
                category_id: index for index, category_id in enumerate(categories)
            },
        )
    return name


def num_categories(json_file: str) -> int:
    """How many categories an annotation file has."""
    return len(read_categories(json_file))


def category_names(json_file: str) -> list[str]:
    """Names of the categories in contiguous order: sorted by id, as detectron2 does."""
    return list(read_categories(json_file).values())


def read_categories(json_file: str) -> dict[int, str]:
    """The names of the categories by their id, in the order of the ids.

    Raises:
        InputError: see ``read_coco_json``.
    """
    path = os.path.abspath(json_file)
    key = _file_key(path)
    if key not in _categories_of_file:
        read_coco_json(path)
    return dict(_categories_of_file[key])


def read_coco_json(json_file: str) -> dict:
    """Parses an annotation file and checks its outline.

    Returns:
        The file's content: ``images``, ``annotations`` and ``categories`` are lists of objects,
        and every category has an id of its own and a name.

    Raises:
        InputError: the file is missing, no JSON or not in COCO's instance format.
    """
    path = os.path.abspath(json_file)
    key = _file_key(path)
    try:
        # In text mode as pycocotools reads it, so that what passes here passes there.
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except OSError as error:
        raise InputError(f"Cannot read the annotation file {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
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
    return data


def _file_key(path: str) -> tuple[str, int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(
            f"The annotation file {path} cannot be opened ({error.strerror}): check the path."
        ) from error
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder, but must be a COCO annotation file (JSON).")
    return path, status.st_mtime_ns, status.st_size


def _checked_categories(path: str, entries: list[dict]) -> dict[int, str]:
    if not entries:
        raise InputError(f'"categories" in {path} is empty: list at least one category.')
    categories: dict[int, str] = {}
    for entry in entries:
        category_id, name = entry.get("id"), entry.get("name")
        if type(category_id) is not int or not isinstance(name, str):
            raise InputError(
                f"A category in {path} is {entry}, but must have a whole number as id and a name."
            )
        if category_id in categories:
            raise InputError(
                f"Category id {category_id} in {path} stands for both {categories[category_id]!r} "
                f"and {name!r}: give each category an id of its own."
            )
        categories[category_id] = name
    return dict(sorted(categories.items()))
