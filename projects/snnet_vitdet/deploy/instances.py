"""What a predictor returns for an image, and the COCO-format file of many images."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from pycocotools import mask as mask_util
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from snnet_vitdet.files import write_atomically

__all__ = ["ClassNames", "CocoPredictions", "Detections", "PastedMasks"]

aten = torch.ops.aten

_THRESHOLD = 0.5
# The number of pixels of a mask that are interpolated at once; each takes about 20 bytes.
_PIXELS_AT_ONCE = 2**20


class ClassNames(np.ndarray):
    """An array of strings that is indexed, compared and joined like the tensors beside it."""

    def __new__(cls, names: Sequence[str]) -> "ClassNames":
        """
        Args:
            names: One name for each object.
        """
        return np.array(list(names), dtype=str).view(cls)

    def __getitem__(self, item: object) -> object:
        # numpy would take a tensor of one element as a number and return a string.
        if torch.is_tensor(item):
            item = _as_index(item).numpy(force=True)
        return super().__getitem__(item)

    # Comparisons give tensors: `&` of a boolean array and a boolean tensor gives uint8.

    def __eq__(self, other: object) -> torch.Tensor:
        return torch.as_tensor(np.asarray(super().__eq__(other)))

    def __ne__(self, other: object) -> torch.Tensor:
        return torch.as_tensor(np.asarray(super().__ne__(other)))

    @classmethod
    def cat(cls, names: Sequence["ClassNames"]) -> "ClassNames":
        """Joins several arrays, as ``Instances.cat`` does."""
        return np.concatenate(names).view(cls)


class Detections(Instances):
    """detectron2's Instances, with every common way to select objects.

    ``found[item]`` selects objects by an integer, a slice, integers or booleans. Integers and
    booleans may be a tensor, an array, a list, or a tuple as ``torch.where`` returns it; uint8
    counts as boolean, as in torch. Iteration gives the objects one by one, as Detections of one.
    """

    def __getitem__(self, item: object) -> "Detections":
        rows = _rows(item, len(self))
        fields = {name: value[rows] for name, value in self.get_fields().items()}
        return Detections(self.image_size, **fields)

    def __iter__(self) -> Iterator["Detections"]:
        return (self[index] for index in range(len(self)))

    def to(self, *args: object, **kwargs: object) -> "Detections":
        """A copy whose fields are on another device, where they can be moved."""
        return Detections(self.image_size, **super().to(*args, **kwargs).get_fields())

    @staticmethod
    def cat(instance_lists: list[Instances]) -> "Detections":
        """Joins several groups of objects of one image."""
        joined = Instances.cat(instance_lists)
        return Detections(joined.image_size, **joined.get_fields())


class PastedMasks(torch.Tensor):
    """A boolean tensor (N, H, W) of masks that are not in memory as a whole.

    A network gives a mask as probabilities in a box, 28 x 28 of them. Pasted into an image, a mask
    has the image's size: 100 masks in a photograph of 48 megapixels take 4.8 GB. These masks are
    pasted when they are used:

    * ``masks[i]`` and iteration paste one mask, (H, W);
    * ``masks[keep]`` with a slice, indexes or booleans of the objects pastes nothing;
    * ``masks.tensor``, ``masks.numpy()`` and all other operations paste every mask.

    The pixels are those of detectron2's ``paste_masks_in_image`` on a CPU, to the bit. They cannot
    be changed: change ``masks.tensor``.
    """

    # Results of operations are plain tensors.
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(
        cls, probabilities: torch.Tensor, boxes: torch.Tensor, image_size: tuple[int, int]
    ) -> "PastedMasks":
        """
        Args:
            probabilities: Probability of each pixel of a box to belong to the object, (N, M, M).
            boxes: x0, y0, x1, y1 in pixels of the image, (N, 4).
            image_size: Height and width of the image.
        """
        size = (len(probabilities), *map(int, image_size))
        masks = torch.Tensor._make_wrapper_subclass(
            cls, size, dtype=torch.bool, device=probabilities.device
        )
        masks._probabilities, masks._boxes = probabilities.float(), boxes.float()
        return masks

    @classmethod
    def __torch_dispatch__(
        cls,
        function: Callable[..., object],
        types: Sequence[type],
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> object:
        kwargs, first = kwargs or {}, args[0] if args else None
        # Joining and moving do not paste them.
        if function is aten.cat.default and args[1:] in ((), (0,)):
            if all(isinstance(each, cls) for each in first):
                return cls.cat(first)
        elif function is aten._to_copy.default and kwargs.get("dtype") in (None, torch.bool):
            device = kwargs.get("device")
            return first._with(first._probabilities.to(device), first._boxes.to(device))
        elif function._schema.is_mutable and isinstance(first, cls):
            raise TypeError("pasted masks cannot be changed: change their .tensor")
        args, kwargs = tree_map_only(cls, lambda masks: masks.tensor, (args, kwargs))
        return function(*args, **kwargs)

    @property
    def tensor(self) -> torch.Tensor:
        """All masks in memory, (N, H, W), boolean."""
        masks = torch.zeros(self.shape, dtype=torch.bool, device=self.device)
        for index, mask in enumerate(masks):
            self._paste(index, mask)
        return masks

    def numpy(self, *, force: bool = True) -> np.ndarray:
        """All masks in memory, (N, H, W), boolean."""
        return self.tensor.numpy(force=force)

    def tolist(self) -> list:
        """All pixels as nested lists."""
        return self.tensor.tolist()

    def resized(self, height: int, width: int) -> "PastedMasks":
        """The masks of the same objects in the resized image."""
        factors = self._boxes.new_tensor((width / self.shape[2], height / self.shape[1]))
        boxes = self._boxes * factors.repeat(2)
        return PastedMasks(self._probabilities, boxes, (height, width))

    @staticmethod
    def cat(masks: Sequence["PastedMasks"]) -> "PastedMasks":
        """Joins masks of one image, as ``Instances.cat`` does.

        Raises:
            ValueError: If they are of images of several sizes.
        """
        if len({each.shape[1:] for each in masks}) > 1:
            raise ValueError("masks of images of several sizes cannot be joined")
        probabilities, boxes = zip(*((m._probabilities, m._boxes) for m in masks), strict=True)
        return masks[0]._with(torch.cat(probabilities), torch.cat(boxes))

    def __iter__(self) -> Iterator[torch.Tensor]:
        return map(self._mask, range(len(self)))

    def __getitem__(self, item: object) -> torch.Tensor:
        if item is None or item is Ellipsis or isinstance(item, tuple):
            return self.tensor[item]
        if not isinstance(item, slice):
            item = _as_index(item)
            if item.ndim == 0 and item.dtype not in (torch.bool, torch.uint8):
                return self._mask(range(len(self))[int(item)])
            if item.ndim != 1:
                return self.tensor[item]
        return self._with(self._probabilities[item], self._boxes[item])

    def __setitem__(self, item: object, value: object) -> None:
        raise TypeError("pasted masks cannot be changed: change their .tensor")

    def __deepcopy__(self, memo: dict) -> "PastedMasks":
        return self

    def __reduce_ex__(self, protocol: int) -> tuple:
        return PastedMasks, (self._probabilities, self._boxes, tuple(self.shape[1:]))

    def __repr__(self) -> str:
        return f"PastedMasks of shape {tuple(self.shape)}"

    def _with(self, probabilities: torch.Tensor, boxes: torch.Tensor) -> "PastedMasks":
        return PastedMasks(probabilities, boxes, self.shape[1:])

    def _mask(self, index: int) -> torch.Tensor:
        mask = torch.zeros(self.shape[1:], dtype=torch.bool, device=self.device)
        self._paste(index, mask)
        return mask

    @torch.no_grad()
    def _paste(self, index: int, mask: torch.Tensor) -> None:
        """Sets the pixels of an object with detectron2's arithmetic, some rows at a time."""
        height, width = mask.shape
        x0, y0, x1, y1 = self._boxes[index]
        left, top = (max(0, int(edge.floor()) - 1) for edge in (x0, y0))
        right = min(width, int(x1.ceil()) + 1)
        bottom = min(height, int(y1.ceil()) + 1)
        if right <= left:
            return
        columns = self._positions(left, right, x0, x1)
        step = max(1, _PIXELS_AT_ONCE // (right - left))
        for first in range(top, bottom, step):
            last = min(first + step, bottom)
            rows = self._positions(first, last, y0, y1)
            size = (last - first, right - left)
            grid = torch.stack([columns.expand(size), rows[:, None].expand(size)], dim=-1)
            values = F.grid_sample(
                self._probabilities[index, None, None], grid[None], align_corners=False
            )
            mask[first:last, left:right] = values[0, 0] >= _THRESHOLD

    def _positions(
        self, first: int, last: int, start: torch.Tensor, end: torch.Tensor
    ) -> torch.Tensor:
        """Centres of pixels in the box: -1 at its start, 1 at its end."""
        centres = torch.arange(first, last, device=self.device, dtype=torch.float32) + 0.5
        return (centres - start) / (end - start) * 2 - 1


class CocoPredictions:
    """Collects the detections of many images for one file in COCO format."""

    def __init__(self, class_names: Sequence[str]) -> None:
        """
        Args:
            class_names: Names by ``pred_classes``. Category ids count from 1 in this order: a model
                does not know the ids in the data that it was trained on.
        """
        self._categories = [{"id": i, "name": name} for i, name in enumerate(class_names, start=1)]
        self._images: list[dict] = []
        self._annotations: list[dict] = []

    def __len__(self) -> int:
        return len(self._annotations)

    @property
    def num_images(self) -> int:
        """Number of images that were added."""
        return len(self._images)

    def add(self, file_name: str, instances: Instances) -> None:
        """Adds the detections of one image.

        Args:
            file_name: Name of the image in the file.
            instances: Detections as a Predictor returns them.
        """
        image_id = len(self._images) + 1
        height, width = instances.image_size
        self._images.append(
            {"id": image_id, "file_name": file_name, "height": height, "width": width}
        )
        for found in instances_to_coco_json(instances, image_id):
            box_area = found["bbox"][2] * found["bbox"][3]
            mask = found.get("segmentation")
            self._annotations.append(
                {
                    **found,
                    "id": len(self._annotations) + 1,
                    "category_id": found["category_id"] + 1,
                    "area": box_area if mask is None else int(mask_util.area(mask)),
                    "iscrowd": 0,
                }
            )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes images, categories and annotations, each annotation with its ``score``.

        Raises:
            InputError: If the file cannot be written.
        """
        parts = {
            "images": self._images,
            "categories": self._categories,
            "annotations": self._annotations,
        }
        write_atomically(Path(path), json.dumps(parts).encode())


def _rows(item: object, count: int) -> torch.Tensor:
    """Indexes of the objects that an item selects among ``count`` objects."""
    if isinstance(item, tuple) and len(item) == 1:
        (item,) = item
    if not isinstance(item, slice):
        index = _as_index(item).cpu()
        is_mask = index.dtype == torch.bool
        if index.is_floating_point() or index.ndim > 1 or (is_mask and index.ndim == 0):
            raise IndexError(
                f"objects are selected by integers, a slice or booleans, not by {item!r}"
            )
        item = index if is_mask else index.long()
    return torch.arange(count)[item].reshape(-1)


def _as_index(item: object) -> torch.Tensor:
    """Turns an index of objects into a tensor.

    Args:
        item: Integers or booleans as a tensor, an array, a list or a number.

    Returns:
        The tensor; one-dimensional uint8 becomes boolean, as torch treats it.
    """
    if isinstance(item, int | np.integer):
        return torch.as_tensor(item, dtype=None if isinstance(item, bool) else torch.long)
    # torch does not take arrays in reverse order.
    index = torch.as_tensor(item.copy() if isinstance(item, np.ndarray) else item)
    if index.ndim == 1 and index.dtype == torch.uint8:
        return index.bool()
    # An empty list becomes a float tensor.
    return index.long() if index.is_floating_point() and index.shape == (0,) else index
