"""Multi-head self-attention over a grid of tokens, with two kinds of relative positions.

Decomposed: inner products of the query with a vector for the row offset and one for the column
offset (MViTv2, https://arxiv.org/abs/2112.01526; ViTDet and SAM). Table: one number for each offset
and head (BEiT, https://arxiv.org/abs/2106.08254).

There are two implementations of the same mathematics. ``fused``, the default, runs torch's
scaled_dot_product_attention. ``reference`` writes out q·kᵀ, softmax and ·v; costs are counted on it
(fvcore has no handler for fused attention and drops it).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from detectron2.modeling.backbone.utils import add_decomposed_rel_pos
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

__all__ = [
    "ATTENTION_IMPLEMENTATIONS",
    "Attention",
    "attention_implementation",
    "resize_rel_pos",
    "resize_rel_pos_table",
]

ATTENTION_IMPLEMENTATIONS = ("fused", "reference")

# Before cuDNN 9.15.1, its attention is wrong or fails for a number of tokens that is no multiple of
# 128, such as the 196 of a window (https://github.com/pytorch/pytorch/issues/169849).
if (torch.backends.cudnn.version() or 0) < 91501:
    torch.backends.cuda.enable_cudnn_sdp(False)
# Up to cuDNN 9.25.1, its gradients with a mask can be NaN
# (https://github.com/pytorch/pytorch/issues/196678).
_BACKENDS_WITH_A_MASK = [
    SDPBackend.FLASH_ATTENTION,  # on a CPU; the one of a GPU takes no mask
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]

# torch's kernels of fused attention. Only their outputs are kept for the backward pass.
_KERNELS = [
    getattr(torch.ops.aten, name).default
    for name in (
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
    )
    if hasattr(torch.ops.aten, name)
]
# Up to this number of tokens (a window has 196), recomputing attention is cheap: 2 % of the time of
# a window block of L, against 20 % of a global block.
_FEW_TOKENS = 512


class Attention(nn.Module):
    """Self-attention in which every token sees every other token of its grid.

    Names and layouts of the parameters are timm's, plus detectron2's ``rel_pos_h`` and
    ``rel_pos_w``, or ``rel_pos_table``, (heads, 2 height - 1, 2 width - 1).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        rel_pos_size: tuple[int, int] | None = None,
        rel_pos_table: bool = False,
        implementation: str = "fused",
        linear: Callable[[int, int], nn.Module] = nn.Linear,
    ) -> None:
        """
        Args:
            dim: Token width; a multiple of ``num_heads``.
            num_heads: Number of heads.
            rel_pos_size: Grid (height, width) that relative positions are stored for, None for no
                relative positions. They are interpolated to other grids.
            rel_pos_table: Whether the relative positions are a table instead of decomposed. Its
                bias of heads x tokens x tokens is materialised, so no flash kernel runs.
            implementation: ``fused`` or ``reference``.
            linear: Builds the two projections from input and output width.

        Raises:
            ValueError: If the heads do not divide the width, or the implementation is unknown.
        """
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"width {dim} is not a multiple of num_heads={num_heads}")
        _check(implementation)
        self.num_heads = num_heads
        self.implementation = implementation
        self.position_side = 0
        """Side in tokens of the square whose relative positions are cropped to the grid at hand; 0
        to interpolate them to the grid instead."""
        self.qkv = linear(dim, dim * 3)
        self.proj = linear(dim, dim)
        self.rel_pos: str | None = None
        if rel_pos_size is None:
            return
        # Zero, so that a pretrained anchor starts as it was without them (ViTDet's default).
        sides = [2 * side - 1 for side in rel_pos_size]
        if rel_pos_table:
            self.rel_pos = "table"
            self.rel_pos_table = nn.Parameter(torch.zeros(num_heads, *sides))
        else:
            self.rel_pos = "decomposed"
            head_dim = dim // num_heads
            self.rel_pos_h = nn.Parameter(torch.zeros(sides[0], head_dim))
            self.rel_pos_w = nn.Parameter(torch.zeros(sides[1], head_dim))

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
        if self.rel_pos == "decomposed":
            rel_pos = self._rel_pos(grid)
            logits = add_decomposed_rel_pos(logits, q, *rel_pos, grid, grid)
        elif self.rel_pos == "table":
            logits = (logits.unflatten(0, (-1, self.num_heads)) + self._table_bias(grid)).flatten(
                0, 1
            )
        out = logits.softmax(dim=-1) @ v
        return out.unflatten(0, (-1, self.num_heads))

    def _fused(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: tuple[int, int]
    ) -> torch.Tensor:
        if self.rel_pos is None:
            return F.scaled_dot_product_attention(q, k, v)
        if self.rel_pos == "table":
            bias = self._table_bias(grid).to(q.dtype)
            with sdpa_kernel(_BACKENDS_WITH_A_MASK):
                return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        attend = self._decomposed
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # The inputs of the kernel are wider than q, k and v, and cheap to recompute from them
            # in the backward pass. Keeping them would take more memory than attention itself saves.
            keep = {}
            if q.shape[2] > _FEW_TOKENS:
                keep["context_fn"] = partial(create_selective_checkpoint_contexts, _KERNELS)
            attend = partial(
                checkpoint, attend, use_reentrant=False, preserve_rng_state=False, **keep
            )
        return attend(q, k, v, grid)

    def _decomposed(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grid: tuple[int, int]
    ) -> torch.Tensor:
        # The bias of query i and key j is rel_h[i, row(j)] + rel_w[i, column(j)]: an inner product
        # of the query's two vectors with the one-hot codes of the key's row and column. Appended to
        # q and k it needs no (H*W, H*W) bias in memory.
        height, width = grid
        head_dim = q.shape[-1]
        queries = q.unflatten(2, grid)
        rel_pos = self._rel_pos(grid)
        # The offset query - key falls as the key moves on. (query, C, key)
        by_rows, by_columns = (
            table.unfold(0, side, 1).flip(2) for table, side in zip(rel_pos, grid, strict=True)
        )
        rel_h = torch.einsum("bnhwc,hck->bnhwk", queries, by_rows)
        rel_w = torch.einsum("bnhwc,wck->bnhwk", queries, by_columns)
        rel = torch.cat([rel_h, rel_w], dim=-1).flatten(2, 3).to(q.dtype)
        # Flash kernels want one size for q, k and v, a multiple of 8: zeros add nothing to q·kᵀ.
        zeros = rel.new_zeros(()).expand(*rel.shape[:3], -(head_dim + height + width) % 8)
        # A compiler traces with tensors without values, which must not be kept.
        codes_of = _key_codes if torch.compiler.is_compiling() else _kept_key_codes
        codes = codes_of(height, width, zeros.shape[-1], k.dtype, k.device)
        codes = codes.expand(*k.shape[:2], -1, -1)
        q = torch.cat([q * head_dim**-0.5, rel, zeros], dim=-1)
        k = torch.cat([k, codes], dim=-1)
        v = F.pad(v, (0, codes.shape[-1]))
        return F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., :head_dim]

    def _stored_for(self, grid: tuple[int, int]) -> tuple[int, int]:
        """The grid that relative positions are interpolated to, before they are cropped."""
        if not self.position_side:
            return grid
        side = max(self.position_side, *grid)
        return side, side

    def _rel_pos(self, grid: tuple[int, int]) -> list[torch.Tensor]:
        """A vector for every row offset, (2 H - 1, C), and for every column offset."""
        tables = (self.rel_pos_h, self.rel_pos_w)
        resized = (
            resize_rel_pos(table, 2 * side - 1)
            for table, side in zip(tables, self._stored_for(grid), strict=True)
        )
        return [_cropped(table, 0, side) for table, side in zip(resized, grid, strict=True)]

    def _table_bias(self, grid: tuple[int, int]) -> torch.Tensor:
        """Bias of every query and key, (heads, H*W, H*W)."""
        table: torch.Tensor = self.rel_pos_table
        table = resize_rel_pos_table(table, [2 * side - 1 for side in self._stored_for(grid)])
        for dim, side in enumerate(grid, start=1):
            table = _cropped(table, dim, side)
        height, width = grid
        # (heads, query row, query column, key row, key column)
        bias = table.unfold(1, height, 1).unfold(2, width, 1).flip(3, 4)
        return bias.flatten(3, 4).flatten(1, 2)


