"""The plan of an exported model: its parts and their arguments as plain data.

A LazyConfig names what to call by import path: instantiating one from an untrusted file runs that
file's code. An exported file has a plan in its place. A plan names parts of the closed list
``PARTS`` and gives them numbers, texts, lists and further parts. Each argument has a check of its
type and its bounds. Anything else is refused, so nothing that a file names is looked up or called.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

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
from omegaconf import ListConfig, OmegaConf

from snnet_vitdet.building import located
from snnet_vitdet.errors import InputError, first_line
from snnet_vitdet.modeling import (
    AnchorViT,
    ExtractedViT,
    HeadsPerExit,
    JoinedRCNN,
    PerExit,
    PyramidPerExit,
    StitchedViT,
    is_joined,
)
from snnet_vitdet.stitching import ANCHOR_NAMES, SMALL, Stitch
from snnet_vitdet.text import shown
from snnet_vitdet.validators import FLAG, TEXT, Validator, number, numbers, one_of, whole

__all__ = [
    "MAX_CLASSES",
    "PARTS",
    "SIDE",
    "build_augmentations",
    "build_detector",
    "checked",
    "plan_of",
    "plan_of_stitch",
]

PARTS = {
    part.__name__: part
    for part in (
        *(AnchorViT, ExtractedViT, GeneralizedRCNN, SimpleFeaturePyramid, LastLevelMaxPool),
        *(RPN, StandardRPNHead, DefaultAnchorGenerator, Box2BoxTransform, Matcher, ROIPooler),
        *(StandardROIHeads, CascadeROIHeads, FastRCNNConvFCHead, FastRCNNOutputLayers),
        *(MaskRCNNConvUpsampleHead, ShapeSpec),
        *(T.FixedSizeCrop, T.Resize, T.ResizeScale, T.ResizeShortestEdge),
    )
}
"""The class of every part by its name."""

MAX_CLASSES = 65_536
"""Largest number of classes of a model."""

# The key that names a part.
_PART = "part"
_LORA = ("lora_rank", "lora_alpha")
# The tensors of these parts are in no state dict, so these are built with values.
_WITH_VALUES = (DefaultAnchorGenerator, GeneralizedRCNN)
_MAX_SIDE = 4096
_MAX_DEPTH = 128
_MAX_WIDTH = 16_384

Check = Callable[[object, str], object]
"""Takes a value and its name. Returns what is made of the value, or raises InputError."""


def checked(value: object, where: str, validator: Validator) -> object:
    """Returns a value of a file if a validator allows it.

    Raises:
        InputError: If the value is not allowed; the sentence names it ``where``.
    """
    if must_be := validator(value):
        # Lists may be deep, so their values are not shown.
        found = f"a list of {len(value)}" if isinstance(value, list) else shown(value, 40)
        raise InputError(f"{where} must be {must_be}, got {found}")
    return value


def _value(validator: Validator) -> Check:
    return lambda value, where: checked(value, where, validator)


def _optional(check: Check) -> Check:
    return lambda value, where: None if value is None else check(value, where)


def _several(check: Check, most: int) -> Check:
    """A list of up to ``most`` values, each of which another check accepts."""

    def is_list(value: object) -> str:
        fits = isinstance(value, list) and len(value) <= most
        return "" if fits else f"a list of at most {most} values"

    return lambda value, where: [
        check(each, f"{where}[{i}]") for i, each in enumerate(checked(value, where, is_list))
    ]


def _one_or_several(check: Check, most: int) -> Check:
    several = _several(check, most)
    return lambda value, where: (several if isinstance(value, list) else check)(value, where)


def _part(*kinds: type) -> Check:
    return lambda value, where: _build(value, where, kinds)


def _loss_weights(value: object, where: str) -> object:
    if not isinstance(value, dict):
        return _WEIGHT(value, where)
    return {key: _WEIGHT(each, f"{where}.{key}") for key, each in value.items()}


SIDE = whole(1, _MAX_SIDE)
"""Allows a side of an image in pixels."""

_COUNT = _value(whole(1, 1_000_000))
_WIDTH = _value(whole(1, _MAX_WIDTH))
_SHARE = _value(number(0, 1))
_WEIGHT = _value(number(0, 1e6))
_FEATURES = _several(_value(TEXT), 16)
_ASPECT = _value(number(1e-3, 1e3))
_ANCHOR_SIZE = _value(number(0.1, 1e5))
_BINS = _value(whole(1, 64))
_NORMS = ("BN", "SyncBN", "FrozenBN", "GN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "LN")

# Each check with the names of its arguments. An argument means the same in every part.
_CHECKS: tuple[tuple[Check, str], ...] = (
    # Sizes of layers and images
    (_value(SIDE), "img_size pretrain_img_size canonical_box_size max_size"),
    (_value(SIDE), "target_height target_width"),
    (_value(whole(0, _MAX_SIDE)), "window_size square_pad"),
    (_value(number(0, _MAX_SIDE)), "min_box_size"),
    (_optional(_value(SIDE)), "stride"),
    (_one_or_several(_value(SIDE), 64), "crop_size shape short_edge_length strides"),
    (_WIDTH, "embed_dim out_channels in_channels"),
    (_optional(_WIDTH), "projects_to channels"),
    (_several(_WIDTH, 32), "fc_dims"),
    # -1 of an RPN head stands for as many as its input has.
    (_several(_value(whole(-1, _MAX_WIDTH)), 32), "conv_dims"),
    (_value(whole(1, _MAX_DEPTH)), "depth"),
    (_value(whole(1, 256)), "patch_size num_heads num_anchors"),
    (_optional(_value(whole(1, 256))), "pretrain_patch_size"),
    (_optional(_BINS), "height width"),
    (_one_or_several(_BINS, 2), "output_size"),
    # The ViT
    (_several(_value(numbers(3, whole(0, _MAX_DEPTH))), _MAX_DEPTH), "segments"),
    (_optional(_several(_value(whole(-_MAX_DEPTH, _MAX_DEPTH)), 128)), "global_block_indexes"),
    (_value(one_of(True, False, "global")), "use_rel_pos"),
    (_value(number(1 / 16, 16)), "mlp_ratio"),
    (_optional(_value(number(-1e3, 1e3))), "layer_scale_init"),
    (_value(number(1e-12, 1)), "norm_eps"),
    # Colours; dividing a pixel by less would give infinity.
    (_value(numbers(3, number(-1e4, 1e4))), "pixel_mean pretrain_pixel_mean"),
    (_value(numbers(3, number(1e-3, 1e4))), "pixel_std pretrain_pixel_std"),
    (_value(number(0, 255)), "pad_value seg_pad_value"),
    # Pyramid, RPN and heads
    (_several(_value(one_of(4.0, 2.0, 1.0, 0.5)), 16), "scale_factors"),
    (_value(one_of(None, "", *_NORMS)), "norm conv_norm"),
    (_several(_value(number(1 / _MAX_SIDE, 1)), 16), "scales"),
    (_one_or_several(_one_or_several(_ANCHOR_SIZE, 16), 16), "sizes"),
    (_one_or_several(_one_or_several(_ASPECT, 16), 16), "aspect_ratios"),
    (_value(number(-1e6, 1e6)), "anchor_boundary_thresh"),
    (_value(numbers(2, whole(1, 100_000))), "pre_nms_topk"),
    (_value(numbers(2, whole(1, 10_000))), "post_nms_topk"),
    (_value(numbers(4, number(1e-3, 1e4))), "weights"),
    (_several(_SHARE, 8), "thresholds"),
    (_several(_value(one_of(-1, 0, 1)), 9), "labels"),
    (_value(whole(1, MAX_CLASSES)), "num_classes"),
    (_value(whole(0, 1000)), "test_topk_per_image"),
    (_value(whole(0, 16)), "sampling_ratio canonical_level"),
    (_value(number(0, 10)), "scale_clamp"),
    (_value(one_of("ROIAlign", "ROIAlignV2", "ROIPool")), "pooler_type"),
    (_loss_weights, "loss_weight"),
    (_WEIGHT, "smooth_l1_beta"),
    (_COUNT, "batch_size_per_image fed_loss_num_classes"),
    (_value(whole(0)), "vis_period"),
    # Augmentations
    (_value(number(0.01, 4)), "min_scale max_scale"),
    (_value(one_of("range", "choice")), "sample_style"),
    (_value(whole(0, 5)), "interp"),  # Pillow's
    # Shares, texts and flags
    (_SHARE, "drop_path_rate offset nms_thresh positive_fraction"),
    (_SHARE, "test_score_thresh test_nms_thresh"),
    (_value(TEXT), "act_layer attention out_feature in_feature box_reg_loss_type"),
    (_optional(_value(TEXT)), "abs_pos input_format"),
    (_FEATURES, "in_features box_in_features"),
    (_optional(_FEATURES), "mask_in_features"),
    (_value(FLAG), "pre_norm rel_pos_table activation_checkpointing pad use_sigmoid_ce"),
    (_value(FLAG), "allow_low_quality_matches proposal_append_gt train_on_pred_boxes"),
    (_value(FLAG), "cls_agnostic_bbox_reg"),
    # Arguments with one allowed value
    (_value(one_of(4)), "box_dim"),
    (_value(one_of(False)), "use_fed_loss"),
    (_value(one_of(None)), "get_fed_loss_cls_weights keypoint_in_features keypoint_pooler"),
    (_value(one_of(None)), "keypoint_head"),
    # Further parts
    (_several(_part(AnchorViT), 2), "anchors"),
    (_part(ExtractedViT), "net"),
    (_part(SimpleFeaturePyramid), "backbone"),
    (_optional(_part(LastLevelMaxPool)), "top_block"),
    (_part(RPN), "proposal_generator"),
    (_part(StandardRPNHead), "head"),
    (_part(DefaultAnchorGenerator), "anchor_generator"),
    (_part(Matcher), "anchor_matcher proposal_matcher"),
    (_several(_part(Matcher), 8), "proposal_matchers"),
    (_part(Box2BoxTransform), "box2box_transform"),
    (_part(StandardROIHeads, CascadeROIHeads), "roi_heads"),
    (_part(ROIPooler), "box_pooler"),
    (_optional(_part(ROIPooler)), "mask_pooler"),
    (_part(FastRCNNConvFCHead), "box_head"),
    (_several(_part(FastRCNNConvFCHead), 8), "box_heads"),
    (_part(FastRCNNOutputLayers), "box_predictor"),
    (_several(_part(FastRCNNOutputLayers), 8), "box_predictors"),
    (_optional(_part(MaskRCNNConvUpsampleHead)), "mask_head"),
    (_part(ShapeSpec), "input_shape"),
)
_ARGUMENTS = {name: check for check, names in _CHECKS for name in names.split()}


def build_detector(plan: object) -> GeneralizedRCNN:
    """Makes the detector that a plan describes; its weights have no memory yet (meta device).

    Raises:
        InputError: If the plan has anything that is not listed here.
    """
    return _build(plan, "model", [GeneralizedRCNN])


def build_augmentations(plan: object) -> list[T.Augmentation]:
    """Makes the augmentations that resize images.

    Raises:
        InputError: If the plan has anything that is not listed here.
    """
    kinds = (T.FixedSizeCrop, T.Resize, T.ResizeScale, T.ResizeShortestEdge)
    return _several(_part(*kinds), 8)(plan, "augmentations")


def _build(plan: object, where: str, kinds: Sequence[type]) -> Any:
    names = [kind.__name__ for kind in kinds]
    if not isinstance(plan, dict) or _PART not in plan:
        raise InputError(f"{where} must be a part: {' or '.join(names)}")
    make = PARTS[checked(plan[_PART], f"{where}.{_PART}", one_of(*names))]
    arguments = {}
    for key, value in plan.items():
        if key in _ARGUMENTS:
            arguments[key] = _ARGUMENTS[key](value, f"{where}.{key}")
        elif key != _PART:
            raise InputError(f"{where} has the unknown key {shown(key, 40)}")
    if make is T.ResizeShortestEdge:
        # Without a largest side, a long and narrow image would be enlarged without bounds.
        make = partial(make, max_size=_MAX_SIDE)
    with contextlib.nullcontext() if make in _WITH_VALUES else torch.device("meta"):
        try:
            return make(**arguments)
        except Exception as error:  # constructors raise many types for what they cannot take
            raise InputError(
                f"{where}: {plan[_PART]} cannot be made as described: {first_line(error)}"
            ) from error


def plan_of_stitch(model_config: Any, stitch: Stitch | None) -> dict:
    """The plan of the detector that runs one stitch alone.

    Args:
        model_config: The config of the trained detector; not changed.
        stitch: A stitch of its space; None for a detector on a single anchor.

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
        # The pyramid of its exit is like any other.
        plan["backbone"][_PART] = SimpleFeaturePyramid.__name__
        if is_joined(model_config):
            plan[_PART] = GeneralizedRCNN.__name__
            for name in ("proposal_generator", "roi_heads"):
                plan[name] = plan[name][ANCHOR_NAMES[stitch.exit]]
    # Low-rank updates are merged, so there are none.
    walk["anchors"] = [{k: v for k, v in a.items() if k not in _LORA} for a in anchors]
    plan["backbone"]["net"] = walk
    return plan


def plan_of(node: object) -> Any:
    """A node of a config as plain data, with interpolations resolved.

    Raises:
        InputError: If it calls something that is not on the list, or holds other objects.
    """
    if OmegaConf.is_dict(node):
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


def _name_of(target: object) -> str:
    part = located(target)
    name = getattr(part, "__name__", str(part))
    # These hold all stitches; the plan of one stitch does not have them.
    of_many = (HeadsPerExit, JoinedRCNN, PerExit, PyramidPerExit, StitchedViT)
    if part not in of_many and PARTS.get(name) is not part:
        raise InputError(
            f"{name} in the config is none of the parts that can be exported: "
            f"{', '.join(sorted(PARTS))}"
        )
    return name
