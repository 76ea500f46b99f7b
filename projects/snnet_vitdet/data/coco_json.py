"""COCO annotation files: read by path, with the habits of annotation tools translated."""

import ast
import contextlib
import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from snnet_vitdet.errors import InputError
from snnet_vitdet.files import read_json
from snnet_vitdet.text import shown

__all__ = [
    "Id",
    "category_names",
    "file_key",
    "has_masks",
    "id_order",
    "num_categories",
    "read_categories",
    "read_coco_json",
]

Id = int | str
"""An id of an image, an annotation or a category."""


@dataclass(frozen=True)
class _Outline:
    categories: dict[Id, str]
    has_masks: bool


# COCO's own training file takes about ten seconds to parse, and a start asks for its outline
# several times. The key changes with the file.
_outlines: dict[tuple[str, int, int], _Outline] = {}


def read_coco_json(json_file: str, masks: bool = True) -> dict:
    """Parses an annotation file and checks its outline.

    Habits of annotation tools are translated where the meaning is plain: ``coco_url`` in place of
    ``file_name`` (LVIS), and RLE counts as the text ``b'…'``.

    Args:
        json_file: Annotation file.
        masks: Keep the masks. Without them, nothing else reads or checks them.

    Returns:
        The file's content: ``images``, ``annotations`` and ``categories`` are lists of objects,
        and every category has an id of its own and a name.

    Raises:
        InputError: The file is missing, is not JSON, or is not in COCO's instance format.
    """
    key = path, *_ = file_key(json_file)
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
    annotations = data["annotations"]
    _outlines[key] = _Outline(
        _checked_categories(path, data["categories"]),
        not annotations
        or any(each.get("segmentation") and not each.get("iscrowd") for each in annotations),
    )
    if not masks:
        for annotation in annotations:
            annotation.pop("segmentation", None)
    _translate(data)
    return data


def read_categories(json_file: str) -> dict[Id, str]:
    """The names of the categories by id, in the order of the ids: numbers, then texts.

    Raises:
        InputError: See :func:`read_coco_json`.
    """
    return dict(_outline(json_file).categories)


def category_names(json_file: str) -> list[str]:
    """Names of the categories in contiguous order: sorted by id, as in detectron2."""
    return list(_outline(json_file).categories.values())


def num_categories(json_file: str) -> int:
    """Number of categories of an annotation file."""
    return len(_outline(json_file).categories)


def has_masks(json_file: str) -> bool:
    """Whether any object of an annotation file, crowds aside, has a mask.

    A file without annotations counts as one with masks.

    Raises:
        InputError: See :func:`read_coco_json`.
    """
    return _outline(json_file).has_masks


def id_order(entry_id: Id) -> tuple[bool, Id]:
    """The key to sort ids by: numbers come first, then texts."""
    return isinstance(entry_id, str), entry_id


def file_key(json_file: str) -> tuple[str, int, int]:
    """Absolute path, time and size of an annotation file, which tell whether it has changed.

    Raises:
        InputError: There is no such file.
    """
    path = os.path.abspath(json_file)
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


def _outline(json_file: str) -> _Outline:
    key = file_key(json_file)
    if key not in _outlines:
        read_coco_json(json_file)
    return _outlines[key]


def _checked_categories(path: str, entries: list[dict]) -> dict[Id, str]:
    if not entries:
        raise InputError(f'"categories" in {path} is empty: list at least one category.')
    categories: dict[Id, str] = {}
    by_text: dict[str, str] = {}
    for entry in entries:
        category_id, name = entry.get("id"), entry.get("name")
        if type(category_id) not in (int, str) or not isinstance(name, str):
            raise InputError(
                f"A category in {path} has the id {shown(category_id)} and the name {shown(name)}, "
                "but needs a whole number or a text as id, and a text as name."
            )
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise InputError(
                f"The name of category {category_id!r} in {path} has half of a surrogate pair "
                f"({name!r}), which is no character: correct it."
            )
        # 1 and "1" are different here, and the same to many other programs.
        if str(category_id) in by_text:
            raise InputError(
                f"Category id {category_id} in {path} stands for both "
                f"{shown(by_text[str(category_id)])} and {shown(name)}: give each category an "
                "id of its own."
            )
        by_text[str(category_id)] = categories[category_id] = name
    return dict(sorted(categories.items(), key=lambda item: id_order(item[0])))


def _translate(data: dict) -> None:
    """Rewrites the habits of annotation tools in COCO's own form."""
    for image in data["images"]:
        url = image.get("coco_url")
        if image.get("file_name") is None and isinstance(url, str):
            # LVIS has no other name. Its splits have images of both train2017 and val2017.
            with contextlib.suppress(ValueError):  # not an address: the image stays without a name
                image["file_name"] = "/".join(urlsplit(url).path.split("/")[-2:])
    for annotation in data["annotations"]:
        mask = annotation.get("segmentation")
        counts = mask.get("counts") if isinstance(mask, dict) else None
        if isinstance(counts, str) and counts[:2] in ("b'", 'b"'):
            # What str() makes of pycocotools's bytes.
            with contextlib.suppress(SyntaxError, ValueError, AttributeError):
                mask["counts"] = ast.literal_eval(counts).decode("ascii")
