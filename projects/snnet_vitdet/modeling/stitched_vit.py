"""The stitched backbone: two anchors, their stitching layers, and the walk that is in effect."""

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
    Transition,
    layers_with_update,
)

from .anchor import AnchorViT
from .exit_norms import ExitNorms

__all__ = ["StitchedViT", "find_stitched_vit"]


class StitchedViT(Backbone):
    """Two plain ViTs and every walk between them, as one detectron2 backbone.

    One output of the large anchor's width for every stitch, so one feature pyramid and one set of
    heads serve all of them. Which stitch runs is plain state, not a parameter and in no checkpoint:
    ``set_stitch`` costs nothing and is in effect at the next forward. ``forward`` never samples.
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
        exit_rank: int | None = None,
        exit_norm: str | None = None,
        updates_after_cut: bool = False,
        out_feature: str = "last_feat",
    ) -> None:
        """
        Args:
            small: The fast anchor.
            large: The slow anchor, at least as deep.
            max_cuts: Largest number of changes of anchor in a stitch.
            kinds: The kinds of stitches to build, all if None.
            lora_rank: Rank of the update a stitching layer learns; 0 trains its full matrix.
            lora_alpha: Scale of the update times the rank, None for the rank.
            exit_projection: Whether a stitch that ends in the small anchor is brought to the large
                one's width. Without, it takes a :class:`PyramidPerExit`.
            exit_rank: The rank of the exit projection, None for ``lora_rank``.
            exit_norm: A normalisation of the last tokens before the pyramid: ``exit`` for one of
                each anchor that a stitch may end in, ``kind`` for one of each kind of stitch, None
                for none, as in the paper.
            updates_after_cut: Whether the anchors' own low-rank updates (their ``lora_rank``) take
                part only after the first cut of a stitch. S and L have no cut, and stay what the
                ViTs are without updates.
            out_feature: Name of the output.

        Raises:
            InputError: If the patch sizes differ, or depths, cuts, kinds or ranks give no space, or
                for an unknown ``exit_norm``.
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
                self.space, (small.embed_dim, large.embed_dim), lora_rank, lora_alpha, exit_rank
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
        self.exit_norms = ExitNorms(self.space, self.exit_widths, exit_norm) if exit_norm else None
        self._out_features = [out_feature]
        self._out_feature_channels = {out_feature: large.embed_dim}
        self._out_feature_strides = {out_feature: large.patch_size}
        self._given: dict[str, torch.Tensor] | None = None
        large_alone = [stitch for stitch in self.space if stitch.kind == "L"]
        self._stitch = large_alone[0] if large_alone else self.space[0]

    @property
    def anchors(self) -> tuple[AnchorViT, AnchorViT]:
        """The small and the large anchor, indexed as in the segments of a stitch."""
        return (self.small, self.large)

    @property
    def exit_widths(self) -> tuple[int, int]:
        """Width of the output of a stitch by the anchor it ends in."""
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
        """Puts a stitch into effect for a while, then the one before it again."""
        before = self._stitch
        try:
            yield self.set_stitch(stitch)
        finally:
            self._stitch = before

    @contextmanager
    def giving(self, features: dict[str, torch.Tensor]) -> Iterator[None]:
        """Lets ``forward`` return features that are there already, for what is built on top.

        Args:
            features: As ``forward_tree`` yields them.
        """
        before, self._given = self._given, features
        try:
            yield
        finally:
            self._given = before

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Args:
            images: (B, 3, H, W), normalised; H and W multiples of the patch size.

        Returns:
            The features of the stitch in effect by the name of the output, (B, D2, H / patch,
            W / patch) with D2 the large anchor's width; without an exit projection, the width of
            the anchor that the stitch ends in.
        """
        if self._given is not None:
            return self._given
        stitch = self._stitch
        x = self.anchors[stitch.segments[0].anchor].embed(images)
        transitions = iter(stitch.transitions)
        for index, (anchor, start, stop) in enumerate(stitch.segments):
            if index:
                x = self.stitching_layers[next(transitions)](x)
            x = self.anchors[anchor].run_blocks(x, start, stop, self._updated(index > 0))
        for transition in transitions:  # the exit projection, if the walk ends in the small anchor
            x = self.stitching_layers[transition](x)
        return self._output(x, stitch)

    def updates(self) -> list[LowRankLinear]:
        """The layers of both anchors that have a low-rank update."""
        return [layer for anchor in self.anchors for layer in layers_with_update(anchor)]

    def _updated(self, after_cut: bool) -> bool | None:
        """Whether updates take part in blocks before or after the first cut, None for as ever."""
        return after_cut if self.updates_after_cut else None

    def _output(self, x: torch.Tensor, stitch: Stitch) -> dict[str, torch.Tensor]:
        if self.exit_norms is not None:
            x = self.exit_norms[stitch](x)
        return {self._out_features[0]: x.permute(0, 3, 1, 2)}

    def forward_tree(
        self, images: torch.Tensor, tree: PrefixTree
    ) -> Iterator[tuple[Stitch, dict[str, torch.Tensor]]]:
        """The features of many stitches, with every shared beginning of walks run once.

        The operations are those of ``forward`` with each stitch in effect, in the same order, so
        the features are the same to the bit. At most ``max_cuts + 2`` sets of tokens are alive at a
        time, besides what the caller keeps. For inference: no checkpointing.

        Args:
            images: (B, 3, H, W), normalised; H and W multiples of the patch size.
            tree: Of stitches of this space.

        Yields:
            Each stitch with its features as ``forward`` returns them; not in the order of ids.
        """
        for root in tree.roots.values():
            yield from self._visit(root, images, after_cut=False)

    def _visit(
        self, node: PrefixNode, x: torch.Tensor, after_cut: bool
    ) -> Iterator[tuple[Stitch, dict[str, torch.Tensor]]]:
        while True:
            after_cut = after_cut or isinstance(node.step, Transition)
            x = self._take(node.step, x, after_cut)
            for stitch in node.ends:
                yield stitch, self._output(x, stitch)
            if not node.children:
                return
            # Changes of anchor branch off first, from tokens that are still needed; the walk on
            # in the same anchor comes last and takes them along, so they are freed.
            *branches, node = sorted(
                node.children.values(), key=lambda child: isinstance(child.step, BlockStep)
            )
            for branch in branches:
                yield from self._visit(branch, x, after_cut)

    def _take(self, step: Step, x: torch.Tensor, after_cut: bool) -> torch.Tensor:
        if isinstance(step, EmbeddingStep):
            return self.anchors[step.anchor].embed(x)
        if isinstance(step, BlockStep):
            anchor, updated = self.anchors[step.anchor], self._updated(after_cut)
            return anchor.run_blocks(x, step.index, step.index + 1, updated)
        return self.stitching_layers[step](x)

    @torch.no_grad()
    def stage_tokens(
        self, images: torch.Tensor
    ) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """Both anchors' tokens at every cut, for the least-squares fit.

        Args:
            images: (B, 3, H, W), normalised.

        Yields:
            The cut 1 … number of stages (the last is the exit) and the tokens of the small and of
            the large anchor right before it, (B, h, w, D1) and (B, h, w, D2).
        """
        tokens = [anchor.embed(images) for anchor in self.anchors]
        for stage in range(self.space.num_stages):
            for index, anchor in enumerate(self.anchors):
                start, stop = self.space.boundaries[index][stage : stage + 2]
                tokens[index] = anchor.run_blocks(tokens[index], start, stop)
            yield stage + 1, tokens[SMALL], tokens[LARGE]


def find_stitched_vit(model: nn.Module) -> StitchedViT | None:
    """The stitched backbone inside a detector, wrapped or not, if it has one."""
    for module in model.modules():
        if isinstance(module, StitchedViT):
            return module
    return None
