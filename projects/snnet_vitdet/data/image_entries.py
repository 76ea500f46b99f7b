"""Faults of the images that a COCO file lists, without opening one."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from snnet_vitdet.errors import InputError
from snnet_vitdet.text import shown

from .image_folder import ImageFolder
from .summary import agree, some

__all__ = ["ImageEntries", "inspect_entries", "missing_files"]


_LONGEST_SIDE = 1_000_000


def _is_side(value: object) -> bool:
    # No image that can be read has longer ones; pycocotools counts pixels in 32 bits.
    return type(value) is int and 0 < value <= _LONGEST_SIDE


# What an entry needs, and what tells that it is right.
_FIELDS = {
    "id": lambda value: type(value) in (int, str),
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
    seen: set[str] = set()  # as texts: 1 and "1" are the same to many programs
    faults, sizes = entries.faults, entries.sizes
    for position, image in enumerate(images):
        image_id = image.get("id")
        wrong = [key for key, is_right in _FIELDS.items() if not is_right(image.get(key))]
        if wrong:
            what = " and ".join(_describe(image, key) for key in wrong)
            incomplete.append(f"entry {position}, id {shown(image_id)}, has {what}")
            if type(image_id) in (int, str):
                entries.incomplete.add(image_id)
        elif str(image_id) in seen:
            duplicates.append(repr(image_id))
        else:
            seen.add(str(image_id))
            sizes[image_id] = (image["width"], image["height"])
    if incomplete:
        faults.append(
            f"{len(incomplete)} of {len(images)} images in {json_file} "
            f"{agree('have an incomplete or wrong entry', len(incomplete))} "
            f"({some(incomplete, separator='; ')}): each needs an id, a file_name as text, and "
            "width and height in whole pixels from 1 to a million."
        )
    if duplicates:
        faults.append(
            f"{len(duplicates)} of {len(images)} images in {json_file} "
            f"{agree('have an id that another one has', len(duplicates))} "
            f"({some(duplicates)}): give each image an id of its own."
        )
    return entries


def _describe(image: dict, key: str) -> str:
    return f"{key} {shown(image[key])}" if key in image else f"no {key}"


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
    folder = ImageFolder(image_root)
    # What is no text is a fault of its entry.
    names = [image["file_name"] for image in images if isinstance(image.get("file_name"), str)]
    missing = [name for name in names if not folder.has(name)]
    if not missing:
        return [], set()
    faults = []
    for kind, names in _by_kind(missing):
        text, remedy = _MISSING[kind]
        faults.append(
            f"{len(names)} of {len(images)} images that {json_file} names "
            f"{agree(text.format(root=image_root), len(names))} ({some(names)}): {remedy}."
        )
    return faults, set(missing)


# What names of files that are not there look like.
_MISSING = {
    "address": (
        "have a web address as file_name",
        "download the images, and write their names below the image folder",
    ),
    "drive": (
        "have a path of a drive of Windows as file_name",
        "write their names below the image folder",
    ),
    "other": ("are not in {root}", "correct the image folder, or add the files"),
}


def _by_kind(names: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    of_kind = {kind: [] for kind in _MISSING}
    for name in names:
        address, drive = re.match("[A-Za-z][A-Za-z0-9+.-]+://", name), re.match(r"[A-Za-z]:", name)
        of_kind["address" if address else "drive" if drive else "other"].append(name)
    return ((kind, found) for kind, found in of_kind.items() if found)
