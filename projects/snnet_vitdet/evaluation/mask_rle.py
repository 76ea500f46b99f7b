"""COCO's run-length encoding (RLE) of detected masks, without full-size masks on the host.

A mask head gives the probabilities of a mask inside its box, such as 28 x 28 values. detectron2
pastes them into a mask of the image's size, and pycocotools encodes all its pixels. This module
finds the pixels where runs start on the device that pastes. These alone are encoded, later and in
any process.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from pycocotools import mask as mask_util
from torch.nn import functional as F

__all__ = ["MaskRuns", "find_runs"]

_THRESHOLD = 0.5  # as detectron2's

# Number of pixels to paste at once. A GPU takes about 16 bytes a pixel; a CPU is twice as fast with
# parts of a large box as with all of it.
_PIXELS_AT_ONCE_GPU = 2**25
_PIXELS_AT_ONCE_CPU = 2**20

# First and last mask (excluded), and left, top, right and bottom of a region of the image.
_Window = tuple[int, int, int, int, int, int]


@dataclass(frozen=True)
class MaskRuns:
    """The masks in an image, as the pixels where their runs start.

    Attributes:
        starts: Ascending indexes of the pixels that differ from the pixel before, down the columns
            and counted through all masks. The pixel before the first one of a mask counts as
            outside. Two equal indexes cancel: a run goes on from one window to the next.
        num_masks: Number of masks.
        height: Height of the masks.
        width: Width of the masks.
    """

    starts: np.ndarray
    num_masks: int
    height: int
    width: int

    def __len__(self) -> int:
        return self.num_masks

    def encoded(self) -> list[dict]:
        """The ``size`` and ``counts`` of each mask, as pycocotools' ``encode`` gives them."""
        if not self.num_masks:
            return []
        ends = np.arange(self.num_masks + 1) * (self.height * self.width)
        differs = np.diff(self.starts, prepend=-1, append=ends[-1]) > 0
        starts = self.starts[differs[1:] & differs[:-1]]
        # The first run of a mask is outside, with length 0 if the first pixel is inside.
        places = np.searchsorted(starts, ends)
        lengths = np.diff(np.insert(starts, places, ends))
        counts = np.split(lengths, (places + np.arange(self.num_masks + 1))[1:-1])
        size = [self.height, self.width]
        return mask_util.frPyObjects([{"counts": each, "size": size} for each in counts], *size)


@torch.no_grad()
def find_runs(
    probabilities: torch.Tensor, boxes: torch.Tensor, image_size: tuple[int, int]
) -> MaskRuns:
    """Pastes masks into an image and finds their runs.

    The encoded result is that of pycocotools' ``encode`` for the masks that detectron2's
    ``paste_masks_in_image`` pastes on the same device in float32, to the byte.

    Args:
        probabilities: Probability of each point of a box to belong to the object, (N, 1, M, M).
        boxes: x0, y0, x1, y1 in pixels of the image, (N, 4); inside the image and not empty.
        image_size: Height and width of the image.
    """
    height, width = image_size
    probabilities, boxes = probabilities.float(), boxes.float()
    x0, y0, x1, y1 = boxes.split(1, dim=1)
    xs, ys = _positions(width, x0, x1), _positions(height, y0, y1)
    on_cpu = _is_on_cpu(boxes)
    windows = _box_windows if on_cpu else _image_windows
    starts = [np.empty(0, dtype=np.int64)]
    for first, last, left, top, right, bottom in windows(boxes, height, width):
        # Columns first, because RLE counts down the columns. Out: (N, columns, rows, 2)
        x, y = xs[first:last, left:right, None], ys[first:last, None, top:bottom]
        grid = torch.view_as_real(torch.complex(x, y))  # broadcasts; faster than torch.stack
        values = F.grid_sample(probabilities[first:last], grid, align_corners=False)[:, 0]
        # Whole columns of the image: one before the window, and one after it if there is one.
        num_columns = min(right + 1, width) - left
        inside = values.new_zeros((last - first, 1 + num_columns, height), dtype=torch.bool)
        if on_cpu:  # numpy does the rest in a third of the time
            values, inside = values.numpy(), inside.numpy()
        inside[:, 1 : 1 + right - left, top:bottom] = values >= _THRESHOLD
        flat = inside.reshape(last - first, -1)
        changes = (flat[:, height:] ^ flat[:, height - 1 : -1]).reshape(-1)
        found = np.flatnonzero(changes) if on_cpu else changes.nonzero()[:, 0].cpu().numpy()
        # A window has one mask, or whole images.
        starts.append((first * width + left) * height + found)
    return MaskRuns(np.concatenate(starts), len(boxes), height, width)


def _is_on_cpu(tensor: torch.Tensor) -> bool:
    """Apart from the rest so that tests run on a CPU what a GPU runs."""
    return tensor.device.type == "cpu"


def _positions(length: int, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """Centres of pixels, (N, length): -1 at the start of a box, 1 at its end."""
    centres = torch.arange(length, device=start.device, dtype=torch.float32) + 0.5
    return (centres - start) / (end - start) * 2 - 1


def _box_windows(boxes: torch.Tensor, height: int, width: int) -> Iterator[_Window]:
    """The pixels that detectron2 pastes on a CPU: a box and a margin around it."""
    low = (boxes[:, :2].floor() - 1).clamp(min=0)
    high = torch.minimum(boxes[:, 2:].ceil() + 1, boxes.new_tensor([width, height]))
    corners = torch.cat([low, high], dim=1).int().tolist()
    for index, (left, top, right, bottom) in enumerate(corners):
        step = max(1, _PIXELS_AT_ONCE_CPU // (bottom - top))
        for x in range(left, right, step):
            yield index, index + 1, x, top, min(x + step, right), bottom


def _image_windows(boxes: torch.Tensor, height: int, width: int) -> Iterator[_Window]:
    """The pixels that detectron2 pastes on a GPU: all of the image, of several masks."""
    step = max(1, _PIXELS_AT_ONCE_GPU // (height * width))
    for first in range(0, len(boxes), step):
        yield first, min(first + step, len(boxes)), 0, 0, width, height
