"""Which of timm's plain ViTs can be an anchor, and with which arguments.

A model is built on the meta device (no download, no memory) and inspected. A model with parts that
an anchor does not have is refused with the reason: its weights would load into a network that
computes something else.
"""

from typing import Any

import timm
import torch
from timm.layers import LayerNorm, Mlp
from timm.models import beit, eva, vision_transformer, vision_transformer_sam
from timm.models.deit import VisionTransformerDistilled
from torch import nn

from snnet_vitdet.errors import InputError

from .anchor import AnchorViT

__all__ = ["anchor_arguments", "check_pretraining", "plain_vit_names"]

_MODULES = ("vision_transformer", "deit", "vision_transformer_sam", "beit", "eva")
_MODELS = (
    vision_transformer.VisionTransformer,
    VisionTransformerDistilled,
    vision_transformer_sam.VisionTransformerSAM,
    beit.Beit,
    eva.Eva,
)
_BLOCKS = (vision_transformer.Block, vision_transformer_sam.Block, beit.Block, eva.EvaBlock)
_ATTENTIONS = (
    vision_transformer.Attention,
    vision_transformer_sam.Attention,
    beit.Attention,
    eva.EvaAttention,
)
_ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}


def plain_vit_names() -> list[str]:
    """Names of all timm models with blocks of a plain ViT or a variant of it."""
    return [name for module in _MODULES for name in timm.list_models(module=module)]


def anchor_arguments(name: str) -> dict[str, Any]:
    """The arguments of :class:`AnchorViT` that the weights of a timm model need.

    Args:
        name: A timm name, with or without its tag, e.g. ``vit_base_patch14_dinov2.lvd142m``.

    Returns:
        All arguments that have to agree with the weights; for SAM also the windows, as its weights
        contain their relative positions.

    Raises:
        InputError: If timm does not know the name, or the model cannot be an anchor, with the
            reason.
    """
    try:
        with torch.device("meta"):
            model: Any = timm.create_model(name)  # its classes share no type with blocks
    except Exception as error:  # timm raises what its registries and models do
        raise InputError(f"timm cannot build {name!r} ({error})") from error
    reason = _reason_against(model)
    if reason:
        raise InputError(f"{name} cannot be an anchor: {reason}")
    blocks = model.blocks
    block = blocks[0]
    patch_size, image_size = (
        side[0] if isinstance(side, tuple | list) else side
        for side in (model.patch_embed.patch_size, model.patch_embed.img_size)
    )
    config = model.pretrained_cfg
    arguments = dict(
        embed_dim=model.embed_dim,
        depth=len(blocks),
        num_heads=block.attn.num_heads,
        mlp_ratio=block.mlp.fc1.out_features / model.embed_dim,
        layer_scale_init=1e-6 if _has_layer_scale(block) else None,
        norm_eps=block.norm1.eps,
        act_layer=_ACTIVATIONS[type(block.mlp.act).__name__],
        pre_norm=not _is_absent(model, "norm_pre"),
        abs_pos=None if model.pos_embed is None else "interpolated",
        rel_pos_table=_relative_positions(block) == "table",
        pretrain_img_size=image_size,
        pretrain_patch_size=patch_size,
        pretrain_pixel_mean=tuple(round(255 * value, 6) for value in config["mean"]),
        pretrain_pixel_std=tuple(round(255 * value, 6) for value in config["std"]),
    )
    if _relative_positions(block):
        arguments["use_rel_pos"] = True
    if isinstance(model, vision_transformer_sam.VisionTransformerSAM):
        windows = [each.window_size for each in blocks]
        arguments["window_size"] = max(windows)
        arguments["global_block_indexes"] = [i for i, size in enumerate(windows) if not size]
    return arguments


def check_pretraining(anchor: AnchorViT, name: str) -> None:
    """Checks that an anchor fits the weights of a timm model.

    Args:
        anchor: The anchor, which may be on the meta device.
        name: A timm name.

    Raises:
        InputError: If the model cannot be an anchor, or needs other arguments, which are listed.
    """
    if differing := anchor.pretraining.differences(anchor_arguments(name)):
        raise InputError(
            f"{name} needs an anchor with {', '.join(differing)}; tools/list_anchors.py {name} "
            "prints all its arguments"
        )


def _reason_against(model: Any) -> str | None:
    """Why a model cannot be an anchor, None if it can."""
    if type(model) not in _MODELS:
        return f"it is a {type(model).__name__}, no plain ViT"
    block = model.blocks[0]
    if type(block) not in _BLOCKS:
        return (
            f"its blocks are of the kind {type(block).__name__}; an anchor has attention, then an "
            "MLP, each behind its norm"
        )
    if getattr(model, "num_reg_tokens", 0) or getattr(model, "reg_token", None) is not None:
        return (
            "its blocks keep what they know of the whole image in register tokens, which attention "
            "in windows has no place for"
        )
    if getattr(model, "rope", None) is not None or getattr(model, "rope_global", None) is not None:
        return "it has rotary positions in queries and keys; an anchor adds positions instead"
    if type(block.attn) not in _ATTENTIONS:
        return f"its attention is of the kind {type(block.attn).__name__}, not softmax of q·k"
    if not _is_absent(block.attn, "q_norm"):
        return "it normalises queries and keys (q/k norm); an anchor does not"
    if type(block.mlp) is not Mlp:
        return f"its MLP is gated ({type(block.mlp).__name__}); an anchor has two linear layers"
    if not (_is_absent(block.attn, "norm") and _is_absent(block.mlp, "norm")):
        return "it has norms inside attention or MLP; an anchor has them only before each"
    if type(block.norm1) not in (nn.LayerNorm, LayerNorm):
        return f"its norm is {type(block.norm1).__name__}, not layer norm"
    if type(block.mlp.act).__name__ not in _ACTIVATIONS:
        return f"its activation {type(block.mlp.act).__name__} is none of {list(_ACTIVATIONS)}"
    if not _is_absent(model.patch_embed, "norm"):
        return "it normalises its patches before the positions are added"
    if model.pos_embed is None and not _relative_positions(block):
        return "it has no positions that an anchor knows"
    return None


def _relative_positions(block: nn.Module) -> str | None:
    if getattr(block.attn, "relative_position_bias_table", None) is not None:
        return "table"
    return "decomposed" if hasattr(block.attn, "rel_pos_h") else None


def _has_layer_scale(block: nn.Module) -> bool:
    return not _is_absent(block, "ls1") or getattr(block, "gamma_1", None) is not None


def _is_absent(module: nn.Module, name: str) -> bool:
    return isinstance(getattr(module, name, None), nn.Identity | type(None))
