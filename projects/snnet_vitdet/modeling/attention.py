"""Multi-head self-attention over a grid of tokens, with decomposed relative positions.

Two implementations of the same mathematics. ``reference`` writes out q·kᵀ, softmax and ·v: it is
what a cost is counted on (fvcore has no handler for fused attention and drops it). ``fused`` runs
torch's scaled_dot_product_attention and is the default.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from detectron2.modeling.backbone.utils import add_decomposed_rel_pos, get_rel_pos
from torch import nn

__all__ = ["ATTENTION_IMPLEMENTATIONS", "Attention", "attention_implementation"]

ATTENTION_IMPLEMENTATIONS = ("fused", "reference")


class Attention(nn.Module):
    """Self-attention in which every token sees every other token of its grid.

    Names and layouts of the parameters are timm's, plus ``rel_pos_h`` and ``rel_pos_w`` as
    detectron2 has them.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        rel_pos_size: tuple[int, int] | None = None,
        implementation: str = "fused",
        linear: Callable[[int, int], nn.Module] = nn.Linear,
    ) -> None:
        """
        Args:
            dim: Token width; a multiple of ``num_heads``.
            num_heads: Number of heads.
            rel_pos_size: Grid (height, width) the relative positions are stored for, None for no
                relative positions. Other grids take interpolated ones.
            implementation: ``fused`` or ``reference``.
            linear: Makes the two projections from their input and output widths.

        Raises:
            ValueError: For a width that the heads do not divide, or an unknown implementation.
        """
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"width {dim} is not a multiple of num_heads={num_heads}")
        _check(implementation)
        self.num_heads = num_heads
        self.implementation = implementation
        self.qkv = linear(dim, dim * 3)
        self.proj = linear(dim, dim)
        self.use_rel_pos = rel_pos_size is not None
        if rel_pos_size is not None:
            head_dim = dim // num_heads
            # Zero, so that a pretrained anchor starts as it was without them (ViTDet's default).
            self.rel_pos_h = nn.Parameter(torch.zeros(2 * rel_pos_size[0] - 1, head_dim))
            self.rel_pos_w = nn.Parameter(torch.zeros(2 * rel_pos_size[1] - 1, head_dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x: Tokens, (B, H, W, C).

        Returns:
            Tokens, (B, H, W, C).
        """
        batch, height, width, _ = x.shape
        # qkv: (3, B, heads, H*W, head_dim)
        qkv = self.qkv(x).reshape(batch, height * width, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attend = self._fused if self.implementation == "fused" else self._reference
        out = attend(q, k, v, (height, width))
        # (B, heads, H*W, head_dim) -> (B, H, W, C)
        return self.proj(out.transpose(1, 2).reshape(batch, height, width, -1))

    def _reference(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: tuple[int, int]
    ) -> torch.Tensor:
        # detectron2's helper takes batch and heads as one dimension.
        q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        if self.use_rel_pos:
            logits = add_decomposed_rel_pos(logits, q, self.rel_pos_h, self.rel_pos_w, grid, grid)
        out = logits.softmax(dim=-1) @ v
        return out.unflatten(0, (-1, self.num_heads))

    def _fused(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: tuple[int, int]
    ) -> torch.Tensor:
        if not self.use_rel_pos:
            return F.scaled_dot_product_attention(q, k, v)
        # The bias of query i and key j is rel_h[i, row(j)] + rel_w[i, column(j)]: an inner product
        # of the query's two vectors with the one-hot codes of the key's row and column. Appended to
        # q and k it needs no (H*W, H*W) bias in memory.
        height, width = grid
        head_dim = q.shape[-1]
        queries = q.unflatten(2, grid)
        rel_h = torch.einsum(
            "bnhwc,hkc->bnhwk", queries, get_rel_pos(height, height, self.rel_pos_h)
        )
        rel_w = torch.einsum("bnhwc,wkc->bnhwk", queries, get_rel_pos(width, width, self.rel_pos_w))
        rel = torch.cat([rel_h, rel_w], dim=-1).flatten(2, 3).to(q.dtype)
        codes = _key_codes(height, width, like=k).expand(*k.shape[:2], -1, -1)
        q = torch.cat([q * head_dim**-0.5, rel], dim=-1)
        k = torch.cat([k, codes], dim=-1)
        # Flash kernels want one size for q, k and v.
        v = F.pad(v, (0, height + width))
        return F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., :head_dim]


def _key_codes(height: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """One-hot row and column of every token of a grid, (H*W, H + W)."""
    rows = torch.eye(height, dtype=like.dtype, device=like.device).repeat_interleave(width, dim=0)
    columns = torch.eye(width, dtype=like.dtype, device=like.device).repeat(height, 1)
    return torch.cat([rows, columns], dim=1)


@contextmanager
def attention_implementation(module: nn.Module, implementation: str) -> Iterator[None]:
    """Runs every attention inside ``module`` with the named implementation for a while."""
    _check(implementation)
    layers = [m for m in module.modules() if isinstance(m, Attention)]
    before = [layer.implementation for layer in layers]
    try:
        for layer in layers:
            layer.implementation = implementation
        yield
    finally:
        for layer, previous in zip(layers, before, strict=True):
            layer.implementation = previous


def _check(implementation: str) -> None:
    if implementation not in ATTENTION_IMPLEMENTATIONS:
        raise ValueError(
            f"attention must be one of {ATTENTION_IMPLEMENTATIONS}, got {implementation!r}"
        )
