"""Pretrained weights of timm's plain ViTs into one anchor, strictly.

One function converts the names; a missing, unexpected or misshapen key is an error. detectron2's
suffix matching (``?matching_heuristics=True``) cannot serve here: both anchors share every suffix.
"""

import logging
import os
import pickle
import re
from collections.abc import Iterable, Mapping

import safetensors.torch
import timm
import torch

from snnet_vitdet.errors import InputError

from .anchor import AnchorViT

__all__ = ["check_weights", "convert_timm_state_dict", "load_anchor_weights", "read_weights"]

logger = logging.getLogger(__name__)

_FILE_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
# ViTDet has no class token, no final norm (its pyramid norms; fc_norm where timm averages tokens)
# and no classifier.
_DROPPED = re.compile(r"^(cls_token$|norm\.|fc_norm\.|head\.)")
# Without effect at the start of a detection training, and in no pretrained ViT.
_OURS = re.compile(r"^blocks\.\d+\.(attn\.rel_pos_[hw]|.*\.lora_[ab])$")


def load_anchor_weights(anchor: AnchorViT, source: str | None) -> None:
    """Loads pretrained weights into an anchor in place.

    Args:
        anchor: The anchor.
        source: A local file (.pth, .pt, .bin or .safetensors, a timm state dict, possibly under the
            key ``model`` or ``state_dict``), else the name of a timm model with pretrained weights,
            e.g. ``deit3_small_patch16_224.fb_in22k_ft_in1k``. None or an empty string leaves the
            anchor as it was initialised.

    Raises:
        InputError: If the source cannot be read or does not fit the anchor exactly.
    """
    if not source:
        return
    state = convert_timm_state_dict(read_weights(source), anchor, source)
    missing, unexpected = anchor.load_state_dict(state, strict=False)
    assert not unexpected and all(_OURS.match(key) for key in missing)
    logger.info("Loaded %d tensors from %s.", len(state), source)


def check_weights(anchor: AnchorViT, source: str) -> None:
    """Raises what :func:`load_anchor_weights` would, without loading; timm is asked for names only.

    Args:
        anchor: The anchor, which may be on the meta device.
        source: As for :func:`load_anchor_weights`.

    Raises:
        InputError: If a file cannot be read or does not fit, or timm does not know the name.
    """
    if _is_file(source):
        convert_timm_state_dict(_read_file(source), anchor, source)
    else:
        _check_name(source)


def read_weights(source: str) -> Mapping[str, torch.Tensor]:
    """The state dict of a local file or of a timm model by name; code in files is never run.

    Raises:
        InputError: If there is no such file or model, or it cannot be read or downloaded.
    """
    return _read_file(source) if _is_file(source) else _read_timm(source)


def _is_file(source: str) -> bool:
    return source.endswith(_FILE_SUFFIXES) or os.path.exists(source)


def _check_name(name: str) -> None:
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        raise InputError(
            f"weights {name!r} are neither an existing file nor a model that timm knows; see "
            "timm.list_pretrained('deit3*')"
        )
    known = timm.list_pretrained(f"{architecture}.*")
    if not known or (name != architecture and name not in known):
        raise InputError(f"timm has no weights {name!r}; for {architecture} it has {known}")


def _read_file(path: str) -> Mapping[str, torch.Tensor]:
    if not os.path.isfile(path):
        raise InputError(f"weight file {path} does not exist: check the path")
    try:
        if path.endswith(".safetensors"):
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        raise InputError(
            f"weight file {path} cannot be read as plain tensors ({_first_line(e)}): it is "
            "damaged, or holds Python objects, which are never run here; save its state dict alone"
        ) from e
    except Exception as e:  # torch's unpickler raises whatever the damage leads it to
        raise InputError(
            f"weight file {path} cannot be read ({_first_line(e)}): it is truncated or no weight "
            "file; download it again"
        ) from e
    for key in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(
        isinstance(k, str) and torch.is_tensor(v) for k, v in state.items()
    ):
        raise InputError(f"weight file {path} holds no state dict (names to tensors)")
    return state


def _read_timm(name: str) -> Mapping[str, torch.Tensor]:
    _check_name(name)
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as e:  # timm, the hub client and the network raise many types
        raise InputError(
            f"timm could not give the weights {name!r} ({type(e).__name__}: {_first_line(e)}): "
            "without network, download them elsewhere and give the file's path"
        ) from e
    return model.state_dict()


def convert_timm_state_dict(
    state: Mapping[str, torch.Tensor], anchor: AnchorViT, source: str = "the weights"
) -> dict[str, torch.Tensor]:
    """timm's state dict of a plain ViT, with the names and shapes of an anchor.

    Args:
        state: As timm or the authors of DeiT3 publish it (``gamma_1`` for ``ls1.gamma``).
        anchor: The anchor it is for.
        source: What to call the weights in an error.

    Returns:
        The anchor's state dict without relative positions, which no pretrained ViT has.

    Raises:
        InputError: If a key is missing, unexpected or has another shape; lists them.
    """
    expected = {k: v for k, v in anchor.state_dict().items() if not _OURS.match(k)}
    converted = {}
    for key, value in state.items():
        if not _DROPPED.match(key):
            converted[re.sub(r"\.gamma_([12])$", r".ls\1.gamma", key)] = value
    positions = converted.get("pos_embed")
    _, num_positions, width = expected["pos_embed"].shape
    if (
        positions is not None
        and "cls_token" in state
        and positions.shape == (1, num_positions + 1, width)
    ):
        converted["pos_embed"] = positions[:, 1:]

    embedding = converted.get("patch_embed.proj.weight")
    if embedding is not None and embedding.ndim == 4 and len(embedding) != anchor.embed_dim:
        raise InputError(
            f"{source}: {embedding.shape[0]} wide, but the anchor is {anchor.embed_dim} wide; give "
            "the weights of the anchor's own model, or set its embed_dim, depth and num_heads"
        )
    problems = _describe("missing", expected.keys() - converted.keys())
    problems += _describe("unexpected", converted.keys() - expected.keys())
    problems += _describe(
        "misshapen",
        (
            f"{key} {tuple(converted[key].shape)} instead of {tuple(expected[key].shape)}"
            for key in expected.keys() & converted.keys()
            if converted[key].shape != expected[key].shape
        ),
    )
    if problems:
        raise InputError(
            f"{source}: these are not the weights of the anchor (width {anchor.embed_dim}, depth "
            f"{anchor.depth}, patch {anchor.patch_size}): " + "; ".join(problems)
        )
    return converted


def _describe(what: str, keys: Iterable[str]) -> list[str]:
    keys = sorted(keys)
    if not keys:
        return []
    shown = ", ".join(keys[:8]) + (", …" if len(keys) > 8 else "")
    return [f"{len(keys)} {what} ({shown})"]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
