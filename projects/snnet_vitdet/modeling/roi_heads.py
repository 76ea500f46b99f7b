"""Hooks on detectron2's RoI heads: training on objects without a mask, results in float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.modeling.roi_heads import ROIHeads
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from detectron2.structures import Boxes, Instances
from torch import nn

__all__ = ["running_in", "train_on_given_masks"]


def train_on_given_masks(model: nn.Module) -> None:
    """Trains the mask head of a detector on the objects that have a mask, not on boxes alone.

    ``CheckedMapper`` marks the objects by ``gt_has_mask``. Proposals without a mask do not reach
    the mask head; if none is left, its loss and gradients are 0.

    Args:
        model: A detectron2 R-CNN, with or without a mask head.
    """
    for module in model.modules():
        if isinstance(module, BaseMaskRCNNHead):
            module.register_forward_pre_hook(_drop_boxes_alone)


def _drop_boxes_alone(
    head: nn.Module, given: tuple[torch.Tensor, list[Instances]]
) -> tuple[torch.Tensor, list[Instances]] | None:
    # Features are (proposals of all images, C, H, W), proposals are per image.
    features, proposals = given
    if not head.training or not any(each.has("gt_has_mask") for each in proposals):
        return None
    keep = [
        each.gt_has_mask
        if each.has("gt_has_mask")
        else torch.ones(len(each), dtype=torch.bool, device=features.device)
        for each in proposals
    ]
    chosen = [each[kept] for each, kept in zip(proposals, keep, strict=True)]
    return features[torch.cat(keep)], chosen


@contextmanager
def running_in(model: nn.Module, precision: torch.dtype) -> Iterator[None]:
    """Runs a detector under autocast and turns its results into float32 before they are processed.

    detectron2 pastes masks into the image in the type of the mask head's output. In bfloat16 the
    sampling positions are rounded to 1/256 of the box, which moves the edges of the masks.

    Args:
        model: A detectron2 model in evaluation mode.
        precision: float16 or bfloat16; float32 changes nothing.
    """
    if precision == torch.float32:
        yield
        return
    # A joined detector has two.
    heads = [module for module in model.modules() if isinstance(module, ROIHeads)]
    hooks = [each.register_forward_hook(_in_float32) for each in heads]
    try:
        with torch.autocast(next(model.parameters()).device.type, dtype=precision):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _in_float32(
    heads: nn.Module,
    given: tuple[object, ...],
    output: tuple[list[Instances], dict[str, torch.Tensor]],
) -> None:
    for instances in output[0]:
        fields = instances.get_fields()
        for name, value in fields.items():
            if isinstance(value, Boxes):
                fields[name] = Boxes(value.tensor.float())
            elif isinstance(value, torch.Tensor) and value.is_floating_point():
                fields[name] = value.float()
