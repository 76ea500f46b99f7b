"""The parts that an exported model may have, and the model made of what a file says about them.

A file names parts of the closed list ``PARTS``. Every argument of a part has a check of its type
and bounds. Anything else is refused, so nothing that a file names is looked up or called.
"""

import contextlib
from collections.abc import Mapping, Sequence
from functools import partial

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

from snnet_vitdet.errors import InputError, first_line
from snnet_vitdet.modeling import AnchorViT, ExtractedViT

from .export_values import (
    Check,
    either,
    items_of,
    number,
    one_of,
    optional,
    record,
    several,
    text,
    truth,
    whole,
)

__all__ = ["MAX_CLASSES", "PART", "PARTS", "SIDE", "build", "build_augmentations"]

PART = "part"
"""The key that names a part."""

MAX_CLASSES = 65_536
"""Largest number of classes of a model."""

_AUGMENTATIONS = (T.FixedSizeCrop, T.Resize, T.ResizeScale, T.ResizeShortestEdge)

PARTS = {
    part.__name__: part
    for part in (
        *(AnchorViT, ExtractedViT, GeneralizedRCNN, SimpleFeaturePyramid, LastLevelMaxPool),
        *(RPN, StandardRPNHead, DefaultAnchorGenerator, Box2BoxTransform, Matcher, ROIPooler),
        *(StandardROIHeads, CascadeROIHeads, FastRCNNConvFCHead, FastRCNNOutputLayers),
        *(MaskRCNNConvUpsampleHead, ShapeSpec),
        *_AUGMENTATIONS,
    )
}
"""The class of every part by its name."""

# These hold tensors that are in no state dict; a file has every number of all other parts.
_WITH_VALUES = (DefaultAnchorGenerator, GeneralizedRCNN)

_MAX_SIDE = 4096
_MAX_DEPTH = 128
_MAX_WIDTH = 16_384
_MAX_LEVELS = 16


def _part(*kinds: type) -> Check:
    names = [kind.__name__ for kind in kinds]
    return lambda value, where: _build(value, where, names)


def _segments(value: object, where: str) -> list:
    segments = several(several(whole(0, _MAX_DEPTH), 3, 3), 1, _MAX_DEPTH)(value, where)
    next_block: dict[int, int] = {}
    for anchor, start, stop in segments:
        if start < next_block.get(anchor, 0):
            raise InputError(f"{where} runs a block twice")
        next_block[anchor] = stop
    return segments


SIDE = whole(1, _MAX_SIDE)
"""A side of an image in pixels."""

