"""Faults of the images that a COCO file lists, without opening one."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from snnet_vitdet.errors import InputError

from .summary import agree, some

__all__ = ["ImageEntries", "inspect_entries", "missing_files"]


def _is_side(value: object) -> bool:
    return isinstance(value, int) and value > 0


# What an entry needs, and what tells that it is right.
_FIELDS = {
    "id": lambda value: isinstance(value, (int, str)),
    "file_name": lambda value: isinstance(value, str),
    "width": _is_side,
    "height": _is_side,
}


@dataclass
class ImageEntries:
    """What the images of an annotation file are, by their entries.

    Attributes:
        faults: A sentence for each kind of fault.
        sizes: Width and height in pixels by image id, of all in order.
        incomplete: Ids, as far as they are known, of those that are not.
    """

    faults: list[str] = field(default_factory=list)
    sizes: dict[int | str, tuple[int, int]] = field(default_factory=dict)
    incomplete: set[int | str] = field(default_factory=set)


def inspect_entries(json_file: str, images: Sequence[dict]) -> ImageEntries:
    """Looks at every entry.

    Args:
        json_file: Name of the annotation file.
        images: Its images.
    """
    entries = ImageEntries()
    if not images:
        entries.faults.append(f"{json_file} lists no images: use an annotation file that does.")
    incomplete, duplicates = [], []
    faults, sizes = entries.faults, entries.sizes
    for position, image in enumerate(images):
        image_id = image.get("id")
        wrong = [key for key, is_right in _FIELDS.items() if not is_right(image.get(key))]
        if wrong:
            what = " and ".join(_describe(image, key) for key in wrong)
            incomplete.append(f"entry {position}, id {image_id!r}, has {what}")
            if isinstance(image_id, (int, str)):
                entries.incomplete.add(image_id)
        elif image_id in sizes:
            duplicates.append(image_id)
        else:
            sizes[image_id] = (image["width"], image["height"])
    if incomplete:
        faults.append(
            f"{len(incomplete)} of {len(images)} images in {json_file} "
            f"{agree('have an incomplete or wrong entry', len(incomplete))} "
            f"({some(incomplete, separator='; ')}): each needs an id, a file_name as text, and "
            "width and height in whole pixels above 0."
        )
    if duplicates:
        faults.append(
            f"{len(duplicates)} of {len(images)} images in {json_file} "
            f"{agree('have an id that another one has', len(duplicates))} "
            f"({some(duplicates)}): give each image an id of its own."
        )
    of_each_type = {isinstance(image_id, str): image_id for image_id in sizes}
    if len(of_each_type) > 1:
        examples = ", ".join(map(repr, of_each_type.values()))
        faults.append(
            f"Some images in {json_file} have a number as id and some a text ({examples}), which "
            "cannot be put in order: give all the same."
        )
    return entries


def _describe(image: dict, key: str) -> str:
    return f"{key} {image[key]!r}" if key in image else f"no {key}"


def missing_files(
    json_file: str, images: Sequence[dict], image_root: str
) -> tuple[list[str], set[str]]:
    """Looks for the files of the images.

    Args:
        json_file: Name of the annotation file.
        images: Its images.
        image_root: Folder of their files.

    Returns:
        A sentence for each kind of fault, and the names of the files that are not there.

    Raises:
        InputError: If there is no folder to look in.
    """
    if not os.path.isdir(image_root):
        raise InputError(
            f"The image folder {image_root} (for {json_file}) does not exist or is no folder: "
            "check the path."
        )
    # One listing a folder: a stat call an image takes minutes on network file systems.
    names_in_folder: dict[str, set[str]] = {}
    missing = []
    for image in images:
        if not isinstance(image.get("file_name"), str):
            continue  # which is a fault of its entry
        folder, name = os.path.split(os.path.join(image_root, image["file_name"]))
        if folder not in names_in_folder:
            names_in_folder[folder] = _list_folder(folder)
        if name not in names_in_folder[folder]:
            missing.append(image["file_name"])
    if not missing:
        return [], set()
    fault = (
        f"{len(missing)} of {len(images)} images that {json_file} names "
        f"{agree('are not in', len(missing))} {image_root} ({some(missing)}): "
        "correct the image folder, or add the files."
    )
    return [fault], set(missing)


def _list_folder(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last: no name a path can have
        return set()
    except OSError as error:
        raise InputError(
            f"The image folder {folder} cannot be listed ({error.strerror}): check the path."
        ) from error
