"""The parts that an exported model may have, and the model made of what a file says of them.

Every part has a list of the arguments it may be given, each with its type and bounds. What is not
on these lists is refused, so nothing that a file names is ever looked up or called.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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

__all__ = ["MAX_CLASSES", "MAX_SIDE", "PART", "PARTS", "SIDE", "build", "build_augmentations"]

PART = "part"
"""The key that names a part."""

MAX_SIDE = 4096
"""Largest side in pixels of an image that a model is run on."""

MAX_CLASSES = 65_536
"""Most classes of a model."""

SIDE = whole(1, MAX_SIDE)
"""A side in pixels."""

_MAX_DEPTH = 128
_MAX_WIDTH = 16_384
_MAX_LEVELS = 16


def _part(*names: str) -> Check:
    return lambda value, where: _build(value, where, names)


def _list_or(of_list: Check, other: Check) -> Check:
    return lambda value, where: (of_list if isinstance(value, list) else other)(value, where)


def _losses(*names: str) -> Check:
    by_name = record(dict.fromkeys(names, _WEIGHT), names)
    return lambda value, where: (by_name if isinstance(value, dict) else _WEIGHT)(value, where)


_WIDTH = whole(1, _MAX_WIDTH)
_COUNT = whole(1, 1_000_000)
_SHARE = number(0, 1)
_WEIGHT = number(0, 1e6)
_NORM = one_of(
    *(None, "", "BN", "SyncBN", "FrozenBN", "GN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "LN")
)
_LEVELS = several(text(), 1, _MAX_LEVELS)
_MEAN = several(number(-1e4, 1e4), 3, 3)
# Divided by less, a pixel is infinite.
_STD = several(number(1e-3, 1e4), 3, 3)
_SIZES = several(number(0.1, 1e5), 1, 16)
_RATIOS = several(number(1e-3, 1e3), 1, 16)
_POINT = several(SIDE, 2, 2)
_INTERPOLATION = whole(0, 5)  # Pillow's
_NUM_CLASSES = whole(1, MAX_CLASSES)
_NOTHING = one_of(None)


@dataclass(frozen=True)
class _Part:
    make: Callable[..., object]
    arguments: Mapping[str, Check]


def _listed(make: Callable[..., object], **arguments: Check) -> _Part:
    return _Part(make, arguments)


def _segments(value: object, where: str) -> list:
    segments = several(several(whole(0, _MAX_DEPTH), 3, 3), 1, _MAX_DEPTH)(value, where)
    next_block: dict[int, int] = {}
    for anchor, start, stop in segments:
        if start < next_block.get(anchor, 0):
            raise InputError(f"{where} runs a block twice")
        next_block[anchor] = stop
    return segments


_ROI_HEADS = {
    "num_classes": _NUM_CLASSES,
    "batch_size_per_image": _COUNT,
    "positive_fraction": _SHARE,
    "proposal_append_gt": truth,
    "box_in_features": _LEVELS,
    "box_pooler": _part("ROIPooler"),
    "mask_in_features": optional(_LEVELS),
    "mask_pooler": optional(_part("ROIPooler")),
    "mask_head": optional(_part("MaskRCNNConvUpsampleHead")),
    "keypoint_in_features": _NOTHING,
    "keypoint_pooler": _NOTHING,
    "keypoint_head": _NOTHING,
    "train_on_pred_boxes": truth,
}

_LISTED = (
    _listed(
        AnchorViT,
        img_size=SIDE,
        patch_size=whole(1, 256),
        embed_dim=_WIDTH,
        depth=whole(1, _MAX_DEPTH),
        num_heads=whole(1, 256),
        mlp_ratio=number(1 / 16, 16),
        drop_path_rate=number(0, 0.99),
        layer_scale_init=optional(number(-1e3, 1e3)),
        norm_eps=number(1e-12, 1),
        act_layer=text(),
        pre_norm=truth,
        window_size=whole(0, MAX_SIDE),
        global_block_indexes=optional(several(whole(-_MAX_DEPTH, _MAX_DEPTH), 0, _MAX_DEPTH)),
        abs_pos=optional(text()),
        use_rel_pos=one_of(True, False, "global"),
        rel_pos_table=truth,
        pretrain_img_size=SIDE,
        pretrain_patch_size=optional(whole(1, 256)),
        pretrain_pixel_mean=_MEAN,
        pretrain_pixel_std=_STD,
        attention=text(),
        activation_checkpointing=truth,
        out_feature=text(),
    ),
    _listed(Box2BoxTransform, weights=several(number(1e-3, 1e4), 4, 4), scale_clamp=number(0, 10)),
    _listed(
        CascadeROIHeads,
        **_ROI_HEADS,
        box_heads=several(_part("FastRCNNConvFCHead"), 1, 8),
        box_predictors=several(_part("FastRCNNOutputLayers"), 1, 8),
        proposal_matchers=several(_part("Matcher"), 1, 8),
    ),
    _listed(
        DefaultAnchorGenerator,
        sizes=_list_or(several(_list_or(_SIZES, number(0.1, 1e5)), 1, 16), _SIZES),
        aspect_ratios=several(_list_or(_RATIOS, number(1e-3, 1e3)), 1, 16),
        strides=several(SIDE, 1, _MAX_LEVELS),
        offset=_SHARE,
    ),
    _listed(
        ExtractedViT,
        anchors=several(_part("AnchorViT"), 1, 2),
        segments=_segments,
        projects_to=optional(_WIDTH),
        out_feature=text(),
    ),
    _listed(
        FastRCNNConvFCHead,
        input_shape=_part("ShapeSpec"),
        conv_dims=several(_WIDTH, 0, 32),
        fc_dims=several(_WIDTH, 0, 32),
        conv_norm=_NORM,
    ),
    _listed(
        FastRCNNOutputLayers,
        input_shape=_part("ShapeSpec"),
        box2box_transform=_part("Box2BoxTransform"),
        num_classes=_NUM_CLASSES,
        test_score_thresh=_SHARE,
        test_nms_thresh=_SHARE,
        test_topk_per_image=whole(0, 1000),
        cls_agnostic_bbox_reg=truth,
        smooth_l1_beta=_WEIGHT,
        box_reg_loss_type=text(),
        loss_weight=_losses("loss_cls", "loss_box_reg"),
        use_fed_loss=one_of(False),
        use_sigmoid_ce=truth,
        get_fed_loss_cls_weights=_NOTHING,
        fed_loss_num_classes=_COUNT,
    ),
    _listed(
        GeneralizedRCNN,
        backbone=_part("SimpleFeaturePyramid"),
        proposal_generator=_part("RPN"),
        roi_heads=_part("StandardROIHeads", "CascadeROIHeads"),
        pixel_mean=_MEAN,
        pixel_std=_STD,
        input_format=optional(text()),
        vis_period=whole(0, 2**31),
    ),
    _listed(LastLevelMaxPool),
    _listed(
        MaskRCNNConvUpsampleHead,
        input_shape=_part("ShapeSpec"),
        num_classes=_NUM_CLASSES,
        conv_dims=several(_WIDTH, 1, 32),
        conv_norm=_NORM,
        loss_weight=_WEIGHT,
        vis_period=whole(0, 2**31),
    ),
    _listed(
        Matcher,
        thresholds=several(_SHARE, 1, 8),
        labels=several(one_of(-1, 0, 1), 2, 9),
        allow_low_quality_matches=truth,
    ),
    _listed(
        ROIPooler,
        output_size=_list_or(several(whole(1, 64), 2, 2), whole(1, 64)),
        scales=several(number(1 / MAX_SIDE, 1), 1, _MAX_LEVELS),
        sampling_ratio=whole(0, 16),
        pooler_type=one_of("ROIAlign", "ROIAlignV2", "ROIPool"),
        canonical_box_size=SIDE,
        canonical_level=whole(0, _MAX_LEVELS),
    ),
    _listed(
        RPN,
        in_features=_LEVELS,
        head=_part("StandardRPNHead"),
        anchor_generator=_part("DefaultAnchorGenerator"),
        anchor_matcher=_part("Matcher"),
        box2box_transform=_part("Box2BoxTransform"),
        batch_size_per_image=_COUNT,
        positive_fraction=_SHARE,
        pre_nms_topk=several(whole(1, 100_000), 2, 2),
        post_nms_topk=several(whole(1, 10_000), 2, 2),
        nms_thresh=_SHARE,
        min_box_size=number(0, MAX_SIDE),
        anchor_boundary_thresh=number(-1e6, 1e6),
        loss_weight=_losses("loss_rpn_cls", "loss_rpn_loc"),
        box_reg_loss_type=text(),
        smooth_l1_beta=_WEIGHT,
    ),
    _listed(
        ShapeSpec,
        channels=optional(_WIDTH),
        height=optional(whole(1, 64)),
        width=optional(whole(1, 64)),
        stride=optional(SIDE),
    ),
    _listed(
        SimpleFeaturePyramid,
        net=_part("ExtractedViT"),
        in_feature=text(),
        out_channels=_WIDTH,
        scale_factors=several(one_of(4.0, 2.0, 1.0, 0.5), 1, _MAX_LEVELS),
        top_block=optional(_part("LastLevelMaxPool")),
        norm=_NORM,
        square_pad=whole(0, MAX_SIDE),
    ),
    _listed(
        StandardROIHeads,
        **_ROI_HEADS,
        box_head=_part("FastRCNNConvFCHead"),
        box_predictor=_part("FastRCNNOutputLayers"),
        proposal_matcher=_part("Matcher"),
    ),
    _listed(
        StandardRPNHead,
        in_channels=_WIDTH,
        num_anchors=whole(1, 256),
        box_dim=one_of(4),
        conv_dims=several(whole(-1, _MAX_WIDTH), 1, 32),
    ),
    _listed(
        T.FixedSizeCrop,
        crop_size=_POINT,
        pad=truth,
        pad_value=number(0, 255),
        seg_pad_value=whole(0, 255),
    ),
    _listed(T.Resize, shape=_list_or(_POINT, SIDE), interp=_INTERPOLATION),
    _listed(
        T.ResizeScale,
        min_scale=number(0.01, 4),
        max_scale=number(0.01, 4),
        target_height=SIDE,
        target_width=SIDE,
        interp=_INTERPOLATION,
    ),
    _listed(
        # Without a largest side, a long and narrow image would be enlarged without an end.
        partial(T.ResizeShortestEdge, max_size=MAX_SIDE),
        short_edge_length=_list_or(several(SIDE, 1, 64), SIDE),
        max_size=SIDE,
        sample_style=one_of("range", "choice"),
        interp=_INTERPOLATION,
    ),
)

_BY_NAME = {getattr(part.make, "func", part.make).__name__: part for part in _LISTED}

PARTS = {name: getattr(part.make, "func", part.make) for name, part in _BY_NAME.items()}
"""The class of every part by its name."""

# These hold tensors that are in no state dict; of all others the file has every number.
_WITH_VALUES = ("DefaultAnchorGenerator", "GeneralizedRCNN")
_AUGMENTATIONS = ("FixedSizeCrop", "Resize", "ResizeScale", "ResizeShortestEdge")


def build(plan: object) -> GeneralizedRCNN:
    """Makes the detector that a plan describes; its weights have no memory yet (meta device).

    Raises:
        InputError: If the plan has anything that is not on the lists, or does not fit together.
    """
    model = _build(plan, "model", ("GeneralizedRCNN",))
    try:
        _run_without_values(model)
    except Exception as error:  # whatever a layer raises at features that do not fit it
        raise InputError(
            f"the parts of its model do not fit together: {first_line(error)}"
        ) from error
    return model


def build_augmentations(plan: object) -> list[T.Augmentation]:
    """Makes what resizes images, of the list that a file has of it.

    Raises:
        InputError: If the list has anything else.
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


