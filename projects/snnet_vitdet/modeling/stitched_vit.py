"""The stitched backbone: two anchors, their stitching layers, and the stitch in effect."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from detectron2.modeling import Backbone
from torch import nn

from snnet_vitdet.errors import InputError
from snnet_vitdet.stitching import (
    LARGE,
    SMALL,
    BlockStep,
    EmbeddingStep,
    LowRankLinear,
    PrefixNode,
    PrefixTree,
    Step,
    Stitch,
    StitchingLayers,
    StitchSpace,
    layers_with_update,
)

from .anchor import AnchorViT

__all__ = ["StitchedViT", "find_stitched_vit"]


class StitchedViT(Backbone):
    """Two plain ViTs and every walk between them, as one detectron2 backbone.

    The output has the large anchor's width for every stitch, so one feature pyramid and one set of
    heads serve all of them. The stitch in effect is plain state, in no checkpoint: ``set_stitch``
    costs nothing and takes effect at the next forward. ``forward`` never samples.
    """

    def __init__(
        self,
        small: AnchorViT,
        large: AnchorViT,
        max_cuts: int = 2,
        kinds: Iterable[str] | None = None,
        lora_rank: int = 16,
        lora_alpha: float | None = None,
        exit_projection: bool = True,
        updates_after_cut: bool = False,
        out_feature: str = "last_feat",
    ) -> None:
        """
        Args:
            small: The fast anchor.
            large: The slow anchor, at least as deep.
            max_cuts: Largest number of changes of anchor in a stitch.
            kinds: The kinds of stitches to build, None for all.
            lora_rank: Rank of the update a stitching layer learns; 0 trains its full matrix.
            lora_alpha: Scale of the update times the rank, None for the rank.
            exit_projection: Whether stitches that end in the small anchor are projected to the
                large anchor's width. If not, the detector needs a :class:`PyramidPerExit`.
            updates_after_cut: Whether the anchors' own low-rank updates (their ``lora_rank``) are
                used only after the first cut of a stitch. S and L have no cut and stay the ViTs
                without updates.
            out_feature: Name of the output.

        Raises:
            InputError: If the patch sizes differ, or depths, cuts, kinds or ranks give no space.
        """
        super().__init__()
        if small.patch_size != large.patch_size:
            raise InputError(
                f"the anchors cannot be stitched: their patch sizes differ ({small.patch_size} and "
                f"{large.patch_size}), so their tokens do not lie on the same grid; choose two "
                "ViTs of one patch size"
            )
        try:
            self.space = StitchSpace((small.depth, large.depth), max_cuts, kinds, exit_projection)
            layers = StitchingLayers(
                self.space, (small.embed_dim, large.embed_dim), lora_rank, lora_alpha
            )
        except ValueError as error:
            raise InputError(str(error)) from error
        self.small = small
        self.large = large
        self.stitching_layers = layers
        self.updates_after_cut = updates_after_cut
        if updates_after_cut:
            for layer in self.updates():
                layer.updated = False
        self._out_features = [out_feature]
        self._out_feature_channels = {out_feature: large.embed_dim}
        self._out_feature_strides = {out_feature: large.patch_size}
        large_alone = [stitch for stitch in self.space if stitch.kind == "L"]
        self._stitch = large_alone[0] if large_alone else self.space[0]

    @property
    def anchors(self) -> tuple[AnchorViT, AnchorViT]:
        """The small and the large anchor, in the order of their indexes in a stitch."""
        return (self.small, self.large)

    @property
    def exit_widths(self) -> tuple[int, int]:
        """Width of a stitch's output, by the anchor it ends in."""
        large = self.large.embed_dim
        return (large if self.space.exit_projection else self.small.embed_dim, large)

    @property
    def stitch(self) -> Stitch:
        """The stitch in effect: the large anchor until another one is set."""
        return self._stitch

    def set_stitch(self, stitch: int | str) -> Stitch:
        """Puts a stitch into effect.

        Args:
            stitch: Id or name.

        Returns:
            The stitch.

        Raises:
            IndexError, KeyError: If the space has no such id or name; the stitch in effect stays.
        """
        self._stitch = self.space[stitch]
        return self._stitch

    @contextmanager
    def using_stitch(self, stitch: int | str) -> Iterator[Stitch]:
        """Puts a stitch into effect inside the context; then restores the one before."""
        before = self._stitch
        try:
            yield self.set_stitch(stitch)
        finally:
            self._stitch = before

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Args:
            images: (B, 3, H, W), normalised; as for :meth:`AnchorViT.embed`.

        Returns:
            The features of the stitch in effect by the name of the output, (B, D2, H / patch,
            W / patch) with D2 the large anchor's width; without an exit projection, the width of
            the anchor that the stitch ends in.
        """
        x = images
        for step in self._stitch.steps:
            x = self.take(step, x)
        return self._output(x)

    def forward_tree(
        self, images: torch.Tensor, tree: PrefixTree
    ) -> Iterator[tuple[Stitch, dict[str, torch.Tensor]]]:
        """The features of many stitches; steps that they share run once.

        The steps are those of ``forward``, in the same order, so the features are equal to the bit.
        At most ``max_cuts + 2`` sets of tokens are alive at a time, besides what the caller keeps.

        Args:
            images: (B, 3, H, W), normalised; as for :meth:`AnchorViT.embed`.
            tree: Tree of stitches of this space.

        Yields:
            Each stitch with its features as ``forward`` returns them; not in the order of ids.
        """
        for root in tree.roots.values():
            yield from self._visit(root, images)

    def _visit(
        self, node: PrefixNode, x: torch.Tensor
    ) -> Iterator[tuple[Stitch, dict[str, torch.Tensor]]]:
        while True:
            x = self.take(node.step, x)
            for stitch in node.ends:
                yield stitch, self._output(x)
            if not node.children:
                return
            # Changes of anchor branch off first, from tokens that are still needed. The walk on in
            # the same anchor comes last and replaces the tokens, so that they are freed.
            *branches, node = sorted(
                node.children.values(), key=lambda child: isinstance(child.step, BlockStep)
            )
            for branch in branches:
                yield from self._visit(branch, x)

    def take(self, step: Step, x: torch.Tensor) -> torch.Tensor:
        """Runs one step of a walk.

        Args:
            step: The step.
            x: Tokens, (B, h, w, C); the images for the first step.

        Returns:
            Tokens, (B, h, w, C).
        """
        if isinstance(step, EmbeddingStep):
            return self.anchors[step.anchor].embed(x)
        if isinstance(step, BlockStep):
            updated = step.after_cut if self.updates_after_cut else None
            return self.anchors[step.anchor].run_block(step.index, x, updated)
        return self.stitching_layers[step](x)

    def _output(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {self._out_features[0]: x.permute(0, 3, 1, 2)}

    def updates(self) -> list[LowRankLinear]:
        """The layers of both anchors that have a low-rank update."""
        return [layer for anchor in self.anchors for layer in layers_with_update(anchor)]

    @torch.no_grad()
    def stage_tokens(
        self, images: torch.Tensor
    ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Both anchors' tokens at every cut, for the least-squares fit.

        Args:
            images: (B, 3, H, W), normalised.

        Yields:
            The cut, 1 … number of stages (the last is the exit), and the tokens of the small and
            the large anchor right before it, (B, h, w, D1) and (B, h, w, D2).
        """
        tokens = [anchor.embed(images) for anchor in self.anchors]
        for stage in range(self.space.num_stages):
            for index, anchor in enumerate(self.anchors):
                for block in range(*self.space.boundaries[index][stage : stage + 2]):
                    tokens[index] = anchor.run_block(block, tokens[index])
            yield stage + 1, tokens[SMALL], tokens[LARGE]


def find_stitched_vit(model: nn.Module) -> StitchedViT | None:
    """The stitched backbone inside a detector, wrapped or not; None if there is none."""
    for module in model.modules():
        if isinstance(module, StitchedViT):
            return module
    return None
