"""An anchor: a pretrained plain ViT, adapted to detection as in ViTDet.

The blocks are those of timm's plain ViTs (DeiT3, MAE, AugReg, DINOv2, CLIP, BEiT, SAM, …), with
timm's parameter names, without class token and final norm. Window attention in most blocks,
interpolated absolute positions and decomposed relative positions are ViTDet's
(https://arxiv.org/abs/2203.16527, section 3). detectron2's own ``ViT`` has no LayerScale and drops
a class slot that DeiT3's positions do not have.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.utils import PatchEmbed, get_abs_pos
from torch import nn
from torch.utils.checkpoint import checkpoint

from snnet_vitdet.errors import InputError
from snnet_vitdet.stitching import LowRankLinear, updating
from snnet_vitdet.validators import FLAG, TEXT, check, number, whole

from .block import Block
from .pretraining import Pretraining

__all__ = ["AnchorViT", "last_of_each_quarter"]

# The arguments that pretrained weights do not determine.
_VALIDATORS = {
    "img_size": whole(1),
    "patch_size": whole(1),
    "drop_path_rate": number(0, below=1),
    "window_size": whole(0),
    "activation_checkpointing": FLAG,
    "lora_rank": whole(0),
    "out_feature": TEXT,
}


def last_of_each_quarter(depth: int) -> tuple[int, ...]:
    """Indexes of ViTDet's blocks with global attention, e.g. 2, 5, 8, 11 of 12 blocks."""
    return tuple(sorted({max(round(depth * quarter / 4), 1) - 1 for quarter in (1, 2, 3, 4)}))


