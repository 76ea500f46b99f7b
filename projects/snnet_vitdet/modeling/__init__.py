"""The method inside detectron2: anchors, their weights, the stitched backbone, what it costs."""

from .anchor import AnchorViT
from .attention import attention_implementation
from .cost import anchor_alone, baseline_cost, stitch_costs
from .exit_heads import ExitAdapterBoxHead, ExitAwareRCNN
from .extracted import ExtractedViT, extracted_state
from .families import anchor_arguments, plain_vit_names
from .given_masks import train_on_given_masks
from .joined import HeadsPerExit, JoinedRCNN, PerExit, is_joined, join_configs
from .precision import running_in
from .pyramid_per_exit import PyramidPerExit, pyramid_of_exit
from .stitched_vit import StitchedViT, find_stitched_vit
from .timm_weights import load_anchor_weights

__all__ = [
    "AnchorViT",
    "ExitAdapterBoxHead",
    "ExitAwareRCNN",
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
    "extracted_state",
    "find_stitched_vit",
    "is_joined",
    "join_configs",
    "load_anchor_weights",
    "plain_vit_names",
    "pyramid_of_exit",
    "running_in",
    "stitch_costs",
    "train_on_given_masks",
]
