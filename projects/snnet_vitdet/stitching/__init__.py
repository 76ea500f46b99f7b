"""The method: stitching space, sampling, stitching layers, their fit, and what a stitch costs.

Needs torch at most; knows nothing of detectron2 or of any particular ViT.
"""

from .cost import Cost, CostParts, CostTable
from .ends import EndsSampler, Sampler
from .layers import StitchingLayer, StitchingLayers
from .least_squares import AffineMap, TokenMoments
from .low_rank import LowRankLinear, layers_with_update, merged, updating
from .prefix_tree import BlockStep, EmbeddingStep, PrefixNode, PrefixTree, Step
from .sampling import ResourceConstrainedSampler, SubsetSampler, UniformSampler
from .selection import select_stitches
from .space import LARGE, SMALL, Segment, Stitch, StitchSpace, Transition

__all__ = [
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
    "PrefixNode",
    "PrefixTree",
    "ResourceConstrainedSampler",
    "Sampler",
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
    "select_stitches",
    "updating",
]
