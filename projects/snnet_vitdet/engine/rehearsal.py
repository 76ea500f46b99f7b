"""The most expensive stitch once forward and backward before the training starts.

Which stitch an iteration draws is chance: a training whose largest stitch does not fit into memory
may run for hours before it finds out. The rehearsal finds out in the first minute.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import nn

from snnet_vitdet.errors import InputError, first_line
from snnet_vitdet.modeling import find_stitched_vit

from .precision import autocast

__all__ = ["memory_to_come", "rehearse", "synthetic_batch"]

_OBJECTS = 50  # an image; COCO has 7 on average and 90 at most
_REMEDIES = (
    "train.accumulation.steps=N for smaller micro-batches, "
    "model.backbone.net.large.activation_checkpointing=True (and .small), "
    "a smaller dataloader.train.total_batch_size or data.image_size"
)


def rehearse(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    gflops: Sequence[float],
    batch: Sequence[dict],
    *,
    precision: torch.dtype = torch.float32,
    accumulates: bool = False,
    num_processes: int = 1,
    num_stitches: int = 1,
) -> int | None:
    """Runs the most expensive stitch of a detector, or more of them, once forward and backward.

    Meanwhile it occupies the memory that the optimizer's state and accumulated gradients will take
    once every parameter has been trained. Leaves no gradient behind, and the stitch in effect as it
    was. Draws from torch's generator.

    Args:
        model: The detector, in training mode, not wrapped for several processes.
        optimizer: Of its parameters; makes no step.
        gflops: Cost of every stitch by id; one number for a detector without stitches.
        batch: Training images, as many as a process puts through at once.
        precision: That the training computes in.
        accumulates: Whether gradients of other stitches may be there already.
        num_processes: Number of training processes.
        num_stitches: How many of the most expensive stitches to run, one after the other.

    Returns:
        The peak of the device's memory in bytes; None on a CPU.

    Raises:
        InputError: If the memory does not suffice; says what to change.
    """
    device = next(model.parameters()).device
    backbone = find_stitched_vit(model)
    using = [nullcontext()]
    if backbone is not None:
        dearest = sorted(range(len(gflops)), key=gflops.__getitem__, reverse=True)
        using = [backbone.using_stitch(stitch) for stitch in dearest[:num_stitches]]
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    ballast = None
    try:
        if on_gpu:
            size = memory_to_come(model, optimizer, accumulates, num_processes)
            ballast = torch.empty(size, dtype=torch.uint8, device=device)
        for stitch in using:
            with stitch, EventStorage():
                with autocast(device, precision):
                    loss = sum(model(list(batch)).values())
                loss.backward()
            del loss
            model.zero_grad(set_to_none=True)
        return torch.cuda.max_memory_allocated(device) if on_gpu else None
    except torch.OutOfMemoryError as error:
        side = batch[0]["image"].shape[-1]
        raise InputError(
            f"{len(batch)} image{'s' if len(batch) > 1 else ''} of {side} x {side} pixels through "
            f"the most expensive stitch do not fit into the memory of {device} together with the "
            f"optimizer's state ({first_line(error)}): try {_REMEDIES}"
        ) from error
    finally:
        del ballast
        model.zero_grad(set_to_none=True)


def memory_to_come(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accumulates: bool = False,
    num_processes: int = 1,
) -> int:
    """Bytes that a training will take besides what there is before its first iteration.

    A parameter gets its state (two numbers in Adam, one at most in SGD) when it is first trained,
    and a supernet trains all of them within some iterations.

    Args:
        model: The detector.
        optimizer: Of its parameters.
        accumulates: Whether all parameters may have a gradient at once.
        num_processes: Several keep a second copy of all gradients for their exchange.
    """
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    numbers = 2 if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW) else 1
    there = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value)
    )
    copies = accumulates + (num_processes > 1)
    return max(0, numbers * trained - there) + copies * trained


def synthetic_batch(
    num_images: int, size: int, num_classes: int, mask_format: str | None = "polygon"
) -> list[dict]:
    """Training images as the mapper gives them: noise with many objects, the same every time.

    Args:
        num_images: How many.
        size: Height and width in pixels.
        num_classes: Number of categories.
        mask_format: ``polygon`` or ``bitmask``; None for boxes alone.
    """
    generator = torch.Generator().manual_seed(0)
    batch = []
    for _ in range(num_images):
        corners = torch.rand(_OBJECTS, 2, 2, generator=generator) * (size - 1)
        boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1) + 1], dim=1)
        instances = Instances((size, size))
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.arange(_OBJECTS) % num_classes
        if mask_format:
            instances.gt_masks = _filled(boxes, size, mask_format)
        image = torch.randint(0, 256, (3, size, size), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "height": size, "width": size, "instances": instances})
    return batch


def _filled(boxes: torch.Tensor, size: int, mask_format: str) -> PolygonMasks | BitMasks:
    """Masks that fill boxes (N, 4)."""
    x0, y0, x1, y1 = boxes.unbind(dim=1)
    polygons = torch.stack([x0, y0, x1, y0, x1, y1, x0, y1], dim=1).double().numpy()
    masks = PolygonMasks([[polygon] for polygon in polygons])
    return BitMasks.from_polygon_masks(masks, size, size) if mask_format == "bitmask" else masks
