"""Plain values that tell whether a data set has changed."""

import hashlib
import os
import time
from collections.abc import Iterator, Mapping

from snnet_vitdet.errors import InputError

from .coco_json import read_coco_json
from .images import ImageFolder

__all__ = ["difference", "image_facts", "leaves", "sha256_of"]

_NOT_SET = "not set"
_SHOWN = 3
_BLOCK = 1 << 20


def sha256_of(path: str) -> str:
    """The sha256 of a file's content, in hexadecimal.

    Raises:
        InputError: It cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def image_facts(json_file: str, image_root: str, most: int | None = None) -> dict[str, str]:
    """Sizes and times of image files by name, as reading all files takes long.

    Args:
        json_file: The annotation file that names them.
        image_root: The folder of the images.
        most: Number of files to look at, evenly spread over all; None for all of them.

    Raises:
        InputError: The annotation file cannot be read.
    """
    folder, facts = ImageFolder(image_root), {}
    names = [image["file_name"] for image in read_coco_json(json_file)["images"]]
    for name in names if most is None else names[:: -(-len(names) // most) or 1]:
        try:
            stat = os.stat(folder.path(name))
        except (OSError, ValueError):
            continue  # the loader will name it
        written = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(stat.st_mtime))
        facts[name] = f"{stat.st_size} bytes of {written}"
    return facts


def difference(before: Mapping[str, object], now: Mapping[str, object]) -> str:
    """The first differences between two descriptions, in words; empty if there are none.

    The path of a file is ignored where both have its digest, ``…_sha256``.
    """
    before, now = dict(leaves("", before)), dict(leaves("", now))
    keys = [
        key
        for key in {**before, **now}
        if before.get(key) != now.get(key)
        and not (f"{key}_sha256" in before and f"{key}_sha256" in now)
    ]
    shown = ", ".join(
        f"{key}: {before.get(key, _NOT_SET)} then, {now.get(key, _NOT_SET)} now"
        for key in keys[:_SHOWN]
    )
    return shown + (f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")


def leaves(path: str, node: object) -> Iterator[tuple[str, object]]:
    """Dotted names and values of the leaves of nested mappings, below a path."""
    if not isinstance(node, Mapping):
        yield path, node
        return
    for key, value in node.items():
        yield from leaves(f"{path}.{key}" if path else str(key), value)
