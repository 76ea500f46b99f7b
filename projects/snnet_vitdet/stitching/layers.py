"""The stitching layers: affine maps between the token widths of two anchors, with LoRA."""

from collections.abc import Iterable

import torch
from torch import nn

from .low_rank import LowRankLinear
from .space import SMALL, StitchSpace, Transition

__all__ = ["StitchingLayer", "StitchingLayers"]


class StitchingLayer(LowRankLinear):
    """An affine map of tokens whose matrix is frozen and learns only a low-rank update (LoRA SL).

    Paper, section 4.3, equation 3. The matrix and the bias come from the least-squares fit; the
    bias is trained. ``rank=0`` trains the matrix itself: the paper's ablation, and SN-Netv1's way.
    Equation 3 has no scale, which is ``alpha=None``; the authors' code has ``alpha=1``.
    """

    kind = "stitching layer"

    @torch.no_grad()
    def load_fit(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Loads a least-squares solution as the start value.

        Args:
            weight: The map M in the paper's layout, (in_features, out_features).
            bias: (out_features,).

        Raises:
            ValueError: If the shapes are not those of this layer.
        """
        expected = (self.in_features, self.out_features)
        if tuple(weight.shape) != expected or tuple(bias.shape) != expected[1:]:
            raise ValueError(
                f"a stitching layer {expected[0]} -> {expected[1]} was given a fit of shape "
                f"{tuple(weight.shape)} and bias {tuple(bias.shape)}"
            )
        self.weight.copy_(weight.T)
        self.bias.copy_(bias)
        if self.rank:
            self.lora_a.zero_()


class StitchingLayers(nn.Module):
    """One stitching layer for every transition of a space, shared by all stitches that cross it."""

    def __init__(
        self,
        space: StitchSpace,
        widths: tuple[int, int],
        rank: int = 16,
        alpha: float | None = None,
    ) -> None:
        """
        Args:
            space: The stitching space; only layers that some stitch crosses are built.
            widths: Token widths of the small and of the large anchor.
            rank: Rank of the update; 0 trains the full matrix.
            alpha: Scale of the update times the rank, None for a factor of 1.

        Raises:
            ValueError: As for :class:`LowRankLinear`.
        """
        super().__init__()
        self.small_to_large = nn.ModuleDict()
        self.large_to_small = nn.ModuleDict()
        self.exit: StitchingLayer | None = None
        self._layers: dict[Transition, StitchingLayer] = {}
        for transition in space.transitions:
            cut, source, target = transition
            layer = StitchingLayer(widths[source], widths[target], rank, alpha)
            self._layers[transition] = layer
            if transition == space.exit_transition:
                self.exit = layer
            else:
                directed = self.small_to_large if source == SMALL else self.large_to_small
                directed[str(cut)] = layer

    def __getitem__(self, transition: Transition) -> StitchingLayer:
        """The layer of a transition; KeyError if no stitch of the space crosses it."""
        return self._layers[transition]

    def items(self) -> Iterable[tuple[Transition, StitchingLayer]]:
        """Pairs of transition and layer, in the order of the transitions."""
        return self._layers.items()
