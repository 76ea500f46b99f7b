"""The wrapper of a model for several processes: which gradients are exchanged when, and how."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from inspect import signature

import torch
from detectron2.engine.defaults import create_ddp_model
from detectron2.modeling import SimpleFeaturePyramid
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import (
    bf16_compress_hook,
    fp16_compress_hook,
)
from torch.nn.parallel import DistributedDataParallel

from snnet_vitdet.modeling import StitchedViT

from .settings import Config

__all__ = ["wrap_for_processes"]

_COMPRESSION = {torch.float16: fp16_compress_hook, torch.bfloat16: bf16_compress_hook}


def wrap_for_processes(config: Config, model: nn.Module, precision: torch.dtype) -> nn.Module:
    """Wraps a model for several processes; returns it unchanged for one process.

    With ``train.ddp.fp16_compression``, gradients are exchanged in the type of mixed precision.
    Float16 is only safe for gradients that loss scaling has brought into its range; bfloat16
    training has no loss scaling and would get zero or infinite gradients from it.

    With ``train.ddp.skip_all_reduce_unused_params``, buckets of gradients that no process has are
    not exchanged. It has no effect if the stitches of an iteration differ.
    """
    ddp = dict(config.train.ddp)
    compressed = ddp.pop("fp16_compression", False)
    skip = "skip_all_reduce_unused_params"
    if skip not in signature(DistributedDataParallel).parameters:
        ddp.pop(skip)  # an older torch
    elif not _one_stitch_an_iteration(config):
        # Each process decides by its own last micro-batch: it may wait forever for another one.
        ddp[skip] = False
    if not config.train.device.startswith("cuda"):
        ddp["device_ids"] = None  # a CPU has no index
    with _in_order_of_use(model):
        model = create_ddp_model(model, **ddp)
    if compressed and precision in _COMPRESSION and isinstance(model, DistributedDataParallel):
        model.register_comm_hook(None, _COMPRESSION[precision])
    return model


def _one_stitch_an_iteration(config: Config) -> bool:
    """Whether all processes and micro-batches of an iteration run the same stitch."""
    accumulation = config.train.accumulation
    same = accumulation.steps == 1 or accumulation.stitch == "same"
    return config.train.stitch_scope == "shared" and same


@contextmanager
def _in_order_of_use(model: nn.Module) -> Iterator[None]:
    """Registers the parts of a model about in the order of their use, inside the context.

    DDP exchanges gradients in the reverse order of their registration, and none before its turn.
    As registered, the stitching layers come before the ViTs and the pyramid after them: the
    gradients of the ViTs would wait for the first stitching layer of the stitch. Afterwards the
    order is the one before: the optimizer's state in checkpoints depends on it.
    """
    with ExitStack() as stack:
        for module in list(model.modules()):
            if isinstance(module, SimpleFeaturePyramid):
                stack.enter_context(_registered_first(module, "net"))
            elif isinstance(module, StitchedViT):
                stack.enter_context(_registered_first(module, "stitching_layers"))
        yield


@contextmanager
def _registered_first(module: nn.Module, name: str) -> Iterator[None]:
    children = dict(module.named_children())
    _register(module, {name: children[name], **children})
    try:
        yield
    finally:
        _register(module, children)


def _register(module: nn.Module, children: Mapping[str, nn.Module]) -> None:
    for name, child in children.items():
        delattr(module, name)
        setattr(module, name, child)
