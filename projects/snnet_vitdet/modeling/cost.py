"""Costs of a detector's parts, counted on the meta device: no weights, no arithmetic, no memory.

The count is that of the reference attention on one image, by default a square one. The numbers are
those of ``detectron2.utils.analysis.FlopCountAnalysis`` (a test compares them); fvcore's tracer
cannot run convolutions on the meta device. The box head is counted at the RPN's ``post_nms_topk``
proposals. The mask head runs once per detection; it is counted for ``num_detections``, by default
none, which is what an untrained detector of 80 classes finds in a random image.
"""

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from detectron2.modeling import GeneralizedRCNN, SimpleFeaturePyramid
from omegaconf import DictConfig
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from snnet_vitdet.building import build, told_as
from snnet_vitdet.errors import InputError
from snnet_vitdet.stitching import (
    LARGE,
    SMALL,
    Cost,
    CostParts,
    CostTable,
    StitchingLayer,
    merged,
)

from .anchor import AnchorViT
from .attention import attention_implementation
from .block import Block
from .joined import is_joined
from .operating import patch_size_of, tight_shape
from .pyramid import pyramid_from_features, pyramid_of_exit
from .stitched_vit import StitchedViT

__all__ = [
    "anchor_alone",
    "baseline_cost",
    "build_on_meta",
    "image_size_of",
    "point_costs",
    "stitch_costs",
    "tokens_of_image",
]


def _layer_norm_flops(input_shape: Sequence[int], *args: object, **kwargs: object) -> int:
    # fvcore's count of an affine normalisation; doubled, as torch counts a multiply-add as two.
    return 2 * 5 * math.prod(input_shape)


def build_on_meta(model_config: DictConfig) -> GeneralizedRCNN:
    """Builds a model from its config on the meta device, in evaluation mode.

    Raises:
        InputError: If it cannot be built.
    """
    with torch.device("meta"):
        return build("model", model_config).eval()


def image_size_of(model_config: DictConfig) -> int:
    """Side in pixels of the square that a model pads its images to; costs are counted there.

    Raises:
        InputError: If the config does not pad to a square, so that a size has to be given.
    """
    side = model_config.backbone.get("square_pad", 0)
    if not side:
        raise InputError(
            "model.backbone.square_pad is 0, so the model has no image size of its own: give one "
            "to count costs at"
        )
    return side


def stitch_costs(
    model_config: DictConfig,
    image_size: int | None = None,
    num_detections: int = 0,
    num_proposals: int | None = None,
    aspect_ratio: float | None = None,
) -> CostTable:
    """Cost of every stitch of a detector.

    Args:
        model_config: A detectron2 R-CNN on a SimpleFeaturePyramid on a StitchedViT.
        image_size: Longer side of the image in pixels; the config's own if None.
        num_detections: Number of detections the mask head is counted for.
        num_proposals: Number of proposals the box head is counted for; the config's own if None.
        aspect_ratio: Longer side of the image over its shorter side, which is padded as
            :func:`.operating_at` does with ``tight``; None for a square.

    Returns:
        The cost of every stitch of the model's space, with merged stitching layers.

    Raises:
        InputError: If the model has no stitched backbone.
    """
    sizes, counts = [image_size], [num_proposals]
    (table,) = point_costs(model_config, sizes, counts, num_detections, aspect_ratio).values()
    return table


