"""Layer-wise learning-rate decay, per anchor.

ViTDet's rule (https://arxiv.org/abs/2203.16527, appendix): layer 0 is the embedding, layer i + 1 is
block i, and layer l of n blocks learns at ``rate ** (n + 1 - l)``. Each anchor has its own n and
rate, as its individual baseline has. detectron2's ``get_vit_lr_decay_rate`` knows one depth.
"""

import re
from collections.abc import Mapping

from snnet_vitdet.errors import InputError

__all__ = ["LayerwiseDecay"]

_EMBEDDING = ("pos_embed", "patch_embed.", "norm_pre.")
_BLOCK = re.compile(r"^blocks\.(\d+)\.")


class LayerwiseDecay:
    """Factor of the learning rate by parameter name; for ``lr_factor_func`` of detectron2."""

    def __init__(
        self,
        depths: Mapping[str, int],
        rates: Mapping[str, float],
        prefix: str = "backbone.net",
    ) -> None:
        """
        Args:
            depths: Number of blocks by anchor: ``small`` and ``large`` for a stitched backbone,
                ``net`` for an anchor alone.
            rates: Decay per layer by anchor, the same keys; 1 for none.
            prefix: Name of the backbone inside the detector.

        Raises:
            InputError: If the keys differ, or a rate is not in (0, 1].
        """
        if depths.keys() != rates.keys():
            raise InputError(
                f"layer-wise decay has depths for {sorted(depths)} but rates for {sorted(rates)}"
            )
        for anchor, rate in rates.items():
            if not 0 < rate <= 1:
                raise InputError(f"layer-wise decay of {anchor!r} must be in (0, 1], got {rate}")
        self.prefix = f"{prefix}."
        self.depths = dict(depths)
        self.rates = dict(rates)

    def __call__(self, name: str) -> float:
        """The factor for a parameter.

        Args:
            name: Full name in the detector.

        Raises:
            InputError: For a parameter of the backbone that no rule covers.
        """
        if not name.startswith(self.prefix):
            return 1.0  # pyramid and heads
        inside = name.removeprefix(self.prefix)
        if inside.startswith("stitching_layers."):
            return 1.0  # new, as pyramid and heads are
        for anchor, depth in self.depths.items():
            own = "" if anchor == "net" else f"{anchor}."
            if inside.startswith(own):
                layer = self._layer(inside.removeprefix(own))
                if layer is not None and layer <= depth:
                    return self.rates[anchor] ** (depth + 1 - layer)
        raise InputError(
            f"no rule of the layer-wise learning-rate decay covers the parameter {name!r} (anchors "
            f"{self.depths}): set optimizer.params.lr_factor_func for this backbone"
        )

    @staticmethod
    def _layer(name: str) -> int | None:
        if name.startswith(_EMBEDDING):
            return 0
        block = _BLOCK.match(name)
        return int(block[1]) + 1 if block else None
