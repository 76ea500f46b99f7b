"""The method: stitching space, sampling, stitching layers, their fit, and the cost of a stitch.

Depends on torch at most, not on detectron2 or a particular ViT.
"""

from .cost import Cost, CostParts, CostTable
from .layers import StitchingLayer, StitchingLayers
from .least_squares import AffineMap, TokenMoments
from .low_rank import LowRankLinear, layers_with_update, merged, updating
from .points import OperatingPoint, operating_points, split_point_name
from .prefix_tree import PrefixNode, PrefixTree
from .sampling import (
    EndsSampler,
    ResourceConstrainedSampler,
    Sampler,
    SamplerBySize,
    SubsetSampler,
    UniformSampler,
)
from .selection import select_stitches
from .space import (
    ANCHOR_NAMES,
    LARGE,
    SMALL,
    BlockStep,
    EmbeddingStep,
    Segment,
    Step,
    Stitch,
    StitchSpace,
    Transition,
    walk,
)

__all__ = [
    "ANCHOR_NAMES",
    "LARGE",
    "SMALL",
    "AffineMap",
    "BlockStep",
    "Cost",
    "CostParts",
    "CostTable",
    "EmbeddingStep",
    "EndsSampler",
    "LowRankLinear",
    "OperatingPoint",
    "PrefixNode",
    "PrefixTree",
    "ResourceConstrainedSampler",
    "Sampler",
    "SamplerBySize",
    "Segment",
    "Step",
    "Stitch",
    "StitchSpace",
    "StitchingLayer",
    "StitchingLayers",
    "SubsetSampler",
    "TokenMoments",
    "Transition",
    "UniformSampler",
    "layers_with_update",
    "merged",
    "operating_points",
    "select_stitches",
    "split_point_name",
    "updating",
    "walk",
]
