"""Runs the most expensive stitch before the training, to see whether it fits into memory.

Each iteration draws its stitch at random: a training whose largest stitch does not fit could run
for hours before it fails. The probe fails in the first minute.
"""

import logging
from contextlib import nullcontext

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from snnet_vitdet.errors import InputError, first_line
from snnet_vitdet.modeling import find_stitched_vit, operating_at
from snnet_vitdet.stitching import CostTable

from .distillation import distils
from .precision import autocast, training_precision
from .settings import Config

__all__ = ["memory_to_come", "probe_memory", "synthetic_batch"]

logger = logging.getLogger(__name__)

_OBJECTS = 50  # per image; COCO has 7 on average and 90 at most
_REMEDIES = (
    "train.accumulation.steps=N for smaller micro-batches, "
    "model.backbone.net.large.activation_checkpointing=True (and .small), "
    "a smaller dataloader.train.total_batch_size or data.image_size"
)


def probe_memory(
    config: Config,
    model: GeneralizedRCNN,
    optimizer: torch.optim.Optimizer,
    costs: CostTable | None,
) -> None:
    """Runs the most expensive stitch once forward and backward, on as many images as the training.

    With ``train.image_sizes``, it runs once at each size, the largest first.

    With distillation, the second most expensive stitch runs, too: the first is the teacher, which
    is not taught itself. Meanwhile the memory that the optimizer's state and accumulated gradients
    will take is occupied. No gradient stays, and the selected stitch does not change. Draws from
    torch's generator.

    Args:
        config: The whole config.
        model: The detector, not wrapped for several processes; set to training mode.
        optimizer: Optimizer of its parameters; makes no step.
        costs: Costs of its stitches; None for a baseline.

    Raises:
        InputError: If the memory of the GPU does not suffice; names what to change.
    """
    steps, num_processes = config.train.accumulation.steps, comm.get_world_size()
    mask_format = config.dataloader.train.mapper.get("instance_mask_format", "polygon")
    device = next(model.parameters()).device
    on_gpu = device.type == "cuda"
    selected: list[int | None] = [None]
    net = find_stitched_vit(model)
    if net is not None and costs is not None:
        num_stitches = 2 if distils(config.train.distillation) else 1
        by_cost = sorted(range(len(costs)), key=costs.gflops.__getitem__, reverse=True)
        selected = list(by_cost[:num_stitches])
    model.train()
    reserved = None
    try:
        if on_gpu:
            size = memory_to_come(model, optimizer, steps > 1, num_processes)
            reserved = torch.empty(size, dtype=torch.uint8, device=device)
        for side in sorted(config.train.image_sizes or [config.data.image_size], reverse=True):
            batch = synthetic_batch(
                config.dataloader.train.total_batch_size // (num_processes * steps),
                side,
                model.roi_heads.num_classes,
                mask_format if config.data.masks else None,
            )
            if on_gpu:
                torch.cuda.reset_peak_memory_stats(device)
            for stitch in selected:
                using = nullcontext() if stitch is None else net.using_stitch(stitch)
                at_size = operating_at(model, side if config.train.image_sizes else None, None)
                with using, at_size, EventStorage():
                    with autocast(device, training_precision(config)):
                        loss = sum(model(batch).values())
                    loss.backward()
                del loss
                model.zero_grad(set_to_none=True)
            if on_gpu:
                logger.info(
                    "Memory of the most expensive stitch at %d pixels, optimizer's state included: "
                    "peak %.1f of %.1f GiB.",
                    side,
                    torch.cuda.max_memory_allocated(device) / 2**30,
                    torch.cuda.get_device_properties(device).total_memory / 2**30,
                )
    except torch.OutOfMemoryError as error:
        images = f"{len(batch)} image{'s' if len(batch) > 1 else ''}"
        raise InputError(
            f"{images} of {side} x {side} pixels through the most expensive stitch do not fit into "
            f"the memory of {device} together with the optimizer's state ({first_line(error)}): "
            f"try {_REMEDIES}"
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
