"""The masks of the objects in an image, pasted into it when they are looked at."""

import operator
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils._pytree import tree_map

__all__ = ["PastedMasks", "as_index"]

_THRESHOLD = 0.5
# So many pixels of a mask are interpolated at once: some 20 bytes each.
_PIXELS_AT_ONCE = 2**20


class PastedMasks:
    """Masks as a boolean tensor (N, H, W) that is not in memory as a whole.

    What a network says of a mask is some probabilities within a box, 28 x 28 of them. Pasted into
    an image, a mask takes its size: 100 of them in a photograph of 48 megapixels 4.8 GB. These are
    pasted one by one:

    * ``masks[i]`` and iteration give one mask, (H, W);
    * ``masks[keep]`` with a slice, or with indexes or booleans of the objects, gives fewer masks;
    * ``masks.tensor``, ``masks.numpy()`` and whatever else a tensor has (``masks.sum((1, 2))``,
      ``masks & other``, ``torch.equal(masks, other)``, ``BitMasks(masks)``) make the whole tensor.

    Use ``.tensor`` where a ``torch.Tensor`` itself is needed: to change pixels, as an index of
    another tensor, and for ``Visualizer.overlay_instances``.

    The pixels are those of detectron2's ``paste_masks_in_image`` on a CPU, to the bit.
    """

    def __init__(
        self, probabilities: torch.Tensor, boxes: torch.Tensor, image_size: tuple[int, int]
    ) -> None:
        """
        Args:
            probabilities: Of the pixels of a box to be of its object, (N, M, M).
            boxes: The boxes, (N, 4): x0, y0, x1, y1 in pixels of the image.
            image_size: Height and width of the image.
        """
        self._probabilities, self._boxes = probabilities.float(), boxes.float()
        self._image_size = tuple(map(int, image_size))

    @property
    def shape(self) -> torch.Size:
        """(N, H, W)."""
        return torch.Size((len(self), *self._image_size))

    @property
    def ndim(self) -> int:
        """3."""
        return len(self.shape)

    @property
    def dtype(self) -> torch.dtype:
        """``torch.bool``."""
        return torch.bool

    @property
    def device(self) -> torch.device:
        """Where they are pasted."""
        return self._probabilities.device

    def dim(self) -> int:
        """3."""
        return self.ndim

    def size(self, dim: int | None = None) -> torch.Size | int:
        """(N, H, W), or one of them."""
        return self.shape if dim is None else self.shape[dim]

    @property
    def tensor(self) -> torch.Tensor:
        """All of them in memory, (N, H, W), boolean."""
        masks = torch.zeros(self.shape, dtype=torch.bool, device=self.device)
        for index, mask in enumerate(masks):
            self._paste(index, mask)
        return masks

    def numpy(self) -> np.ndarray:
        """All of them in memory, (N, H, W), boolean."""
        return self.tensor.numpy(force=True)

    def to(self, *args: object, **kwargs: object) -> "PastedMasks | torch.Tensor":
        """On another device; in another type, they are a tensor."""
        like = torch.empty((0, 0, 0), dtype=self.dtype, device=self.device).to(*args, **kwargs)
        if like.dtype != self.dtype:
            return self.tensor.to(*args, **kwargs)
        probabilities, boxes = self._probabilities.to(like.device), self._boxes.to(like.device)
        return PastedMasks(probabilities, boxes, self._image_size)

    def cpu(self) -> "PastedMasks":
        """On the CPU."""
        return self.to("cpu")

    def resized(self, height: int, width: int) -> "PastedMasks":
        """The same objects in the image resized."""
        old_height, old_width = self._image_size
        factors = self._boxes.new_tensor((width / old_width, height / old_height))
        return PastedMasks(self._probabilities, self._boxes * factors.repeat(2), (height, width))

    @staticmethod
    def cat(masks: Sequence["PastedMasks"]) -> "PastedMasks":
        """Those of several lists of objects of one image, as ``Instances.cat`` joins them."""
        probabilities, boxes = zip(*((m._probabilities, m._boxes) for m in masks), strict=True)
        return PastedMasks(torch.cat(probabilities), torch.cat(boxes), masks[0]._image_size)

    def __len__(self) -> int:
        return len(self._probabilities)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return map(self._mask, range(len(self)))

    def __getitem__(self, item: object) -> "PastedMasks | torch.Tensor":
        if item is None or item is Ellipsis or isinstance(item, tuple):
            return self.tensor[item]
        if not isinstance(item, slice):
            item = as_index(item)
            if item.ndim == 0 and item.dtype not in (torch.bool, torch.uint8):
                return self._mask(range(len(self))[operator.index(item)])
            if item.ndim != 1:
                return self.tensor[item]
        return PastedMasks(self._probabilities[item], self._boxes[item], self._image_size)

    def __setitem__(self, item: object, value: object) -> None:
        raise TypeError("pasted masks cannot be changed: change their .tensor")

    def __repr__(self) -> str:
        return f"PastedMasks of shape {tuple(self.shape)}"

    # What follows makes the whole tensor, for code that takes one.

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        return self.numpy() if dtype is None else self.numpy().astype(dtype)

    # torch.tensor and torch.as_tensor ask for this before they take it for a list of tensors.
    def __dlpack__(self, **kwargs: object) -> object:
        return self.tensor.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._probabilities.__dlpack_device__()

    def __getattr__(self, name: str) -> object:
        if name.startswith("_"):  # of Python's own protocols, such as copying
            raise AttributeError(name)
        if name.endswith("_"):
            raise AttributeError(f"pasted masks cannot be changed by {name}: change their .tensor")
        return getattr(self.tensor, name)

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., object],
        types: object,
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> object:
        args, kwargs = tree_map(
            lambda value: value.tensor if isinstance(value, PastedMasks) else value,
            (args, kwargs or {}),
        )
        return function(*args, **kwargs)

    def _mask(self, index: int) -> torch.Tensor:
        mask = torch.zeros(self._image_size, dtype=torch.bool, device=self.device)
        self._paste(index, mask)
        return mask

    @torch.no_grad()
    def _paste(self, index: int, mask: torch.Tensor) -> None:
        """Sets the pixels of an object, with detectron2's arithmetic, some rows at a time."""
        height, width = self._image_size
        x0, y0, x1, y1 = self._boxes[index]
        left, top = (max(0, int(edge.floor()) - 1) for edge in (x0, y0))
        right = min(width, int(x1.ceil()) + 1)
        bottom = min(height, int(y1.ceil()) + 1)
        if right <= left:
            return
        columns = self._places(left, right, x0, x1)
        step = max(1, _PIXELS_AT_ONCE // (right - left))
        for first in range(top, bottom, step):
            last = min(first + step, bottom)
            rows = self._places(first, last, y0, y1)
            size = (last - first, right - left)
            grid = torch.stack([columns.expand(size), rows[:, None].expand(size)], dim=-1)
            values = F.grid_sample(
                self._probabilities[index, None, None], grid[None], align_corners=False
            )
            mask[first:last, left:right] = values[0, 0] >= _THRESHOLD

    def _places(
        self, first: int, last: int, start: torch.Tensor, end: torch.Tensor
    ) -> torch.Tensor:
        """Pixels' centres in the box, -1 at its start and 1 at its end."""
        centres = torch.arange(first, last, device=self.device, dtype=torch.float32) + 0.5
        return (centres - start) / (end - start) * 2 - 1


def as_index(item: object) -> torch.Tensor:
    """What picks elements as a tensor.

    Args:
        item: Integers or booleans as tensor, array, list or number.

    Returns:
        uint8 of one dimension as booleans, as torch takes them.
    """
    if isinstance(item, int | np.integer):
        return torch.as_tensor(item, dtype=None if isinstance(item, bool) else torch.long)
    # numpy has arrays in reverse order, which torch has not.
    index = torch.as_tensor(item.copy() if isinstance(item, np.ndarray) else item)
    if index.ndim == 1 and index.dtype == torch.uint8:
        return index.bool()
    # An empty list has no type.
    return index.long() if index.is_floating_point() and index.shape == (0,) else index


def _by_the_tensor(name: str) -> Callable[..., object]:
    def method(self: PastedMasks, *others: object) -> object:
        return getattr(self.tensor, name)(*others)

    return method


_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "matmul")
_OPERATORS = ("eq", "ne", "lt", "le", "gt", "ge", "invert", "neg", "contains")
for _name in (*_BINARY, *(f"r{name}" for name in _BINARY), *_OPERATORS):
    setattr(PastedMasks, f"__{_name}__", _by_the_tensor(f"__{_name}__"))
