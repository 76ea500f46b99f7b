"""Runs the most expensive stitch before the training: does it fit into memory, what does it take?

Each iteration draws its stitch at random: a training whose largest stitch does not fit could run
for hours before it fails. The probe fails in the first minute.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from snnet_vitdet.errors import InputError, first_line
from snnet_vitdet.memory import bytes_kept_for_backward
from snnet_vitdet.modeling import find_stitched_vit, operating_at
from snnet_vitdet.stitching import CostTable

from .distillation import distils
from .precision import autocast, training_precision
from .settings import Config

__all__ = ["log_step_costs", "memory_to_come", "probe_memory", "synthetic_batch"]

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
    device = next(model.parameters()).device
    on_gpu = device.type == "cuda"
    model.train()
    reserved = None
    side = _sides(config)[0]  # for the error, if even the optimizer's state does not fit
    try:
        if on_gpu:
            accumulates = config.train.accumulation.steps > 1
            size = memory_to_come(model, optimizer, accumulates, comm.get_world_size())
            reserved = torch.empty(size, dtype=torch.uint8, device=device)
        for side in _sides(config):
            batch = _micro_batch(config, model, side)
            if on_gpu:
                torch.cuda.reset_peak_memory_stats(device)
            for stitch in _most_expensive(config, costs):
                with _running(config, model, stitch, side):
                    _loss(config, model, batch).backward()
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
        raise InputError(
            f"{_num_images(config)} of {side} x {side} pixels through the most expensive stitch do "
            f"not fit into the memory of {device} together with the optimizer's state "
            f"({first_line(error)}): try {_REMEDIES}"
        ) from error
    finally:
        del reserved
        model.zero_grad(set_to_none=True)


def log_step_costs(config: Config, model: GeneralizedRCNN, costs: CostTable | None) -> None:
    """Logs activation memory and time of a training step at each size of ``train.image_sizes``.

    The step is that of the most expensive stitch; with distillation, of the most expensive one that
    is taught. Its forward pass runs twice and its backward pass once for each size; both run once
    more with ``train.compile``. No gradient stays; the selected stitch and the random generators do
    not change.

    Args:
        config: The whole config.
        model: The detector, not wrapped for several processes; set to training mode.
        costs: Costs of its stitches; None for a baseline.
    """
    device = next(model.parameters()).device
    on_gpu = device.type == "cuda"
    stitch = _most_expensive(config, costs)[-1]
    model.train()
    with torch.random.fork_rng([device] if on_gpu else []):
        for side in _sides(config):
            batch = _micro_batch(config, model, side)
            with _running(config, model, stitch, side):
                # Also the warm-up: the first pass at a size makes what depends on the grid.
                kept = bytes_kept_for_backward(lambda batch=batch: _loss(config, model, batch))
                if config.train.compile:
                    _loss(config, model, batch).backward()  # compiles, which is not to be timed
                if on_gpu:
                    torch.cuda.synchronize(device)
                start = time.perf_counter()
                _loss(config, model, batch).backward()
                if on_gpu:
                    torch.cuda.synchronize(device)
                seconds = time.perf_counter() - start
            model.zero_grad(set_to_none=True)
            logger.info(
                "Most expensive step at %d pixels (%s, %s): activations take %.0f MiB, forward and "
                "backward pass %.2f s.",
                side,
                "baseline" if costs is None else costs.space[stitch].name,
                _num_images(config),
                kept / 2**20,
                seconds,
            )


def _sides(config: Config) -> list[int]:
    """Image sizes of a training, the largest first."""
    return sorted({*(config.train.image_sizes or [config.data.image_size])}, reverse=True)


def _micro_batch(config: Config, model: GeneralizedRCNN, side: int) -> list[dict]:
    """As many images of a size as a process passes through the model at once."""
    mask_format = config.dataloader.train.mapper.get("instance_mask_format", "polygon")
    return synthetic_batch(
        _micro_batch_size(config),
        side,
        model.roi_heads.num_classes,
        mask_format if config.data.masks else None,
    )


def _micro_batch_size(config: Config) -> int:
    num_parts = comm.get_world_size() * config.train.accumulation.steps
    return config.dataloader.train.total_batch_size // num_parts


def _num_images(config: Config) -> str:
    """Size of a micro-batch as text."""
    count = _micro_batch_size(config)
    return f"{count} image{'s' if count > 1 else ''}"


def _most_expensive(config: Config, costs: CostTable | None) -> list[int | None]:
    """The most expensive stitch, with distillation also the second; None for a baseline."""
    if costs is None:
        return [None]
    by_cost = sorted(range(len(costs)), key=costs.gflops.__getitem__, reverse=True)
    return list(by_cost[: 2 if distils(config.train.distillation) else 1])


@contextmanager
def _running(
    config: Config, model: GeneralizedRCNN, stitch: int | None, side: int
) -> Iterator[None]:
    """Lets the model run a stitch at an image size as an iteration of the training does."""
    using = nullcontext() if stitch is None else find_stitched_vit(model).using_stitch(stitch)
    at_size = operating_at(model, side if config.train.image_sizes else None, None)
    with using, at_size, EventStorage():
        yield


def _loss(config: Config, model: GeneralizedRCNN, batch: list[dict]) -> torch.Tensor:
    with autocast(next(model.parameters()).device, training_precision(config)):
        return sum(model(batch).values())


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
        num_processes: Several processes keep room for all gradients, for their exchange.
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
