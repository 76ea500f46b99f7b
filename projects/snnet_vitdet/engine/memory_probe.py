"""Runs the most expensive stitch before the training, to see whether it fits into memory.

Each iteration draws its stitch at random: a training whose largest stitch does not fit could run
for hours before it fails. The probe fails in the first minute.
"""

import logging
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from torch import nn

from snnet_vitdet.errors import InputError, first_line
from snnet_vitdet.modeling import find_stitched_vit
from snnet_vitdet.stitching import CostTable

from .distillation import distils
from .precision import autocast, training_precision

__all__ = ["memory_to_come", "probe_memory", "run_most_expensive", "synthetic_batch"]

logger = logging.getLogger(__name__)

_OBJECTS = 50  # per image; COCO has 7 on average and 90 at most
_REMEDIES = (
    "train.accumulation.steps=N for smaller micro-batches, "
    "model.backbone.net.large.activation_checkpointing=True (and .small), "
    "a smaller dataloader.train.total_batch_size or data.image_size"
)


def probe_memory(
    config: DictConfig,
    model: GeneralizedRCNN,
    optimizer: torch.optim.Optimizer,
    costs: CostTable | None,
) -> None:
    """Checks that the most expensive stitch of a training fits into the memory of the GPU.

    Args:
        config: The whole config.
        model: The detector, not wrapped for several processes.
        optimizer: Optimizer of its parameters.
        costs: Costs of its stitches; None for a baseline.

    Raises:
        InputError: If it does not fit.
    """
    train, steps = config.train, config.train.accumulation.steps
    mask_format = config.dataloader.train.mapper.get("instance_mask_format", "polygon")
    batch = synthetic_batch(
        config.dataloader.train.total_batch_size // (comm.get_world_size() * steps),
        config.data.image_size,
        model.roi_heads.num_classes,
        mask_format if config.data.masks else None,
    )
    peak = run_most_expensive(
        model.train(),
        optimizer,
        () if costs is None else costs.gflops,
        batch,
        precision=training_precision(config),
        accumulates=steps > 1,
        num_processes=comm.get_world_size(),
        # The most expensive stitch is the teacher, which runs alone; the next one runs with it.
        num_stitches=2 if distils(train.distillation) else 1,
    )
    if peak is not None:
        total = torch.cuda.get_device_properties(train.device).total_memory
        logger.info(
            "Memory of the most expensive stitch, optimizer's state included: peak %.1f of %.1f "
            "GiB.",
            peak / 2**30,
            total / 2**30,
        )


def run_most_expensive(
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
    """Runs the most expensive stitches of a detector forward and backward, once each.

    Meanwhile it occupies the memory that the optimizer's state and accumulated gradients will take.
    Leaves no gradient behind and the selected stitch unchanged. Draws from torch's generator.

    Args:
        model: The detector in training mode, not wrapped for several processes.
        optimizer: Optimizer of its parameters; makes no step.
        gflops: Cost of every stitch by id; not used for a detector without stitches.
        batch: Training images, as many as a process runs at once.
        precision: Precision of the training.
        accumulates: Whether gradients of other stitches may exist already.
        num_processes: Number of training processes.
        num_stitches: Number of stitches to run, one after the other.

    Returns:
        Peak memory of the device in bytes; None on a CPU.

    Raises:
        InputError: If the memory does not suffice; names what to change.
    """
    device = next(model.parameters()).device
    backbone = find_stitched_vit(model)
    selected = [nullcontext()]
    if backbone is not None:
        by_cost = sorted(range(len(gflops)), key=gflops.__getitem__, reverse=True)
        selected = [backbone.using_stitch(stitch) for stitch in by_cost[:num_stitches]]
    on_gpu = device.type == "cuda"
    reserved = None
    try:
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
            size = memory_to_come(model, optimizer, accumulates, num_processes)
            reserved = torch.empty(size, dtype=torch.uint8, device=device)
        for stitch in selected:
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
        del reserved
        model.zero_grad(set_to_none=True)


def memory_to_come(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accumulates: bool = False,
    num_processes: int = 1,
) -> int:
    """Bytes that a training will take in addition to those before its first iteration.

    A parameter gets its optimizer state (two numbers in Adam, at most one in SGD) when it is first
    trained, and a supernet trains all parameters within some iterations.

    Args:
        model: The detector.
        optimizer: Optimizer of its parameters.
        accumulates: Whether all parameters may have a gradient at once.
        num_processes: Several processes keep a second copy of all gradients for their exchange.
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
    """Training images in the mapper's format: noise with many objects, the same at every call.

    Args:
        num_images: Number of images.
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
            # Each mask fills its box.
            x0, y0, x1, y1 = boxes.unbind(dim=1)
            polygons = torch.stack([x0, y0, x1, y0, x1, y1, x0, y1], dim=1).double().numpy()
            masks = PolygonMasks([[polygon] for polygon in polygons])
            if mask_format == "bitmask":
                masks = BitMasks.from_polygon_masks(masks, size, size)
            instances.gt_masks = masks
        image = torch.randint(0, 256, (3, size, size), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "height": size, "width": size, "instances": instances})
    return batch
