"""What annotation tools write in a way of their own, read as COCO's format has it."""

import ast
import contextlib
from urllib.parse import urlsplit

__all__ = ["read_dialects"]


def read_dialects(data: dict) -> None:
    """Changes images and annotations whose meaning is plain to what COCO would have there.

    Args:
        data: Content of an annotation file: ``images`` and ``annotations`` are lists of objects.
    """
    for image in data["images"]:
        url = image.get("coco_url")
        if image.get("file_name") is None and isinstance(url, str):
            # LVIS has no other name; images of its parts lie in train2017 as well as in val2017.
            # What is no address stays without a name.
            with contextlib.suppress(ValueError):
                image["file_name"] = "/".join(urlsplit(url).path.split("/")[-2:])
    for annotation in data["annotations"]:
        mask = annotation.get("segmentation")
        if isinstance(mask, dict) and isinstance(mask.get("counts"), str):
            mask["counts"] = _without_bytes_literal(mask["counts"])


def _without_bytes_literal(counts: str) -> str:
    """The counts within ``b'…'``, which is what ``str`` makes of pycocotools's bytes."""
    if counts[:2] not in ("b'", 'b"'):
        return counts
    try:
        return ast.literal_eval(counts).decode("ascii")
    except (SyntaxError, ValueError, AttributeError):
        return counts