_WIDTH = whole(1, _MAX_WIDTH)
_COUNT = whole(1, 1_000_000)
_SHARE = number(0, 1)
_WEIGHT = number(0, 1e6)
_LOSSES = ("loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc")
_NORM = one_of(
    *(None, "", "BN", "SyncBN", "FrozenBN", "GN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "LN")
)
_LEVELS = several(text(), 1, _MAX_LEVELS)
_MEAN = several(number(-1e4, 1e4), 3, 3)
# A pixel divided by less is infinite.
_STD = several(number(1e-3, 1e4), 3, 3)
_SIZES = several(number(0.1, 1e5), 1, 16)
_RATIOS = several(number(1e-3, 1e3), 1, 16)
_POINT = several(SIDE, 2, 2)
_CONV_DIMS = several(whole(-1, _MAX_WIDTH), 0, 32)  # -1 of an RPN head: as many as its input has

_ARGUMENTS: dict[str, Check] = {
    # AnchorViT
    "img_size": SIDE,
    "patch_size": whole(1, 256),
    "embed_dim": _WIDTH,
    "depth": whole(1, _MAX_DEPTH),
    "num_heads": whole(1, 256),
    "mlp_ratio": number(1 / 16, 16),
    "drop_path_rate": number(0, 0.99),
    "layer_scale_init": optional(number(-1e3, 1e3)),
    "norm_eps": number(1e-12, 1),
    "act_layer": text(),
    "pre_norm": truth,
    "window_size": whole(0, _MAX_SIDE),
    "global_block_indexes": optional(several(whole(-_MAX_DEPTH, _MAX_DEPTH), 0, _MAX_DEPTH)),
    "abs_pos": optional(text()),
    "use_rel_pos": one_of(True, False, "global"),
    "rel_pos_table": truth,
    "pretrain_img_size": SIDE,
    "pretrain_patch_size": optional(whole(1, 256)),
    "pretrain_pixel_mean": _MEAN,
    "pretrain_pixel_std": _STD,
    "attention": text(),
    "activation_checkpointing": truth,
    # ExtractedViT
    "anchors": several(_part(AnchorViT), 1, 2),
    "segments": _segments,
    "projects_to": optional(_WIDTH),
    "out_feature": text(),
    # The feature pyramid and the whole detector
    "net": _part(ExtractedViT),
    "in_feature": text(),
    "out_channels": _WIDTH,
    "scale_factors": several(one_of(4.0, 2.0, 1.0, 0.5), 1, _MAX_LEVELS),
    "top_block": optional(_part(LastLevelMaxPool)),
    "norm": _NORM,
    "square_pad": whole(0, _MAX_SIDE),
    "backbone": _part(SimpleFeaturePyramid),
    "proposal_generator": _part(RPN),
    "roi_heads": _part(StandardROIHeads, CascadeROIHeads),
    "pixel_mean": _MEAN,
    "pixel_std": _STD,
    "input_format": optional(text()),
    "vis_period": whole(0, 2**31),
    # The RPN
    "in_features": _LEVELS,
    "head": _part(StandardRPNHead),
    "in_channels": _WIDTH,
    "num_anchors": whole(1, 256),
    "box_dim": one_of(4),
    "anchor_generator": _part(DefaultAnchorGenerator),
    "sizes": either(list, several(either(list, _SIZES, number(0.1, 1e5)), 1, 16), _SIZES),
    "aspect_ratios": several(either(list, _RATIOS, number(1e-3, 1e3)), 1, 16),
    "strides": several(SIDE, 1, _MAX_LEVELS),
    "offset": _SHARE,
    "anchor_matcher": _part(Matcher),
    "pre_nms_topk": several(whole(1, 100_000), 2, 2),
    "post_nms_topk": several(whole(1, 10_000), 2, 2),
    "nms_thresh": _SHARE,
    "min_box_size": number(0, _MAX_SIDE),
    "anchor_boundary_thresh": number(-1e6, 1e6),
    # RPN and RoI heads
    "batch_size_per_image": _COUNT,
    "positive_fraction": _SHARE,
    "box2box_transform": _part(Box2BoxTransform),
    "weights": several(number(1e-3, 1e4), 4, 4),
    "scale_clamp": number(0, 10),
    "thresholds": several(_SHARE, 1, 8),
    "labels": several(one_of(-1, 0, 1), 2, 9),
    "allow_low_quality_matches": truth,
    "loss_weight": either(dict, record(dict.fromkeys(_LOSSES, _WEIGHT), _LOSSES), _WEIGHT),
    "box_reg_loss_type": text(),
    "smooth_l1_beta": _WEIGHT,
    # The RoI heads
    "num_classes": whole(1, MAX_CLASSES),
    "proposal_append_gt": truth,
    "train_on_pred_boxes": truth,
    "box_in_features": _LEVELS,
    "box_pooler": _part(ROIPooler),
    "box_head": _part(FastRCNNConvFCHead),
    "box_heads": several(_part(FastRCNNConvFCHead), 1, 8),
    "box_predictor": _part(FastRCNNOutputLayers),
    "box_predictors": several(_part(FastRCNNOutputLayers), 1, 8),
    "proposal_matcher": _part(Matcher),
    "proposal_matchers": several(_part(Matcher), 1, 8),
    "mask_in_features": optional(_LEVELS),
    "mask_pooler": optional(_part(ROIPooler)),
    "mask_head": optional(_part(MaskRCNNConvUpsampleHead)),
    "keypoint_in_features": one_of(None),
    "keypoint_pooler": one_of(None),
    "keypoint_head": one_of(None),
    "output_size": either(list, several(whole(1, 64), 2, 2), whole(1, 64)),
    "scales": several(number(1 / _MAX_SIDE, 1), 1, _MAX_LEVELS),
    "sampling_ratio": whole(0, 16),
    "pooler_type": one_of("ROIAlign", "ROIAlignV2", "ROIPool"),
    "canonical_box_size": SIDE,
    "canonical_level": whole(0, _MAX_LEVELS),
    "input_shape": _part(ShapeSpec),
    "channels": optional(_WIDTH),
    "height": optional(whole(1, 64)),
    "width": optional(whole(1, 64)),
    "stride": optional(SIDE),
    "conv_dims": _CONV_DIMS,
    "fc_dims": several(_WIDTH, 0, 32),
    "conv_norm": _NORM,
    "test_score_thresh": _SHARE,
    "test_nms_thresh": _SHARE,
    "test_topk_per_image": whole(0, 1000),
    "cls_agnostic_bbox_reg": truth,
    "use_fed_loss": one_of(False),
    "use_sigmoid_ce": truth,
    "get_fed_loss_cls_weights": one_of(None),
    "fed_loss_num_classes": _COUNT,
    # What resizes images
    "crop_size": _POINT,
    "pad": truth,
    "pad_value": number(0, 255),
    "seg_pad_value": whole(0, 255),
    "shape": either(list, _POINT, SIDE),
    "min_scale": number(0.01, 4),
    "max_scale": number(0.01, 4),
    "target_height": SIDE,
    "target_width": SIDE,
    "short_edge_length": either(list, several(SIDE, 1, 64), SIDE),
    "max_size": SIDE,
    "sample_style": one_of("range", "choice"),
    "interp": whole(0, 5),  # Pillow's
}


def build(plan: object) -> GeneralizedRCNN:
    """Makes the detector that a plan describes; its weights have no memory yet (meta device).

    Raises:
        InputError: If the plan has anything that is not listed here, or does not fit together.
    """
    model = _build(plan, "model", [GeneralizedRCNN.__name__])
    try:
        _run_without_values(model)
    except Exception as error:  # whatever a layer raises at features that do not fit it
        raise InputError(
            f"the parts of its model do not fit together: {first_line(error)}"
        ) from error
    return model


def build_augmentations(plan: object) -> list[T.Augmentation]:
    """Makes the augmentations that resize images.

    Raises:
        InputError: If the plan has anything that is not listed here.
    """
    augmentations = several(_part(*_AUGMENTATIONS), 0, 8)(plan, "augmentations")
    for index, each in enumerate(augmentations):
        if isinstance(each, T.ResizeShortestEdge) and each.is_range:
            low, high = each.short_edge_length
            if low > high:
                raise InputError(
                    f"augmentations[{index}] has a range of sides from {low} to {high}: its first "
                    "number must not be above its second"
                )
    return augmentations


def _build(plan: object, where: str, kinds: Sequence[str]) -> object:
    if not isinstance(plan, dict) or PART not in plan:
        raise InputError(f"{where} must be a part: {' or '.join(kinds)}")
    name = one_of(*kinds)(plan[PART], f"{where}.{PART}")
    arguments = {
        key: _ARGUMENTS[key](value, f"{where}.{key}")
        for key, value in items_of(plan, where, (PART, *_ARGUMENTS)).items()
        if key != PART
    }
    make = PARTS[name]
    if make is T.ResizeShortestEdge:
        # Without a largest side, a long and narrow image would be enlarged without bounds.
        make = partial(make, max_size=_MAX_SIDE)
    has_values = PARTS[name] in _WITH_VALUES
    with contextlib.nullcontext() if has_values else torch.device("meta"):
        try:
            return make(**arguments)
        except Exception as error:  # whatever a constructor raises at what it cannot take
            raise InputError(
                f"{where}: {name} cannot be made as described: {first_line(error)}"
            ) from error


@torch.no_grad()
def _run_without_values(model: GeneralizedRCNN) -> None:
    """Runs every part on the shapes that the other parts give it, without numbers in them."""
    model.eval()
    pyramid, rpn, heads = model.backbone, model.proposal_generator, model.roi_heads
    constraints = pyramid.padding_constraints
    # A square size is used as it is: detectron2 ignores the other key (its spelling) beside it.
    side = constraints["square_size"] or constraints["size_divisiblity"]
    features = pyramid(torch.empty(1, 3, side, side, device="meta"))
    shapes = pyramid.output_shape()

    def expect(what: str, found: object, wanted: object) -> None:
        if found != wanted:
            raise ValueError(f"{what} is {found} and has to be {wanted}")

    generator = rpn.anchor_generator
    levels = [features[name] for name in rpn.in_features]
    strides = [shapes[name].stride for name in rpn.in_features]
    expect("the anchors' strides", list(generator.strides), strides)
    for logits, deltas, count in zip(*rpn.rpn_head(levels), generator.num_anchors, strict=True):
        expect("the number of anchors", (logits.shape[1], deltas.shape[1]), (count, 4 * count))
    cascade = isinstance(heads, CascadeROIHeads)
    both = [heads.box_head, heads.box_predictor]
    for head, predictor in zip(*(both if cascade else ([each] for each in both)), strict=True):
        boxes = _pooled(heads.box_pooler, features, heads.box_in_features, shapes)
        scores, deltas = predictor(head(boxes))
        expect("the number of scores", scores.shape[1], heads.num_classes + 1)
        regressed = 1 if cascade or deltas.shape[1] == 4 else heads.num_classes
        expect("the number of box offsets", deltas.shape[1], 4 * regressed)
    if heads.mask_on:
        boxes = _pooled(heads.mask_pooler, features, heads.mask_in_features, shapes)
        masks = heads.mask_head.layers(boxes)
        expect("the width of a mask", masks.shape[3], masks.shape[2])
        if masks.shape[1] != 1:
            expect("the number of masks", masks.shape[1], heads.num_classes)


def _pooled(
    pooler: ROIPooler,
    features: Mapping[str, torch.Tensor],
    names: Sequence[str],
    shapes: Mapping[str, ShapeSpec],
) -> torch.Tensor:
    scales = [level.spatial_scale for level in pooler.level_poolers]
    wanted = [1 / shapes[name].stride for name in names]
    if scales != wanted:
        raise ValueError(f"the scales of a pooler are {scales} and have to be {wanted}")
    channels = {features[name].shape[1] for name in names}
    return torch.empty(1, channels.pop(), *pooler.output_size, device="meta")
