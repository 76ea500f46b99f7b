"""One stitch as a backbone of its own: a plain chain of blocks and linear layers."""

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise

import torch
from detectron2.modeling import Backbone
from torch import nn

from snnet_vitdet.errors import InputError
from snnet_vitdet.stitching import (
    BlockStep,
    EmbeddingStep,
    LowRankLinear,
    Segment,
    Stitch,
    Transition,
    updating,
    walk,
)

from .anchor import AnchorViT
from .stitched_vit import StitchedViT

__all__ = ["ExtractedViT", "extracted_state", "merged_state"]


class ExtractedViT(Backbone):
    """The walk of one stitch as a chain of layers, without the blocks that it does not run.

    The output is that of a StitchedViT with the stitch in effect and low-rank updates merged.
    """

    def __init__(
        self,
        anchors: Sequence[AnchorViT],
        segments: Sequence[Sequence[int]],
        projects_to: int | None = None,
        out_feature: str = "last_feat",
    ) -> None:
        """
        Args:
            anchors: The ViTs. They are taken apart and cannot be used afterwards; built on the meta
                device, the blocks that are not needed take no memory.
            segments: Anchor, first block, and block after the last, of every run of blocks.
            projects_to: Output width of the exit projection, None for no projection.
            out_feature: Name of the output.

        Raises:
            InputError: If a segment has blocks that the anchors do not have.
        """
        super().__init__()
        for anchor, start, stop in segments:
            if not (0 <= anchor < len(anchors) and 0 <= start < stop <= anchors[anchor].depth):
                raise InputError(
                    f"segment {[anchor, start, stop]} of a walk has no blocks of its "
                    f"{len(anchors)} anchors"
                )
        if not segments:
            raise InputError("a walk without segments runs nothing")
        runs = [Segment(*segment) for segment in segments]
        # The cut of a stitching layer is not known here and does not matter.
        transitions = [Transition(0, a.anchor, b.anchor) for a, b in pairwise(runs)]
        layers: list[nn.Module] = []
        for step in walk(runs, transitions):
            if isinstance(step, BlockStep):
                layers.append(anchors[step.anchor].blocks[step.index])
            elif isinstance(step, Transition):
                widths = anchors[step.source].embed_dim, anchors[step.target].embed_dim
                layers.append(nn.Linear(*widths))
        width = anchors[runs[-1].anchor].embed_dim
        if projects_to is not None:
            layers.append(nn.Linear(width, projects_to))
            width = projects_to
        self.layers = nn.ModuleList(layers)
        self.embedding = anchors[runs[0].anchor]
        self.embedding.blocks = nn.ModuleList()
        self._out_features = [out_feature]
        self._out_feature_channels = {out_feature: width}
        self._out_feature_strides = {out_feature: self.embedding.patch_size}

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Args:
            images: (B, 3, H, W), normalised; as for :meth:`AnchorViT.embed`.

        Returns:
            The features by the name of the output, (B, C, H / patch, W / patch).
        """
        x = self.embedding.embed(images)
        for layer in self.layers:
            x = layer(x)
        return {self._out_features[0]: x.permute(0, 3, 1, 2)}


@torch.no_grad()
def merged_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict with low-rank updates merged: layers with an update look like nn.Linear."""
    state = dict(module.state_dict())
    for name, layer in module.named_modules():
        if isinstance(layer, LowRankLinear) and layer.rank:
            prefix = f"{name}." if name else ""
            state[f"{prefix}weight"] = layer.merged_weight().detach()
            for update in ("lora_a", "lora_b"):
                del state[prefix + update]
    return state


def extracted_state(
    backbone: StitchedViT | AnchorViT, stitch: Stitch | None = None
) -> dict[str, torch.Tensor]:
    """The weights of the ExtractedViT of a stitch, or of a backbone of one anchor.

    Args:
        backbone: The trained backbone; not changed.
        stitch: A stitch of its space; None for a backbone of one anchor.
    """
    anchors: Sequence[AnchorViT]
    if isinstance(backbone, AnchorViT):
        anchors, steps = [backbone], tuple(walk([Segment(0, 0, backbone.depth)], []))
        after_cut_only = False
    else:
        assert stitch is not None
        anchors, steps = backbone.anchors, stitch.steps
        after_cut_only = backbone.updates_after_cut
    state = {}
    layers = []
    for step in steps:
        if isinstance(step, EmbeddingStep):
            embedding = anchors[step.anchor].state_dict().items()
            state = {f"embedding.{k}": v for k, v in embedding if not k.startswith("blocks.")}
        elif isinstance(step, BlockStep):
            block = anchors[step.anchor].blocks[step.index]
            with updating(block, step.after_cut) if after_cut_only else nullcontext():
                layers.append(merged_state(block))
        else:
            layers.append(merged_state(backbone.stitching_layers[step]))
    for number, part in enumerate(layers):
        state |= {f"layers.{number}.{key}": value for key, value in part.items()}
    return state
