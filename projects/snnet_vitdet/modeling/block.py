"""A block of a plain ViT, and its compilation."""

from collections.abc import Callable
from functools import partial

import torch
from detectron2.modeling.backbone.utils import window_partition, window_unpartition
from timm.layers import DropPath, LayerScale, Mlp, get_act_layer
from torch import nn

from .attention import Attention

__all__ = ["Block", "compile_blocks"]

# Graphs that blocks may need in a training: for each ViT and image size, with and without windows,
# stochastic depth, low-rank updates, and frozen weights. Above torch's limit of 8, a block would
# run uncompiled.
_MAX_GRAPHS = 256


class Block(nn.Module):
    """A pre-norm transformer block with LayerScale, over windows or over the whole grid."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        layer_scale_init: float | None = 1e-6,
        window_size: int = 0,
        rel_pos_size: tuple[int, int] | None = None,
        rel_pos_table: bool = False,
        norm_eps: float = 1e-6,
        act_layer: str = "gelu",
        attention: str = "fused",
        linear: Callable[[int, int], nn.Module] = nn.Linear,
    ) -> None:
        """
        Args:
            dim: Token width.
            num_heads: Number of attention heads.
            mlp_ratio: Hidden width of the MLP over ``dim``, rounded to a whole number.
            drop_path: Probability of dropping each of the two branches, per image, in training.
            layer_scale_init: Start value of LayerScale, None for no LayerScale.
            window_size: Side of the attention windows in tokens, 0 for global attention.
            rel_pos_size: Grid that relative positions are stored for, None for no positions.
            rel_pos_table: Whether relative positions are a table of biases, not decomposed.
            norm_eps: Epsilon of both layer norms.
            act_layer: timm's name of the MLP's activation.
            attention: ``fused`` or ``reference``.
            linear: Builds the linear layers of attention and MLP from input and output width.
        """
        super().__init__()
        norm = partial(nn.LayerNorm, eps=norm_eps)

        def layer_scale() -> nn.Module:
            return nn.Identity() if layer_scale_init is None else LayerScale(dim, layer_scale_init)

        self.window_size = window_size
        self.norm1 = norm(dim)
        self.attn = Attention(dim, num_heads, rel_pos_size, rel_pos_table, attention, linear)
        self.ls1 = layer_scale()
        self.norm2 = norm(dim)
        hidden = round(dim * mlp_ratio)
        self.mlp = Mlp(dim, hidden_features=hidden, act_layer=get_act_layer(act_layer))
        if linear is not nn.Linear:
            self.mlp.add_module("fc1", linear(dim, hidden))
            self.mlp.add_module("fc2", linear(hidden, dim))
        self.ls2 = layer_scale()
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def draw_scales(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Draws stochastic depth for the two branches of each image.

        Args:
            x: Tokens, (B, H, W, C).

        Returns:
            Factors of the first and of the second branch, (B, 1, 1, 1): 0, or above 1 for a branch
            that is kept. None if nothing is dropped, as in evaluation.
        """
        if not (self.training and isinstance(self.drop_path, DropPath)):
            return None
        ones = x.new_ones(len(x), 1, 1, 1)
        return self.drop_path(ones), self.drop_path(ones)

    def forward(
        self, x: torch.Tensor, scales: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """
        Args:
            x: Tokens, (B, H, W, C).
            scales: The result of :meth:`draw_scales`; drawn here if it is not given.

        Returns:
            Tokens, (B, H, W, C).
        """
        if scales is None:
            scales = self.draw_scales(x)
        y = self.norm1(x)
        if self.window_size:
            grid = y.shape[1:3]
            y, padded = window_partition(y, self.window_size)
            y = self.attn(y)
            y = window_unpartition(y, self.window_size, padded, grid)
        else:
            y = self.attn(y)
        y = self.ls1(y)
        x = x + (y if scales is None else y * scales[0])
        y = self.ls2(self.mlp(self.norm2(x)))
        return x + (y if scales is None else y * scales[1])


def compile_blocks(model: nn.Module, backend: str = "inductor") -> None:
    """Compiles every block inside a model with ``torch.compile``, in place.

    Blocks of equal sizes share their compiled code. Names in the state dict stay, and a copy of the
    model is not compiled.

    Args:
        model: A model with ViTs of this project.
        backend: Backend of ``torch.compile``.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _MAX_GRAPHS)
    # With several processes, torch would split a graph where DDP's buckets of gradients end.
    config.optimize_ddp = False
    for module in model.modules():
        if isinstance(module, Block):
            # Graphs for all sizes take minutes to make, and are slower.
            module.compile(backend=backend, dynamic=False)
