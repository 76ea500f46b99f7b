"""The method inside detectron2: anchors, their weights, the stitched backbone, its cost."""

from .anchor import AnchorViT
from .attention import attention_implementation
from .block import compile_blocks
from .cost import anchor_alone, baseline_cost, point_costs, stitch_costs
from .extracted import ExtractedViT, extracted_state
from .families import anchor_arguments, plain_vit_names
from .joined import HeadsPerExit, JoinedRCNN, PerExit, is_joined, join_configs
from .operating import (
    most_proposals,
    operating_at,
    point_of,
    resized_positions,
    take_position_grids,
    trained_with,
)
from .pyramid import PyramidPerExit, pyramid_from_features, pyramid_of_exit
from .roi_heads import (
    detect_with_counts,
    postprocessed,
    rows_with_count,
    running_in,
    train_on_given_masks,
)
from .stitched_vit import StitchedViT, find_stitched_vit
from .weights import load_anchor_weights

__all__ = [
    "AnchorViT",
    "ExtractedViT",
    "HeadsPerExit",
    "JoinedRCNN",
    "PerExit",
    "PyramidPerExit",
    "StitchedViT",
    "anchor_alone",
    "anchor_arguments",
    "attention_implementation",
    "baseline_cost",
    "compile_blocks",
    "detect_with_counts",
    "extracted_state",
    "find_stitched_vit",
    "is_joined",
    "join_configs",
    "load_anchor_weights",
    "most_proposals",
    "operating_at",
    "plain_vit_names",
    "point_costs",
    "point_of",
    "postprocessed",
    "pyramid_from_features",
    "pyramid_of_exit",
    "resized_positions",
    "rows_with_count",
    "running_in",
    "stitch_costs",
    "take_position_grids",
    "train_on_given_masks",
    "trained_with",
]
