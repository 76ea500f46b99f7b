"""The arguments of an anchor that its pretrained weights determine."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from snnet_vitdet.errors import InputError
from snnet_vitdet.validators import (
    FLAG,
    Validator,
    check,
    number,
    numbers,
    one_of,
    or_null,
    whole,
    written,
)

__all__ = ["Pretraining"]


def _pixels(lowest: float) -> Validator:
    """Allows three numbers from ``lowest`` to 255."""
    three = numbers(3, number(lowest, 255))
    must_be = (
        "three numbers, red, green and blue, of pixels from 0 to 255 (timm's own are of 0 to 1)"
    )
    return lambda value: must_be if three(value) else ""


_VALIDATORS: dict[str, Validator] = {
    "embed_dim": whole(1, 2**16),
    "depth": whole(1, 1000),
    "num_heads": whole(1),
    "mlp_ratio": number(above=0),
    "layer_scale_init": or_null(number()),
    "norm_eps": number(above=0),
    "act_layer": one_of("gelu", "gelu_tanh", "quick_gelu"),
    "pre_norm": FLAG,
    "abs_pos": one_of("interpolated", "win", None),
    "use_rel_pos": one_of(True, False, "global"),
    "rel_pos_table": FLAG,
    "pretrain_img_size": whole(1),
    "pretrain_patch_size": whole(1),
    "pretrain_pixel_mean": _pixels(0),
    # A standard deviation below 2 is one of pixels from 0 to 1.
    "pretrain_pixel_std": _pixels(2),
}
# Weights determine whether these are None, not their values.
_PRESENCE = ("layer_scale_init", "abs_pos")


@dataclass(frozen=True)
class Pretraining:
    """What an anchor and its weights have to agree on; see :class:`AnchorViT` for the meanings.

    Raises:
        InputError: If a value is not allowed, or two values contradict each other.
    """

    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float
    layer_scale_init: float | None
    norm_eps: float
    act_layer: str
    pre_norm: bool
    abs_pos: str | None
    use_rel_pos: bool | str
    rel_pos_table: bool
    pretrain_img_size: int
    pretrain_patch_size: int
    pretrain_pixel_mean: Sequence[float]
    pretrain_pixel_std: Sequence[float]

    def __post_init__(self) -> None:
        for key, validator in _VALIDATORS.items():
            check(key, getattr(self, key), validator)
        if self.rel_pos_table and not self.use_rel_pos:
            raise InputError("rel_pos_table=True needs use_rel_pos=True")
        if not self.grid:
            raise InputError(
                f"pretrain_img_size={self.pretrain_img_size} is smaller than a patch of the "
                f"pretraining ({self.pretrain_patch_size})"
            )

    @property
    def grid(self) -> int:
        """Side in tokens of the stored grid of absolute positions."""
        return self.pretrain_img_size // self.pretrain_patch_size

    def differences(self, wanted: Mapping[str, object]) -> list[str]:
        """The arguments that differ from those that weights need, each as a text.

        Args:
            wanted: Arguments of an anchor; those that weights do not determine are ignored.
        """
        return [
            f"{key}={written(value)} instead of {written(getattr(self, key))}"
            for key, value in wanted.items()
            if hasattr(self, key) and not _agree(key, value, getattr(self, key))
        ]


def _agree(key: str, wanted: object, given: object) -> bool:
    if key in _PRESENCE:
        return (wanted is None) == (given is None)
    if isinstance(wanted, tuple) and isinstance(given, Sequence):
        return all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(wanted, given, strict=True))
    if isinstance(wanted, float) and isinstance(given, float | int):
        return math.isclose(wanted, given)
    return wanted == given
