"""Converts timm's state dict of a plain ViT into the state dict of one anchor.

Weights that detection does not use are dropped. Weights that timm stores in another form (BEiT's
biases, SAM's positions, patches of another size, another normalisation of pixels) are converted. A
result that does not match the anchor exactly is an error.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from timm.layers import resample_patch_embed, resize_rel_pos_bias_table

from snnet_vitdet.errors import InputError
from snnet_vitdet.text import listed

from .anchor import AnchorViT
from .attention import resize_rel_pos

__all__ = ["OURS", "convert_timm_state_dict", "differences"]

# These start at zero. Among pretrained plain ViTs, only SAM has some of them.
OURS = re.compile(r"^(pos_embed_global$|blocks\.\d+\.(attn\.rel_pos_[hw]$|.*\.lora_[ab]$))")
# ViTDet has no tokens besides the patches, no final norm (its pyramid has norms; fc_norm is timm's
# where it averages tokens), no pooling, neck or classifier.
_DROPPED = re.compile(
    r"^(cls_token$|dist_token$|mask_token$|norm\.|fc_norm\.|head\.|head_dist\.|attn_pool\.|neck\.)"
)
_PREFIX_TOKENS = ("cls_token", "dist_token")
_TABLE = "attn.relative_position_bias_table"


def convert_timm_state_dict(
    state: Mapping[str, torch.Tensor],
    anchor: AnchorViT,
    source: str = "the weights",
    pixel_mean: Sequence[float] | None = None,
    pixel_std: Sequence[float] | None = None,
) -> dict[str, torch.Tensor]:
    """timm's state dict of a plain ViT, with the names and shapes of an anchor.

    Args:
        state: As timm or the authors of DeiT3 publish it (``gamma_1`` for ``ls1.gamma``).
        anchor: The anchor it is for.
        source: Name of the weights in an error.
        pixel_mean: Mean of the detector's normalisation, RGB, 0 to 255; None if it is that of the
            pretraining.
        pixel_std: Standard deviation of the detector's normalisation.

    Returns:
        The anchor's state dict, without keys that match ``OURS``.

    Raises:
        InputError: If a key is missing, unexpected or has another shape; lists them.
    """
    target = anchor.state_dict()
    converted = {}
    for key, value in state.items():
        if not _DROPPED.match(key):
            converted[re.sub(r"\.gamma_([12])$", r".ls\1.gamma", key)] = value
    _check_width(converted, anchor, source)
    _convert_embedding(converted, state, anchor)
    _convert_attention(converted, target)
    if pixel_mean is not None and pixel_std is not None:
        _renormalise(converted, anchor, pixel_mean, pixel_std)
    if problems := differences(converted, target, optional=OURS):
        raise InputError(
            f"{source}: these are not the weights of the anchor (width {anchor.embed_dim}, depth "
            f"{anchor.depth}, patch {anchor.pretraining.pretrain_patch_size}): "
            + "; ".join(problems)
        )
    return converted


def _check_width(converted: Mapping[str, torch.Tensor], anchor: AnchorViT, source: str) -> None:
    embedding = converted.get("patch_embed.proj.weight")
    if embedding is not None and embedding.ndim == 4 and len(embedding) != anchor.embed_dim:
        raise InputError(
            f"{source}: {embedding.shape[0]} wide, but the anchor is {anchor.embed_dim} wide; give "
            "the weights of the anchor's own model, or set its embed_dim, depth and num_heads"
        )


def _convert_embedding(
    converted: dict[str, torch.Tensor], state: Mapping[str, torch.Tensor], anchor: AnchorViT
) -> None:
    patches = converted.get("patch_embed.proj.weight")
    if patches is not None and patches.ndim == 4:
        # The resampled patch gives a stretched image what the old one gave the image itself
        # (FlexiViT, https://arxiv.org/abs/2212.08013, section 3.4).
        size = anchor.pretraining.pretrain_patch_size
        if tuple(patches.shape[2:]) == (size, size) != (anchor.patch_size, anchor.patch_size):
            patches = resample_patch_embed(patches, [anchor.patch_size] * 2)
            converted["patch_embed.proj.weight"] = patches
        # timm has no bias where a norm follows.
        converted.setdefault("patch_embed.proj.bias", patches.new_zeros(len(patches)))
    positions = converted.get("pos_embed")
    if positions is None or anchor.pos_embed is None:
        return
    if positions.ndim == 4:  # SAM keeps (1, H, W, C)
        positions = positions.flatten(1, 2)
    _, num_positions, width = anchor.pos_embed.shape
    num_prefix = sum(token in state for token in _PREFIX_TOKENS)
    if positions.shape == (1, num_prefix + num_positions, width):
        positions = positions[:, num_prefix:]
    converted["pos_embed"] = positions


def _convert_attention(
    converted: dict[str, torch.Tensor], target: Mapping[str, torch.Tensor]
) -> None:
    for key in [key for key in converted if key.endswith("attn.qkv.weight")]:
        attention = key.removesuffix("qkv.weight")
        # BEiT and EVA have no bias of the keys, which softmax would cancel; some have no bias.
        q_bias, v_bias = (converted.pop(f"{attention}{name}_bias", None) for name in "qv")
        if q_bias is not None and v_bias is not None:
            bias = torch.cat([q_bias, torch.zeros_like(q_bias), v_bias])
        else:
            bias = converted[key].new_zeros(len(converted[key]))
        converted.setdefault(f"{attention}qkv.bias", bias)
    for key in [key for key in converted if key.endswith(_TABLE)]:
        ours = key.replace(_TABLE, "attn.rel_pos_table")
        if ours in target:
            converted[ours] = _resize_table(converted.pop(key), target[ours].shape)
    for key, value in converted.items():
        # SAM's; their length depends on the image size of the pretraining.
        if key.endswith((".rel_pos_h", ".rel_pos_w")) and key in target and value.ndim == 2:
            converted[key] = resize_rel_pos(value, len(target[key]))


def _resize_table(table: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """BEiT's table (offsets + 3, heads) as (heads, rows, columns) of another grid."""
    if round((len(table) - 3) ** 0.5) ** 2 != len(table) - 3:
        return table  # not square: refused as misshapen
    table = table[:-3]  # the last three are for the class token
    rows, columns = shape[1:]
    grid = ((rows + 1) // 2, (columns + 1) // 2)
    table = resize_rel_pos_bias_table(table, grid, (rows * columns, table.shape[1]))
    return table.T.reshape(-1, rows, columns)


def _renormalise(
    converted: dict[str, torch.Tensor],
    anchor: AnchorViT,
    pixel_mean: Sequence[float],
    pixel_std: Sequence[float],
) -> None:
    """Adapts the patch embedding to the detector's normalisation of pixels.

    With the same pixel x, the detector gives y = (x - m) / s where the weights w expect
    (x - m') / s' = y · s / s' + (m - m') / s': an affine map of the input of a linear layer.
    """
    if "patch_embed.proj.weight" not in converted:
        return
    weight, bias = converted["patch_embed.proj.weight"], converted["patch_embed.proj.bias"]
    mean, std, own_mean, own_std = (
        torch.tensor(list(values), dtype=torch.float64)
        for values in (
            pixel_mean,
            pixel_std,
            anchor.pretraining.pretrain_pixel_mean,
            anchor.pretraining.pretrain_pixel_std,
        )
    )
    # A detector stores its pixel statistics in single precision.
    if torch.allclose(mean, own_mean, rtol=1e-6) and torch.allclose(std, own_std, rtol=1e-6):
        return
    exact = weight.double()
    shift = (exact.sum(dim=(2, 3)) * ((mean - own_mean) / own_std)).sum(dim=1)
    converted["patch_embed.proj.bias"] = (bias.double() + shift).to(bias.dtype)
    converted["patch_embed.proj.weight"] = (exact * (std / own_std)[:, None, None]).to(weight.dtype)


def differences(
    state: Mapping[str, torch.Tensor],
    target: Mapping[str, torch.Tensor],
    optional: re.Pattern[str] | None = None,
) -> list[str]:
    """How a state dict differs from the one of a model; empty if it can be loaded strictly.

    Args:
        state: The state dict.
        target: The state dict of the model.
        optional: Keys that may be missing.
    """
    both = sorted(state.keys() & target.keys())
    required = {key for key in target if not (optional and optional.match(key))}
    found = {
        "missing": sorted(required - state.keys()),
        "unexpected": sorted(state.keys() - target.keys()),
        "misshapen": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(target[key].shape)}"
            for key in both
            if state[key].shape != target[key].shape
        ],
        "of another type": [
            f"{key} {state[key].dtype} instead of {target[key].dtype}"
            for key in both
            if state[key].is_floating_point() != target[key].is_floating_point()
        ],
    }
    return [f"{len(keys)} {what} ({listed(keys, 8)})" for what, keys in found.items() if keys]