def _cropped(table: torch.Tensor, dim: int, side: int) -> torch.Tensor:
    """The offsets between places among ``side``, in the middle of those of a longer side."""
    length = 2 * side - 1
    return table.narrow(dim, (table.shape[dim] - length) // 2, length)


def resize_rel_pos(rel_pos: torch.Tensor, length: int) -> torch.Tensor:
    """Interpolates decomposed relative positions, as detectron2's ``get_rel_pos`` does.

    Args:
        rel_pos: A vector for each offset, (offsets, C).
        length: Number of offsets of the result.

    Returns:
        (length, C); ``rel_pos`` itself if it has that length.
    """
    if len(rel_pos) == length:
        return rel_pos
    # In the layout of a stored table, so that the products with either round alike.
    return F.interpolate(rel_pos.T[None], length, mode="linear")[0].T.contiguous()


def resize_rel_pos_table(table: torch.Tensor, sides: Sequence[int]) -> torch.Tensor:
    """Interpolates a table of relative positions.

    Args:
        table: A bias for each head and offset, (heads, rows, columns).
        sides: Numbers of offsets of the result.

    Returns:
        (heads, *sides); ``table`` itself if it has these sides.
    """
    if list(table.shape[1:]) == list(sides):
        return table
    return F.interpolate(table[None], list(sides), mode="bicubic", align_corners=False)[0]


def _key_codes(
    height: int, width: int, zeros: int, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """One-hot row and column of every token of a grid and some zeros, (H*W, H + W + zeros)."""
    rows = torch.eye(height, dtype=dtype, device=device).repeat_interleave(width, dim=0)
    columns = torch.eye(width, dtype=dtype, device=device).repeat(height, 1)
    return F.pad(torch.cat([rows, columns], dim=1), (0, zeros))


# Some MB each. Training cannot use tensors that were made in inference mode.
_kept_key_codes = lru_cache(maxsize=32)(torch.inference_mode(False)(_key_codes))


@contextmanager
def attention_implementation(module: nn.Module, implementation: str) -> Iterator[None]:
    """Runs every attention inside ``module`` with an implementation inside the context."""
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
