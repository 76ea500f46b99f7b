"""One stitch as a backbone of its own: a plain chain of blocks and linear layers."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from detectron2.modeling import Backbone
from torch import nn

from snnet_vitdet.errors import InputError
from snnet_vitdet.stitching import LowRankLinear, Stitch, updating

from .anchor import AnchorViT
from .exit_norms import exit_norm
from .stitched_vit import StitchedViT

__all__ = ["ExtractedViT", "extracted_state", "merged_state"]


class ExtractedViT(Backbone):
    """The walk of one stitch, with nothing of the anchors that it does not run.

    Its output is that of a StitchedViT with the stitch in effect and low-rank updates merged.
    """

    def __init__(
        self,
        anchors: Sequence[AnchorViT],
        segments: Sequence[Sequence[int]],
        projects_to: int | None = None,
        normalises: bool = False,
        out_feature: str = "last_feat",
    ) -> None:
        """
        Args:
            anchors: Whose blocks the walk runs. They are taken apart, so they are of no use
                afterwards; made on the meta device, what the walk does not need takes no memory.
            segments: Anchor, first block, and block after the last of every run of blocks.
            projects_to: Width that an exit projection brings the last tokens to, None for none.
            normalises: Whether a norm of the exit follows the last tokens.
            out_feature: Name of the output.

        Raises:
            InputError: For blocks that the anchors do not have.
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
        layers: list[nn.Module] = []
        for number, (anchor, start, stop) in enumerate(segments):
            if number:
                before = anchors[segments[number - 1][0]].embed_dim
                layers.append(nn.Linear(before, anchors[anchor].embed_dim))
            layers.extend(anchors[anchor].blocks[start:stop])
        width = anchors[segments[-1][0]].embed_dim
        if projects_to is not None:
            layers.append(nn.Linear(width, projects_to))
            width = projects_to
        if normalises:
            layers.append(exit_norm(width))
        self.layers = nn.ModuleList(layers)
        self.embedding = anchors[segments[0][0]]
        self.embedding.blocks = nn.ModuleList()
        self._out_features = [out_feature]
        self._out_feature_channels = {out_feature: width}
        self._out_feature_strides = {out_feature: self.embedding.patch_size}

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Args:
            images: (B, 3, H, W), normalised; H and W multiples of the patch size.

        Returns:
            The features by the name of the output, (B, C, H / patch, W / patch).
        """
        x = self.embedding.embed(images)
        for layer in self.layers:
            x = layer(x)
        return {self._out_features[0]: x.permute(0, 3, 1, 2)}


@torch.no_grad()
def merged_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """A state dict of nn.Linear's names, with the updates that take part added to matrices."""
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
    """The weights of the ExtractedViT of a stitch, or of an anchor that is a backbone alone.

    Args:
        backbone: With trained weights; not changed.
        stitch: Of its space; None for a backbone of one anchor.
    """
    if stitch is None:
        anchors, segments, layers = [backbone], [(0, 0, backbone.depth)], iter(())
    else:
        anchors, segments = backbone.anchors, stitch.segments
        layers = (backbone.stitching_layers[transition] for transition in stitch.transitions)
    after_cut_only = stitch is not None and backbone.updates_after_cut
    chain: list[dict[str, torch.Tensor]] = []
    for number, (anchor, start, stop) in enumerate(segments):
        if number:
            chain.append(merged_state(next(layers)))
        for block in anchors[anchor].blocks[start:stop]:
            with updating(block, number > 0) if after_cut_only else nullcontext():
                chain.append(merged_state(block))
    chain.extend(map(merged_state, layers))  # the exit projection
    if stitch is not None and backbone.exit_norms is not None:
        chain.append(merged_state(backbone.exit_norms[stitch]))
    embedding = anchors[segments[0][0]]
    state = {
        f"embedding.{key}": value
        for key, value in embedding.state_dict().items()
        if not key.startswith("blocks.")
    }
    for index, part in enumerate(chain):
        state |= {f"layers.{index}.{key}": value for key, value in part.items()}
    return state
