"""The stitching layers: affine maps between the token widths of two anchors, with LoRA."""

from collections.abc import Iterable

import torch
from torch import nn

from .low_rank import LowRankLinear
from .space import LARGE, SMALL, StitchSpace, Transition

__all__ = ["StitchingLayer", "StitchingLayers"]


class StitchingLayer(LowRankLinear):
    """An affine map of tokens whose matrix is frozen and learns only a low-rank update (LoRA SL).

    Paper, section 4.3, equation 3. The matrix and the bias come from the least-squares fit; the
    bias is trained. With ``rank=0`` the matrix itself is trained: the paper's ablation, SN-Netv1's
    way.
    """

    _what = "stitching layer"

    def __init__(
        self, in_features: int, out_features: int, rank: int = 16, alpha: float | None = None
    ) -> None:
        """
        Args:
            in_features: Width of the anchor the walk leaves.
            out_features: Width of the anchor the walk enters.
            rank: Rank of the update; 0 trains the full matrix.
            alpha: Scale of the update times the rank. None means ``rank``, a factor of 1, as
                equation 3 has none; the authors' code has 1, a factor of 1 / ``rank``.

        Raises:
            ValueError: For a rank that is negative or above both widths.
        """
        super().__init__(in_features, out_features, rank, alpha)

    @torch.no_grad()
    def load_fit(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Starts from a least-squares solution.

        Args:
            weight: The map M in the paper's layout, (in_features, out_features).
            bias: (out_features,).

        Raises:
            ValueError: If the shapes are not this layer's.
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
        exit_rank: int | None = None,
    ) -> None:
        """
        Args:
            space: The stitching space; a layer no stitch of it crosses is not built.
            widths: Token widths of the small and of the large anchor.
            rank: See :class:`StitchingLayer`.
            alpha: See :class:`StitchingLayer`.
            exit_rank: The rank of the exit projection, None for that of the others.
        """
        super().__init__()
        self.transitions = space.transitions
        self._exit = space.exit_transition
        self.small_to_large = nn.ModuleDict()
        self.large_to_small = nn.ModuleDict()
        self.exit: StitchingLayer | None = None
        for transition in self.transitions:
            is_exit = transition == self._exit
            layer = StitchingLayer(
                widths[transition.source],
                widths[transition.target],
                exit_rank if is_exit and exit_rank is not None else rank,
                alpha,
            )
            if is_exit:
                self.exit = layer
            elif (transition.source, transition.target) == (SMALL, LARGE):
                self.small_to_large[str(transition.cut)] = layer
            else:
                self.large_to_small[str(transition.cut)] = layer

    def __getitem__(self, transition: Transition) -> StitchingLayer:
        """The layer of a transition; KeyError if no stitch of the space crosses it."""
        if transition == self._exit and self.exit is not None:
            return self.exit
        layers = self.small_to_large if transition.source == SMALL else self.large_to_small
        return layers[str(transition.cut)]

    def items(self) -> Iterable[tuple[Transition, StitchingLayer]]:
        """Pairs of transition and layer, in the order of the transitions."""
        return ((transition, self[transition]) for transition in self.transitions)
