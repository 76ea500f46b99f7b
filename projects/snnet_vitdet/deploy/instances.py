"""detectron2's Instances with class names, in which every way to pick objects works."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from detectron2.structures import Instances

from .masks import as_index

__all__ = ["ClassNames", "Detections"]


class ClassNames(np.ndarray):
    """An array of texts that is indexed, compared and joined as the tensors beside it are."""

    def __new__(cls, names: Sequence[str]) -> "ClassNames":
        """
        Args:
            names: A text for each object.
        """
        return np.array(list(names), dtype=str).view(cls)

    def __getitem__(self, item: object) -> object:
        # numpy would take a tensor of one element for a number, and give a text for an array.
        if torch.is_tensor(item):
            item = as_index(item).numpy(force=True)
        return super().__getitem__(item)

    # A boolean array and a boolean tensor give uint8 when they are joined by &.

    def __eq__(self, other: object) -> torch.Tensor:
        return torch.as_tensor(np.asarray(super().__eq__(other)))

    def __ne__(self, other: object) -> torch.Tensor:
        return torch.as_tensor(np.asarray(super().__ne__(other)))

    @classmethod
    def cat(cls, names: Sequence["ClassNames"]) -> "ClassNames":
        """All of several one after the other, as ``Instances.cat`` joins them."""
        return np.concatenate(names).view(cls)


class Detections(Instances):
    """The objects found in an image, whatever their number.

    ``found[item]`` gives the objects that an integer, a slice, indexes or booleans pick; the latter
    two as tensor, list or array, or in a tuple as ``torch.where`` gives them. As in torch, uint8
    are booleans. Iteration gives the objects one by one, each as Detections of one.
    """

    def __getitem__(self, item: object) -> "Detections":
        rows = _rows(item, len(self))
        fields = {name: value[rows] for name, value in self.get_fields().items()}
        return Detections(self.image_size, **fields)

    def __iter__(self) -> Iterator["Detections"]:
        return (self[index] for index in range(len(self)))

    def to(self, *args: object, **kwargs: object) -> "Detections":
        """A copy of which every field that can be is moved to another device."""
        return Detections(self.image_size, **super().to(*args, **kwargs).get_fields())

    @staticmethod
    def cat(instance_lists: list[Instances]) -> "Detections":
        """The objects of several of one image."""
        joined = Instances.cat(instance_lists)
        return Detections(joined.image_size, **joined.get_fields())


def _rows(item: object, count: int) -> slice | torch.Tensor:
    """What an item picks of so many objects, as every field can be indexed by it."""
    if isinstance(item, tuple) and len(item) == 1 and not isinstance(item[0], bool):
        (item,) = item
    if isinstance(item, slice):
        return item
    index = as_index(item)
    is_number = not index.is_floating_point() and index.dtype != torch.bool
    if index.ndim == 0 and is_number:
        first = range(count)[int(index)]
        return slice(first, first + 1)
    if index.ndim != 1 or index.is_floating_point():
        raise IndexError(f"objects are picked by integers, a slice or booleans, not by {item!r}")
    if is_number:
        return index.long().cpu()
    if len(index) != count:
        raise IndexError(f"{len(index)} booleans cannot pick among {count} objects")
    return index.nonzero()[:, 0].cpu()
