"""Pretrained weights for one anchor, loaded strictly: by name, from a file, or a detector's.

A missing, unexpected or misshapen key is an error. detectron2's suffix matching
(``?matching_heuristics=True``) does not work here, as both anchors share every suffix.
"""

import logging
import os
from collections.abc import Mapping, Sequence

import timm
import torch

from snnet_vitdet.errors import InputError, first_line
from snnet_vitdet.weight_files import check_state_dict, read_weight_file

from .anchor import AnchorViT
from .bundled_weights import BUNDLED, bundled_file, check_bundled
from .conversion import OURS, convert_timm_state_dict, differences
from .families import check_pretraining

__all__ = ["are_local", "check_weights", "load_anchor_weights", "read_weights"]

logger = logging.getLogger(__name__)

# The ViT inside the checkpoint of a detector on one ViT.
_IN_DETECTOR = "backbone.net."
_FILE_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".pkl")


def load_anchor_weights(
    anchor: AnchorViT,
    source: str | None,
    pixel_mean: Sequence[float] | None = None,
    pixel_std: Sequence[float] | None = None,
) -> None:
    """Loads pretrained weights into an anchor in place.

    Args:
        anchor: The anchor.
        source: A local file (see :func:`snnet_vitdet.weight_files.read_weight_file`) with a timm
            state dict, possibly under the key ``model`` or ``state_dict``, or the checkpoint of a
            detector that was trained with this anchor alone; the name of weights that come with
            the package, e.g. ``vit_nano_s``; or the name of a timm model with pretrained weights,
            e.g. ``deit3_small_patch16_224.fb_in22k_ft_in1k``. None or an empty string keeps the
            random weights.
        pixel_mean: Mean of the detector's normalisation, RGB, 0 to 255; None if it is that of the
            anchor's pretraining.
        pixel_std: Its standard deviation.

    Raises:
        InputError: If the source cannot be read or does not fit the anchor exactly.
    """
    if not source:
        return
    _check_arguments(anchor, source)
    state = _converted(read_weights(source), anchor, source, pixel_mean, pixel_std)
    missing, unexpected = anchor.load_state_dict(state, strict=False)
    assert not unexpected and all(OURS.match(key) for key in missing)
    logger.info("Loaded %d tensors from %s.", len(state), source)


def check_weights(anchor: AnchorViT, source: str) -> None:
    """Checks what :func:`load_anchor_weights` checks, without loading or downloading weights.

    Args:
        anchor: The anchor, which may be on the meta device.
        source: As for :func:`load_anchor_weights`.

    Raises:
        InputError: If a file cannot be read or does not fit, timm does not know the name, or its
            model differs from the anchor.
    """
    _check_arguments(anchor, source)
    if are_local(source):
        _converted(read_weights(source), anchor, source)


def _check_arguments(anchor: AnchorViT, source: str) -> None:
    """Checks the arguments of an anchor that weights with a name need; a file does not say."""
    if source in BUNDLED:
        check_bundled(anchor, source)
    elif not _names_file(source):
        _check_name(source)
        check_pretraining(anchor, source)


def _converted(
    state: Mapping[str, torch.Tensor],
    anchor: AnchorViT,
    source: str,
    pixel_mean: Sequence[float] | None = None,
    pixel_std: Sequence[float] | None = None,
) -> dict[str, torch.Tensor]:
    """The anchor's state dict out of timm's, or out of that of a detector on this anchor."""
    if not any(key.startswith(_IN_DETECTOR) for key in state):
        return convert_timm_state_dict(state, anchor, source, pixel_mean, pixel_std)
    # A detector's ViT already expects this project's normalisation of pixels.
    own = {k.removeprefix(_IN_DETECTOR): v for k, v in state.items() if k.startswith(_IN_DETECTOR)}
    if problems := differences(own, anchor.state_dict()):
        raise InputError(
            f"{source} is a checkpoint of a detector, but not of one with this anchor alone: its "
            f"weights differ ({'; '.join(problems)}). Give one that was trained with the same "
            "anchor by a config of a baseline"
        )
    return own


def read_weights(source: str) -> Mapping[str, torch.Tensor]:
    """The state dict of a local file, of bundled weights or of a timm model by name.

    Code in files is never run.

    Raises:
        InputError: If there is no such file or model, or it cannot be read or downloaded.
    """
    if source in BUNDLED:
        return _read_file(bundled_file(source))
    return _read_file(source) if _names_file(source) else _read_timm(source)


def are_local(source: str) -> bool:
    """Whether weights are on this machine: a file or bundled, not to be downloaded by timm."""
    return source in BUNDLED or _names_file(source)


def _names_file(source: str) -> bool:
    return source.endswith(_FILE_SUFFIXES) or os.path.exists(source)


def _check_name(name: str) -> None:
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        raise InputError(
            f"weights {name!r} are neither an existing file, nor bundled ({', '.join(BUNDLED)}), "
            "nor a model that timm knows; see tools/list_anchors.py"
        )
    known = timm.list_pretrained(f"{architecture}.*")
    if not known or (name != architecture and name not in known):
        raise InputError(f"timm has no weights {name!r}; for {architecture} it has {known}")


def _read_file(path: str) -> Mapping[str, torch.Tensor]:
    state = read_weight_file(path)
    # The moving average is the detector, if the training kept one.
    if isinstance(state, Mapping) and isinstance(state.get("ema"), Mapping):
        state = state["ema"].get("weights", state)
    for key in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    return check_state_dict(state, f"weight file {path}")


def _read_timm(name: str) -> Mapping[str, torch.Tensor]:
    _check_name(name)
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as e:  # timm, the hub client and the network raise many types
        raise InputError(
            f"timm could not give the weights {name!r} ({type(e).__name__}: {first_line(e)}): "
            "without network, download them elsewhere and give the file's path with "
            "init.weights.small=<file> (or .large, or .net; docs/method.md says where they are)"
        ) from e
    return model.state_dict()
