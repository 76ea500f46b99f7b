"""An anchor out of the checkpoint of a detector that was trained with it alone."""

from collections.abc import Mapping

import torch

from snnet_vitdet.errors import InputError
from snnet_vitdet.text import listed

from .anchor import AnchorViT

__all__ = ["anchor_of_baseline", "is_baseline"]

# Where the detectors of a single ViT have it.
_PREFIX = "backbone.net."


def is_baseline(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether a state dict is that of a whole detector, of one ViT or of two."""
    return any(key.startswith(_PREFIX) for key in state)


def anchor_of_baseline(
    state: Mapping[str, torch.Tensor], anchor: AnchorViT, source: str = "the weights"
) -> dict[str, torch.Tensor]:
    """The state dict of an anchor, without pyramid and heads.

    Args:
        state: Of a baseline (``configs/*/mask_rcnn_vitdet_*.py``), whose normalisation of pixels
            is taken for that of the detector.
        anchor: The anchor it is for.
        source: What to call the checkpoint in an error.

    Raises:
        InputError: If a key is missing, unexpected or has another shape.
    """
    own = {k.removeprefix(_PREFIX): v for k, v in state.items() if k.startswith(_PREFIX)}
    target = anchor.state_dict()
    problems = sorted(own.keys() ^ target.keys())
    problems += [
        f"{key} {tuple(own[key].shape)} instead of {tuple(target[key].shape)}"
        for key in target
        if key in own and own[key].shape != target[key].shape
    ]
    problems += [
        f"{key} {own[key].dtype} instead of {target[key].dtype}"
        for key in target
        if key in own and own[key].is_floating_point() != target[key].is_floating_point()
    ]
    if problems:
        raise InputError(
            f"{source} is a checkpoint of a detector, but not of one with this anchor alone: "
            f"{listed(problems)} differ. Give one that "
            "was trained with the same anchor by a config of a baseline"
        )
    return own
