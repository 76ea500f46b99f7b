"""A detector's config as plain data, and the detector back from it, without running any of it.

A LazyConfig names what to call by import path: who instantiates one from a stranger's file runs the
stranger's code. A plan names classes of a closed list by their bare names and gives them numbers,
texts, lists and further parts; nothing else is ever called.
"""

import contextlib
import dataclasses
from collections.abc import Mapping

import torch
from detectron2.data import transforms as T
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNN, SimpleFeaturePyramid
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
    StandardROIHeads,
)
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig

from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import AnchorViT, ExtractedViT, PyramidPerExit, StitchedViT
from snnet_vitdet.stitching import SMALL, Stitch

__all__ = ["build", "plan_of", "plan_of_stitch"]

_PARTS = {
    part.__name__: part
    for part in (
        AnchorViT,
        Box2BoxTransform,
        CascadeROIHeads,
        DefaultAnchorGenerator,
        ExtractedViT,
        FastRCNNConvFCHead,
        FastRCNNOutputLayers,
        GeneralizedRCNN,
        LastLevelMaxPool,
        MaskRCNNConvUpsampleHead,
        Matcher,
        ROIPooler,
        RPN,
        ShapeSpec,
        SimpleFeaturePyramid,
        StandardROIHeads,
        StandardRPNHead,
        T.FixedSizeCrop,
        T.Resize,
        T.ResizeScale,
        T.ResizeShortestEdge,
    )
}
_PART = "part"
_LORA = ("lora_rank", "lora_alpha")
# These hold tensors that are in no state dict; of all others the file has every number.
_WITH_VALUES = (DefaultAnchorGenerator, GeneralizedRCNN)


def plan_of(node: object) -> object:
    """A node of a config as plain data.

    Args:
        node: A DictConfig, a ListConfig or a value; interpolations are resolved.

    Raises:
        InputError: If it calls something that is not on the list, or holds other objects.
    """
    if isinstance(node, DictConfig):
        target = node._metadata.object_type
        if not dataclasses.is_dataclass(target):
            target = node.get("_target_")
        plan = {str(key): plan_of(node[key]) for key in node if key != "_target_"}
        return plan if target is None else {_PART: _name_of(target), **plan}
    if isinstance(node, ListConfig | list | tuple):
        return [plan_of(value) for value in node]
    if node is None or isinstance(node, bool | int | float | str):
        return node
    raise InputError(f"{node!r} in the config is no plain value, so the model cannot be exported")


def plan_of_stitch(model_config: DictConfig, stitch: Stitch | None) -> dict:
    """The plan of the detector that runs one stitch alone.

    Args:
        model_config: The trained detector's; not changed.
        stitch: Of its space; None for a detector on a single anchor.

    Raises:
        InputError: If the detector has parts that are not on the list.
    """
    plan = plan_of(model_config)
    net = plan["backbone"]["net"]
    walk = {_PART: ExtractedViT.__name__, "out_feature": net.get("out_feature", "last_feat")}
    if stitch is None:
        anchors, walk["segments"] = [net], [[0, 0, net["depth"]]]
    else:
        anchors, walk["segments"] = [net["small"], net["large"]], [list(s) for s in stitch.segments]
        if stitch.exit == SMALL and net.get("exit_projection", True):
            walk["projects_to"] = net["large"]["embed_dim"]
        if net.get("exit_norm"):
            walk["normalises"] = True
        # Of the pyramids, that of its exit, which is like any other.
        plan["backbone"][_PART] = SimpleFeaturePyramid.__name__
    # Low-rank updates are merged, so there are none.
    walk["anchors"] = [{k: v for k, v in a.items() if k not in _LORA} for a in anchors]
    plan["backbone"]["net"] = walk
    return plan


def build(plan: object) -> object:
    """Makes what a plan describes. Modules have no memory for their weights yet (meta device).

    Raises:
        InputError: If the plan names a part that is not on the list, or arguments do not fit.
    """
    if isinstance(plan, list):
        return [build(value) for value in plan]
    if not isinstance(plan, Mapping):
        return plan
    arguments = {key: build(value) for key, value in plan.items() if key != _PART}
    if _PART not in plan:
        return arguments
    part = _PARTS.get(str(plan[_PART]))
    if part is None:
        raise InputError(f"{plan[_PART]!r} is none of the parts that an exported model may have")
    with contextlib.nullcontext() if part in _WITH_VALUES else torch.device("meta"):
        try:
            return part(**arguments)
        except Exception as error:  # whatever a constructor raises at what it cannot take
            raise InputError(f"{part.__name__} cannot be made as described: {error}") from error


def _name_of(target: object) -> str:
    part = locate(target) if isinstance(target, str) else target
    name = getattr(part, "__name__", str(part))
    # Its stitches are what is exported, so a plan to build from never has them.
    if part not in (StitchedViT, PyramidPerExit) and _PARTS.get(name) is not part:
        raise InputError(
            f"{name} in the config is none of the parts that can be exported: "
            f"{', '.join(sorted(_PARTS))}"
        )
    return name