def _build(plan: object, where: str, kinds: tuple[str, ...]) -> object:
    if not isinstance(plan, dict) or PART not in plan:
        raise InputError(f"{where} must be a part: {' or '.join(kinds)}")
    name = one_of(*kinds)(plan[PART], f"{where}.{PART}")
    part = _BY_NAME[name]
    given = items_of(plan, where, (PART, *part.arguments))
    arguments = {
        key: part.arguments[key](value, f"{where}.{key}")
        for key, value in given.items()
        if key != PART
    }
    with contextlib.nullcontext() if name in _WITH_VALUES else torch.device("meta"):
        try:
            return part.make(**arguments)
        except Exception as error:  # whatever a constructor raises at what it cannot take
            raise InputError(
                f"{where}: {name} cannot be made as described: {first_line(error)}"
            ) from error


@torch.no_grad()
def _run_without_values(model: GeneralizedRCNN) -> None:
    """Runs every part on the shapes that the others give it, with no numbers in them."""
    model.eval()
    pyramid, rpn, heads = model.backbone, model.proposal_generator, model.roi_heads
    # detectron2's spelling
    step, square = (pyramid.padding_constraints[k] for k in ("size_divisiblity", "square_size"))
    # A square is taken as it is: detectron2 overlooks the other key beside it.
    side = square or step
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
    predictors = zip(
        *(
            (heads.box_head, heads.box_predictor)
            if cascade
            else ([heads.box_head], [heads.box_predictor])
        ),
        strict=True,
    )
    for head, predictor in predictors:
        scores, deltas = predictor(
            head(_pooled(heads.box_pooler, features, heads.box_in_features, shapes))
        )
        expect("the number of scores", scores.shape[1], heads.num_classes + 1)
        regressed = 1 if cascade or deltas.shape[1] == 4 else heads.num_classes
        expect("the number of box offsets", deltas.shape[1], 4 * regressed)
    if heads.mask_on:
        masks = heads.mask_head.layers(
            _pooled(heads.mask_pooler, features, heads.mask_in_features, shapes)
        )
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
