"""What a data set consists of, and how lists of examples are written."""

from dataclasses import dataclass

from snnet_vitdet.text import neutral

__all__ = ["EXAMPLES", "DatasetSummary", "agree", "some"]

EXAMPLES = 3
"""How many of a list are shown."""

_OF_ONE = {
    "are": "is",
    "cannot": "cannot",
    "have": "has",
    "name": "names",
}


@dataclass(frozen=True)
class DatasetSummary:
    """What a checked data set consists of.

    Attributes:
        json_file: its annotation file.
        images: number of images.
        empty_images: number of images without an object (crowds aside).
        annotations: number of objects and crowds.
        crowds: how many of the annotations are crowds.
        masks: how many objects have a mask.
        rle_masks: how many objects have an RLE mask; with any, a mapper needs the mask format
            "bitmask".
        flat_boxes: how many objects have a box without area; training leaves these out.
        categories: name by id, in the order of the ids.
        instances: number of objects by category id.
        sizes: number of objects by COCO's size ranges small, medium and large (below 32² and 96²
            square pixels of mask area, or of box area where the file does not say).
    """

    json_file: str
    images: int
    empty_images: int
    annotations: int
    crowds: int
    masks: int
    rle_masks: int
    flat_boxes: int
    categories: dict[int | str, str]
    instances: dict[int | str, int]
    sizes: dict[str, int]

    def __str__(self) -> str:
        sizes = ", ".join(f"{count} {name}" for name, count in self.sizes.items())
        return (
            f"{self.json_file}: {self.images} images ({self.empty_images} empty), "
            f"{sum(self.instances.values())} objects ({sizes}) of {len(self.categories)} "
            f"categories, {self.crowds} crowds"
        )


def some(items: list, total: int | None = None, separator: str = ", ") -> str:
    """The first of some items, and how many there are besides.

    Args:
        items: the items, or the first of them.
        total: how many there are, if not all are given.
        separator: what stands between them.
    """
    total = len(items) if total is None else total
    first = [text if len(text) <= 300 else f"{text[:300]}…" for text in map(str, items[:EXAMPLES])]
    shown = separator.join(map(neutral, first))
    return shown if total <= EXAMPLES else f"{shown} and {total - EXAMPLES} more"


def agree(text: str, count: int) -> str:
    """A text that begins with the verb of several, as it is said of ``count``."""
    verb, _, rest = text.partition(" ")
    return f"{_OF_ONE[verb] if count == 1 else verb} {rest}"
