"""Linear layers that learn only a low-rank update: LoRA (https://arxiv.org/abs/2106.09685)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["LowRankLinear", "layers_with_update", "merged", "updating"]


class LowRankLinear(nn.Module):
    """``x @ M + b + (x @ B @ A) * alpha / rank`` with ``M`` frozen.

    ``B`` starts Gaussian and ``A`` zero, so training starts exactly at ``M``. With ``rank=0`` there
    is no update and ``M`` itself is trained. ``weight`` and ``bias`` are named and laid out as in
    ``nn.Linear``.

    Attributes:
        updated: Whether the update is used; if not, the output is that of ``nn.Linear`` to the bit.
    """

    kind = "linear layer"
    """Name of the layer in errors."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int = 16,
        alpha: float | None = None,
        train_bias: bool = True,
    ) -> None:
        """
        Args:
            in_features: Width of the input.
            out_features: Width of the output.
            rank: Rank of the update; 0 trains the full matrix.
            alpha: Scale of the update times the rank. None means ``rank``, a factor of 1.
            train_bias: Whether the bias is trained beside an update.

        Raises:
            ValueError: If the rank is negative or above a width, or alpha is negative.
        """
        super().__init__()
        if alpha is not None and not alpha >= 0:
            raise ValueError(f"alpha must be at least 0, or null for the rank, got {alpha}")
        if type(rank) is not int or not 0 <= rank <= min(in_features, out_features):
            raise ValueError(
                f"rank must be 0 … {min(in_features, out_features)} for a {self.kind} "
                f"{in_features} -> {out_features}, got {rank}"
            )
        self.in_features = in_features
        self.out_features = out_features
        self.rank = rank
        self.updated = True
        # nn.Linear's layout (out, in), so that exporting needs no transpose.
        self.weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=rank == 0)
        self.bias = nn.Parameter(torch.zeros(out_features), requires_grad=rank == 0 or train_bias)
        nn.init.trunc_normal_(self.weight, std=in_features**-0.5)
        if rank:
            self.scale = (rank if alpha is None else alpha) / rank
            self.lora_b = nn.Parameter(torch.empty(rank, in_features))
            self.lora_a = nn.Parameter(torch.zeros(out_features, rank))
            # Keeps x @ B at the scale of one feature of x, whatever the width.
            nn.init.normal_(self.lora_b, std=in_features**-0.5)
        # Not a buffer: a merged matrix is derived and belongs in no checkpoint.
        self._merged: torch.Tensor | None = None

    def __getstate__(self) -> dict[str, object]:
        # No context would clear the merged matrix of a copy.
        return {**super().__getstate__(), "_merged": None}

    def merged_weight(self) -> torch.Tensor:
        """The matrix, plus the update if it is used, (out_features, in_features)."""
        if not (self.rank and self.updated):
            return self.weight
        return self.weight + self.scale * (self.lora_a @ self.lora_b)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x: (..., in_features).

        Returns:
            (..., out_features).
        """
        if not (self.rank and self.updated):
            return F.linear(x, self.weight, self.bias)
        if self._merged is not None:
            return F.linear(x, self._merged, self.bias)
        update = F.linear(F.linear(x, self.lora_b), self.lora_a) * self.scale
        return F.linear(x, self.weight, self.bias) + update

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, rank={self.rank}"


@contextmanager
def merged(module: nn.Module) -> Iterator[None]:
    """Runs every layer inside ``module`` as one matrix product, without gradients.

    The parameters are not touched, so leaving the context restores the module exactly. Parameters
    that change inside the context have no effect until it ends.
    """
    layers = layers_with_update(module)
    before = [layer._merged for layer in layers]
    try:
        with torch.no_grad(), updating(module, True):
            for layer in layers:
                layer._merged = layer.merged_weight()
        yield
    finally:
        for layer, previous in zip(layers, before, strict=True):
            layer._merged = previous


@contextmanager
def updating(module: nn.Module, updated: bool) -> Iterator[None]:
    """Turns the updates of every layer inside ``module`` on or off inside the context."""
    layers = layers_with_update(module)
    before = [layer.updated for layer in layers]
    try:
        for layer in layers:
            layer.updated = updated
        yield
    finally:
        for layer, previous in zip(layers, before, strict=True):
            layer.updated = previous


def layers_with_update(module: nn.Module) -> list[LowRankLinear]:
    """The layers inside ``module`` that have a low-rank update."""
    return [m for m in module.modules() if isinstance(m, LowRankLinear) and m.rank]