@told_as("model cannot run an image with its config")
def point_costs(
    model_config: DictConfig,
    image_sizes: Sequence[int | None],
    proposals: Sequence[int | None],
    num_detections: int = 0,
    aspect_ratio: float | None = None,
) -> dict[tuple[int | None, int | None], CostTable]:
    """Cost of every stitch at several image sizes, with several numbers of proposals.

    Args:
        model_config: A detectron2 R-CNN on a SimpleFeaturePyramid on a StitchedViT.
        image_sizes: Longer sides of the image in pixels; None for the config's own.
        proposals: Numbers of proposals; None for the config's own.
        num_detections: Number of detections the mask head is counted for.
        aspect_ratio: As for :func:`stitch_costs`.

    Returns:
        A table by image size and number of proposals, as given.

    Raises:
        InputError: If the model has no stitched backbone.
    """
    model = build_on_meta(model_config)
    backbone = model.backbone.net
    if not isinstance(backbone, StitchedViT):
        raise InputError("model.backbone.net is no StitchedViT, so the model has no stitches")
    layers = backbone.stitching_layers
    tables = {}
    for size in image_sizes:
        side = size or image_size_of(model_config)
        grid = tokens_of_image(model, side, aspect_ratio)
        embeddings = tuple(_embedding(anchor, grid) for anchor in backbone.anchors)
        blocks = tuple(_blocks(anchor, grid) for anchor in backbone.anchors)
        stitching = {key: _stitching_layer(layer, grid) for key, layer in layers.items()}
        for count in proposals:
            exits = tuple(
                _exit(model, grid, anchor, num_detections, count) for anchor in (SMALL, LARGE)
            )
            parts = CostParts(embeddings, blocks, stitching, exits)
            tables[size, count] = CostTable(backbone.space, parts)
    return tables


@told_as("model cannot run an image with its config")
def baseline_cost(
    model_config: DictConfig,
    image_size: int | None = None,
    num_detections: int = 0,
    num_proposals: int | None = None,
    aspect_ratio: float | None = None,
) -> Cost:
    """Cost of a detector on one anchor; arguments as for :func:`stitch_costs`.

    Raises:
        InputError: If the model's backbone is not a single anchor.
    """
    model, image_size = build_on_meta(model_config), image_size or image_size_of(model_config)
    anchor = model.backbone.net
    if not isinstance(anchor, AnchorViT):
        raise InputError("model.backbone.net is no AnchorViT, so the model is no baseline")
    grid = tokens_of_image(model, image_size, aspect_ratio)
    counts = (num_detections, num_proposals)
    after = _after_vit(model, model.backbone, anchor.embed_dim, grid, *counts)
    parts = [_embedding(anchor, grid), *_blocks(anchor, grid), *after.values()]
    return sum(parts, Cost())


def anchor_alone(model_config: DictConfig, anchor: str) -> DictConfig:
    """The config of the baseline detector on one anchor of a stitched detector.

    For a joined detector, this is one of the two detectors it is made of.

    Args:
        model_config: Config of a detector on a StitchedViT; not changed.
        anchor: ``small`` or ``large``.
    """
    config = copy.deepcopy(model_config)
    if is_joined(config):
        config._target_ = GeneralizedRCNN
        config.proposal_generator = config.proposal_generator[anchor]
        num_classes = config.roi_heads._get_node("num_classes")
        config.roi_heads = config.roi_heads[anchor]
        config.roi_heads.num_classes = num_classes
    config.backbone.net = model_config.backbone.net[anchor]
    config.backbone._target_ = SimpleFeaturePyramid
    # The pyramid looks its input up by this name.
    config.backbone.net.out_feature = model_config.backbone.net.out_feature
    return config


def _count(function: Callable[..., object], *inputs: object) -> float:
    """Multiply-accumulates of one call on meta tensors."""
    norm = {torch.ops.aten.native_layer_norm: _layer_norm_flops}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=norm) as counter:
        function(*inputs)
    return counter.get_total_flops() / 2


def _params(module: nn.Module) -> int:
    """Number of parameters of a module whose low-rank updates are merged."""
    return sum(
        parameter.numel()
        for name, parameter in module.named_parameters()
        if not name.endswith(("lora_a", "lora_b"))
    )