class AnchorViT(Backbone):
    """A plain ViT: alone a detectron2 backbone (the baseline), or one of two anchors to stitch."""

    def __init__(
        self,
        img_size: int = 1024,
        patch_size: int = 16,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        layer_scale_init: float | None = 1e-6,
        norm_eps: float = 1e-6,
        act_layer: str = "gelu",
        pre_norm: bool = False,
        window_size: int = 14,
        global_block_indexes: Sequence[int] | None = None,
        abs_pos: str | None = "interpolated",
        use_rel_pos: bool | str = True,
        rel_pos_table: bool = False,
        pretrain_img_size: int = 224,
        pretrain_patch_size: int | None = None,
        pretrain_pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pretrain_pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
        attention: str = "fused",
        activation_checkpointing: bool = False,
        lora_rank: int = 0,
        lora_alpha: float | None = None,
        out_feature: str = "last_feat",
    ) -> None:
        """
        Args:
            img_size: Side in pixels of the square training images; sets the size of the relative
                positions of global blocks.
            patch_size: Side of a patch in pixels.
            embed_dim: Token width.
            depth: Number of blocks.
            num_heads: Number of attention heads.
            mlp_ratio: Hidden width of the MLPs over ``embed_dim``, rounded to a whole number.
            drop_path_rate: Stochastic depth of the last block; it rises linearly from 0.
            layer_scale_init: Start value of LayerScale, None for no LayerScale.
            norm_eps: Epsilon of all layer norms.
            act_layer: timm's name of the MLPs' activation: ``gelu``, ``gelu_tanh``, ``quick_gelu``.
            pre_norm: Whether a layer norm comes before the first block (CLIP).
            window_size: Side in tokens of the attention windows; 0 for global attention in all
                blocks.
            global_block_indexes: Blocks with global attention; None for the last of each quarter.
            abs_pos: Absolute positions. ``interpolated``: the pretraining's grid, interpolated to
                the current grid, as in ViTDet. ``win``: the pretraining's grid repeated in every
                window, plus an interpolated grid that starts at zero (absolute-win,
                https://arxiv.org/abs/2311.05613). None: no absolute positions (BEiT).
            use_rel_pos: Whether attention has relative positions; ``global`` for only the blocks
                with global attention.
            rel_pos_table: Whether relative positions are a table with a bias for each offset and
                head (BEiT) instead of decomposed (ViTDet). A global block then materialises its
                bias: heads x tokens x tokens numbers.
            pretrain_img_size: Side in pixels of the pretraining's images; with the patch size it
                sets the stored grid of absolute positions.
            pretrain_patch_size: Side of a patch in the pretraining, None for ``patch_size``.
                Weights of other patches are resampled when they are loaded.
            pretrain_pixel_mean: Mean of the pretraining's normalisation, RGB, 0 to 255. Weights are
                converted to the detector's normalisation when they are loaded.
            pretrain_pixel_std: Standard deviation of the pretraining's normalisation.
            attention: ``fused`` or ``reference``.
            activation_checkpointing: Whether training keeps only the input of each block and
                recomputes the rest in the backward pass.
            lora_rank: Above 0, the anchor is frozen except for a LoRA update of this rank in every
                linear layer of attention and MLP (parameter-efficient tuning; paper, Figure 12a).
            lora_alpha: Scale of that update times its rank, None for the rank.
            out_feature: Name of the output.

        Raises:
            InputError: If an argument is not allowed, or a block index is outside the anchor.
        """
        given = locals()
        super().__init__()
        for key, validator in _VALIDATORS.items():
            check(key, given[key], validator)
        self.pretraining = Pretraining(
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            layer_scale_init=layer_scale_init,
            norm_eps=norm_eps,
            act_layer=act_layer,
            pre_norm=pre_norm,
            abs_pos=abs_pos,
            use_rel_pos=use_rel_pos,
            rel_pos_table=rel_pos_table,
            pretrain_img_size=pretrain_img_size,
            pretrain_patch_size=patch_size if pretrain_patch_size is None else pretrain_patch_size,
            pretrain_pixel_mean=pretrain_pixel_mean,
            pretrain_pixel_std=pretrain_pixel_std,
        )
        if abs_pos == "win" and not window_size:
            raise InputError("abs_pos='win' repeats positions in every window: set a window_size")
        if global_block_indexes is None:
            global_block_indexes = last_of_each_quarter(depth)
        outside = [i for i in global_block_indexes if whole(0, depth - 1)(i)]
        if outside:
            raise InputError(
                f"global_block_indexes holds {outside[0]}, but the anchor of width {embed_dim} has "
                f"blocks 0 … {depth - 1}: set it to null for the last of each quarter"
            )
        self.embed_dim = embed_dim
        self.depth = depth
        self.patch_size = patch_size
        self.window_size = window_size
        self.abs_pos = abs_pos
        self.activation_checkpointing = activation_checkpointing
        self.position_side = 0
        """Side in tokens of the square whose absolute positions are cropped to the grid at hand; 0
        to interpolate them to the grid instead."""
        self.patch_embed = PatchEmbed(
            kernel_size=(patch_size, patch_size),
            stride=(patch_size, patch_size),
            embed_dim=embed_dim,
        )
        self.pos_embed = self.pos_embed_global = None
        num_positions = self.pretraining.grid**2
        if abs_pos:
            self.pos_embed = nn.Parameter(torch.zeros(1, num_positions, embed_dim))
        if abs_pos == "win":
            self.pos_embed_global = nn.Parameter(torch.zeros(1, num_positions, embed_dim))
        self.norm_pre = nn.LayerNorm(embed_dim, eps=norm_eps) if pre_norm else nn.Identity()

        linear: Callable[[int, int], nn.Module] = nn.Linear
        if lora_rank:
            linear = partial(LowRankLinear, rank=lora_rank, alpha=lora_alpha, train_bias=False)
        blocks = []
        drop_paths = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        for index, drop_path in enumerate(drop_paths):
            window = 0 if index in global_block_indexes else window_size
            side = window or img_size // patch_size
            has_rel_pos = not window if use_rel_pos == "global" else use_rel_pos
            blocks.append(
                Block(
                    dim=embed_dim,
                    num_heads=num_heads,
                    mlp_ratio=mlp_ratio,
                    drop_path=drop_path,
                    layer_scale_init=layer_scale_init,
                    window_size=window,
                    rel_pos_size=(side, side) if has_rel_pos else None,
                    rel_pos_table=rel_pos_table,
                    norm_eps=norm_eps,
                    act_layer=act_layer,
                    attention=attention,
                    linear=linear,
                )
            )
        self.blocks = nn.ModuleList(blocks)

        self._out_features = [out_feature]
        self._out_feature_channels = {out_feature: embed_dim}
        self._out_feature_strides = {out_feature: patch_size}

        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.apply(_init_linear)
        if lora_rank:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(name.endswith((".lora_a", ".lora_b")))

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Patches with their absolute positions.

        Args:
            images: (B, 3, H, W), normalised. If the patch size does not divide H and W, zeros are
                added at the bottom and at the right.

        Returns:
            Tokens, (B, H / patch, W / patch, C), rounded up.
        """
        missing = [-side % self.patch_size for side in images.shape[-2:]]
        if any(missing):
            images = F.pad(images, (0, missing[1], 0, missing[0]))
        # The convolution's output is channels-first in memory, and the blocks would pass that on:
        # each norm would copy its input.
        x = self.patch_embed(images).contiguous()
        if self.abs_pos:
            x = x + self._positions((x.shape[1], x.shape[2]))
        return self.norm_pre(x)

    def _positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """Absolute positions of a grid, (1, H, W, C)."""
        rows, columns = grid
        if self.position_side:
            grid = (max(self.position_side, *grid),) * 2
        if self.pos_embed_global is None:
            return get_abs_pos(self.pos_embed, False, grid)[:, :rows, :columns]
        # Windows start at the upper left token; the last ones may reach beyond the grid.
        side = self.window_size
        repeats = [-(-length // side) for length in (rows, columns)]
        windows = get_abs_pos(self.pos_embed, False, (side, side)).tile(1, *repeats, 1)
        stretched = get_abs_pos(self.pos_embed_global, False, grid)
        return windows[:, :rows, :columns] + stretched[:, :rows, :columns]

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Args:
            images: (B, 3, H, W), normalised.

        Returns:
            The output of the last block by the name of the output, (B, C, H / patch, W / patch).
        """
        x = self.embed(images)
        for index in range(self.depth):
            x = self.run_block(index, x)
        return {self._out_features[0]: x.permute(0, 3, 1, 2)}

    def run_block(self, index: int, x: torch.Tensor, updated: bool | None = None) -> torch.Tensor:
        """Runs one block, with activation checkpointing if it is on.

        Args:
            index: Index of the block.
            x: Tokens, (B, h, w, C).
            updated: Whether the block's low-rank updates are used; None leaves them as they are.

        Returns:
            Tokens, (B, h, w, C).
        """
        block = cast(Block, self.blocks[index])
        run: Callable[..., torch.Tensor] = block
        if updated is not None:
            # Checkpointing runs this again in the backward pass, whatever is set by then.
            run = partial(_run_updated, block, updated)
        # Drawn outside of what is compiled: as a constant in it, each block's probability would be
        # a graph of its own, and a compiled generator draws other numbers.
        scales = block.draw_scales(x)
        if self.activation_checkpointing and torch.is_grad_enabled():
            # Nothing is random in a block but the scales.
            return checkpoint(run, x, scales, use_reentrant=False, preserve_rng_state=False)
        return run(x, scales)


def _run_updated(
    block: Block,
    updated: bool,
    x: torch.Tensor,
    scales: tuple[torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    with updating(block, updated):
        return block(x, scales)


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | LowRankLinear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
