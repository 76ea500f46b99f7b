"""What a training by a config is put together from, besides its model, optimizer and data."""

import logging
from collections.abc import Iterable, Sequence

import torch
from detectron2.engine.defaults import create_ddp_model
from detectron2.modeling import GeneralizedRCNN
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import (
    bf16_compress_hook,
    fp16_compress_hook,
)
from torch.nn.parallel import DistributedDataParallel

from snnet_vitdet.modeling import find_stitched_vit, train_on_given_masks
from snnet_vitdet.stitching import CostTable

from .distillation import InPlaceDistillation, distils, teacher_of
from .precision import training_precision
from .rehearsal import rehearse, synthetic_batch
from .samplers import build_sampler
from .trainer import StitchedAMPTrainer, StitchedTrainer

__all__ = ["build_trainer", "distil", "rehearse_training", "wrap_for_processes"]

logger = logging.getLogger(__name__)

_COMPRESSION = {torch.float16: fp16_compress_hook, torch.bfloat16: bf16_compress_hook}


def build_trainer(
    config: DictConfig,
    model: nn.Module,
    data_loader: Iterable[Sequence],
    optimizer: torch.optim.Optimizer,
    costs: CostTable | None,
) -> StitchedTrainer:
    """The trainer for the device, with the sampler of a stitched model.

    Args:
        config: The whole config.
        model: The detector; wrapped here if there are several processes. Its mask head learns from
            the objects that have a mask.
        data_loader: Of this process.
        optimizer: Of the model's parameters.
        costs: Of its stitches; None of a baseline, which has none.
    """
    kwargs = {
        "scope": config.train.stitch_scope,
        "accumulation_steps": config.train.accumulation.steps,
        "accumulation_stitch": config.train.accumulation.stitch,
        "clip_grad_norm": config.train.clip_grad_norm,
        "seed": config.train.seed,
    }
    kwargs["backbone"] = find_stitched_vit(model)
    if kwargs["backbone"] is not None:
        kwargs["sampler"] = build_sampler(config, costs)
    precision = training_precision(config)
    train_on_given_masks(model)
    model = wrap_for_processes(config, model, precision)
    if precision == torch.float32:
        return StitchedTrainer(model, data_loader, optimizer, **kwargs)
    scaler = torch.amp.GradScaler(enabled=precision == torch.float16)
    return StitchedAMPTrainer(
        model, data_loader, optimizer, precision=precision, grad_scaler=scaler, **kwargs
    )


def wrap_for_processes(config: DictConfig, model: nn.Module, precision: torch.dtype) -> nn.Module:
    """The model as several processes train it together; itself if there is one process.

    Gradients are exchanged in the type of mixed precision, if they are to be compressed. Float16 is
    for gradients that the loss scale has brought into its range: without one, which bfloat16 does
    not need, a part of them would become zero or infinite.
    """
    ddp = dict(config.train.ddp)
    compressed = ddp.pop("fp16_compression", False)
    if not config.train.device.startswith("cuda"):
        ddp["device_ids"] = None  # a CPU has no index
    model = create_ddp_model(model, **ddp)
    if compressed and precision in _COMPRESSION and isinstance(model, DistributedDataParallel):
        model.register_comm_hook(None, _COMPRESSION[precision])
    return model


def distil(config: DictConfig, model: GeneralizedRCNN, costs: CostTable | None) -> None:
    """Lets the largest stitch teach the others, if the config asks for it.

    Args:
        config: The whole config.
        model: The detector, not wrapped for several processes.
        costs: Of its stitches; None of a baseline, which has nothing to distil.
    """
    settings = config.train.distillation
    if distils(settings):
        InPlaceDistillation(model, teacher_of(costs.space, costs.gflops), **settings)


def rehearse_training(
    config: DictConfig,
    model: GeneralizedRCNN,
    optimizer: torch.optim.Optimizer,
    costs: CostTable | None,
) -> None:
    """Finds out in the first minute whether the largest stitch fits into the memory.

    Args:
        config: The whole config.
        model: The detector, not wrapped for several processes.
        optimizer: Of its parameters.
        costs: Of its stitches; None of a baseline.

    Raises:
        InputError: If it does not.
    """
    train, steps = config.train, config.train.accumulation.steps
    mapper = config.dataloader.train.mapper
    batch = synthetic_batch(
        config.dataloader.train.total_batch_size // (comm.get_world_size() * steps),
        config.data.image_size,
        model.roi_heads.num_classes,
        mapper.get("instance_mask_format", "polygon") if config.data.masks else None,
    )
    peak = rehearse(
        model.train(),
        optimizer,
        () if costs is None else costs.gflops,
        batch,
        precision=training_precision(config),
        accumulates=steps > 1,
        num_processes=comm.get_world_size(),
        # The dearest one is not taught itself.
        num_stitches=2 if distils(train.distillation) else 1,
    )
    if peak is not None:
        total = torch.cuda.get_device_properties(train.device).total_memory
        logger.info(
            "Rehearsed the most expensive stitch, optimizer's state included: peak %.1f of %.1f "
            "GiB.",
            peak / 2**30,
            total / 2**30,
        )
