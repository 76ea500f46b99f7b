"""Training a mask head where some objects have a mask and others a box alone."""

import torch
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from detectron2.structures import Instances
from torch import nn

__all__ = ["train_on_given_masks"]


def train_on_given_masks(model: nn.Module) -> None:
    """Lets the mask head of a detector learn from the objects that have a mask.

    Proposals of the others, which ``CheckedMapper`` marks by ``gt_has_mask``, do not reach it. If
    none is left, its loss is 0 and so are its gradients. With masks of all objects nothing changes.

    Args:
        model: A detectron2 R-CNN, with a mask head or without one.
    """
    for module in model.modules():
        if isinstance(module, BaseMaskRCNNHead):
            module.register_forward_pre_hook(_without_boxes_alone)


def _without_boxes_alone(
    head: nn.Module, given: tuple[torch.Tensor, list[Instances]]
) -> tuple[torch.Tensor, list[Instances]] | None:
    """Features (proposals, C, H, W) and proposals, image by image."""
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
