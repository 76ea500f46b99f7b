"""The arguments of an anchor that its pretrained weights determine."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from snnet_vitdet.errors import InputError
from snnet_vitdet.validators import FLAG, number, numbers, or_null, whole, written

__all__ = ["Pretraining"]

_ALLOWED = {
    "abs_pos": ("interpolated", "win", None),
    "use_rel_pos": (True, False, "global"),
    "act_layer": ("gelu", "gelu_tanh", "quick_gelu"),
}
_KINDS = {
    "embed_dim": whole(1, 2**16),
    "depth": whole(1, 1000),
    "num_heads": whole(1),
    "mlp_ratio": number(above=0),
    "layer_scale_init": or_null(number()),
    "norm_eps": number(above=0),
    "pre_norm": FLAG,
    "rel_pos_table": FLAG,
    "pretrain_img_size": whole(1),
    "pretrain_patch_size": whole(1),
}
_PIXELS = {
    "pretrain_pixel_mean": numbers(3, number(0, 255)),
    # A standard deviation below 2 is one of pixels from 0 to 1.
    "pretrain_pixel_std": numbers(3, number(2, 255)),
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
        for key, kind in _KINDS.items():
            value = getattr(self, key)
            if must_be := kind(value):
                raise InputError(f"{key}={written(value)} of an anchor must be {must_be}")
        for key, allowed in _ALLOWED.items():
            value = getattr(self, key)
            if value not in allowed:
                known = ", ".join(map(written, allowed))
                raise InputError(f"{key}={written(value)} of an anchor must be one of {known}")
        for key, kind in _PIXELS.items():
            value = getattr(self, key)
            if kind(value):
                raise InputError(
                    f"{key}={written(value)} of an anchor must be three numbers, red, green and "
                    "blue, of pixels from 0 to 255 (timm's own are of 0 to 1)"
                )
        if self.rel_pos_table and not self.use_rel_pos:
            raise InputError("rel_pos_table=True of an anchor needs use_rel_pos=True")
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