def tokens_of_image(
    model: GeneralizedRCNN, image_size: int, aspect_ratio: float | None
) -> tuple[int, int]:
    """Height and width in tokens of a landscape image that a detector has padded.

    Args:
        model: The detector.
        image_size: Longer side of the image in pixels.
        aspect_ratio: Longer over shorter side; None for a square.
    """
    shape = (image_size, image_size)
    if aspect_ratio is not None:
        # detectron2's ResizeShortestEdge rounds the shorter side in this way.
        height = max(1, int(image_size / aspect_ratio + 0.5))
        shape = tight_shape(model, image_size, (height, image_size))
    patch = patch_size_of(model)
    return -(-shape[0] // patch), -(-shape[1] // patch)


def _tokens(grid: tuple[int, int], width: int) -> torch.Tensor:
    return torch.empty(1, *grid, width, device="meta")


def _embedding(anchor: AnchorViT, grid: tuple[int, int]) -> Cost:
    image = torch.empty(1, 3, *(side * anchor.patch_size for side in grid), device="meta")
    params = _params(anchor) - _params(anchor.blocks)
    return Cost(_count(anchor.embed, image), params)


def _blocks(anchor: AnchorViT, grid: tuple[int, int]) -> Sequence[Cost]:
    # The blocks of an anchor differ only in their window.
    counted: dict[int, Cost] = {}
    costs = []
    with attention_implementation(anchor, "reference"), merged(anchor):
        for block in anchor.blocks:
            assert isinstance(block, Block)
            if block.window_size not in counted:
                flops = _count(block, _tokens(grid, anchor.embed_dim))
                counted[block.window_size] = Cost(flops, _params(block))
            costs.append(counted[block.window_size])
    return costs


def _stitching_layer(layer: StitchingLayer, grid: tuple[int, int]) -> Cost:
    with merged(layer):
        return Cost(_count(layer, _tokens(grid, layer.in_features)), _params(layer))


def _exit(
    model: GeneralizedRCNN,
    grid: tuple[int, int],
    anchor: int,
    num_detections: int,
    num_proposals: int | None,
) -> dict[str, Cost]:
    """Pyramid, RPN and RoI heads of the stitches that end in an anchor."""
    net, width = model.backbone.net, model.backbone.net.exit_widths[anchor]
    pyramid = pyramid_of_exit(model.backbone, anchor)
    if pyramid is model.backbone and width != net.exit_widths[LARGE]:
        raise InputError(
            "model.backbone.net.exit_projection=False leaves the small anchor's width to the "
            "pyramid, so it takes one of each exit: add "
            "model.backbone._target_=snnet_vitdet.modeling.PyramidPerExit"
        )
    stitches = [stitch.id for stitch in net.space if stitch.exit == anchor]
    with net.using_stitch(stitches[0]) if stitches else nullcontext():
        return _after_vit(model, pyramid, width, grid, num_detections, num_proposals)


def _after_vit(
    model: GeneralizedRCNN,
    pyramid: nn.Module,
    width: int,
    grid: tuple[int, int],
    num_detections: int,
    num_proposals: int | None,
) -> dict[str, Cost]:
    """Pyramid, RPN and RoI heads of a GeneralizedRCNN, on features of a width."""
    if not isinstance(pyramid, SimpleFeaturePyramid):
        raise InputError(f"costs are counted for a SimpleFeaturePyramid, not {type(pyramid)}")
    rpn, heads = model.proposal_generator, model.roi_heads
    tokens = torch.empty(1, width, *grid, device="meta")
    features = pyramid_from_features(pyramid, tokens)
    pooled_channels = features[heads.box_in_features[0]].shape[1]
    # Cascade R-CNN has one head and predictor per stage, Mask R-CNN one.
    box_heads, predictors = (
        list(m) if isinstance(m, nn.ModuleList) else [m]
        for m in (heads.box_head, heads.box_predictor)
    )
    side = heads.box_pooler.output_size
    count = rpn.post_nms_topk[False] if num_proposals is None else num_proposals
    proposals = torch.empty(count, pooled_channels, *side, device="meta")
    flops = 0.0
    for box_head, predictor in zip(box_heads, predictors, strict=True):
        flops += _count(box_head, proposals) + _count(predictor, box_head(proposals))
    if num_detections and heads.mask_on:
        side = heads.mask_pooler.output_size
        detections = torch.empty(num_detections, pooled_channels, *side, device="meta")
        flops += _count(heads.mask_head.layers, detections)
    levels = [features[name] for name in rpn.in_features]
    params = sum(map(_params, pyramid.stages))
    if pyramid.top_block is not None:
        params += _params(pyramid.top_block)
    return {
        "pyramid": Cost(_count(pyramid_from_features, pyramid, tokens), params),
        "rpn": Cost(_count(rpn.rpn_head, levels), _params(rpn)),
        "roi_heads": Cost(flops, _params(heads)),
    }
