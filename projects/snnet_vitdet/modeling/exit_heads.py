"""Box heads that know which anchor a stitch ends in, and the detector that tells them."""

from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from torch import nn

from snnet_vitdet.errors import InputError

from .exit_norms import EXITS
from .stitched_vit import StitchedViT, find_stitched_vit

__all__ = ["ExitAdapterBoxHead", "ExitAwareRCNN"]


class ExitAdapterBoxHead(nn.Module):
    """detectron2's box head with a low-rank residual of each exit behind it.

    The residuals start at zero, so training starts at the shared head. For an
    :class:`ExitAwareRCNN`.
    """

    def __init__(self, input_shape: ShapeSpec, exit_rank: int = 16, **kwargs: Any) -> None:
        """
        Args:
            input_shape: As of ``FastRCNNConvFCHead``.
            exit_rank: Rank of the residuals.
            **kwargs: Of ``FastRCNNConvFCHead``.

        Raises:
            InputError: For a rank below 1.
        """
        super().__init__()
        if exit_rank < 1:
            raise InputError(f"exit_rank of a box head must be at least 1, got {exit_rank}")
        self.head = FastRCNNConvFCHead(input_shape, **kwargs)
        width = self.output_shape.channels
        self.adapters = nn.ModuleDict()
        for name in EXITS:
            up = nn.Linear(exit_rank, width)
            nn.init.zeros_(up.weight)
            nn.init.zeros_(up.bias)
            self.adapters[name] = nn.Sequential(nn.Linear(width, exit_rank), nn.GELU(), up)
        # In a tuple, it is no part of this module; a deep copy of the detector has its own.
        self._backbone: tuple[StitchedViT] | None = None

    @property
    def output_shape(self) -> ShapeSpec:
        """As of the head."""
        return self.head.output_shape

    def follow(self, backbone: StitchedViT) -> None:
        """Takes the adapters of the exit of whatever stitch is in effect there."""
        self._backbone = (backbone,)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x: Pooled features, (proposals, C, H, W).

        Returns:
            (proposals, width of the last layer).

        Raises:
            InputError: If it follows no backbone.
        """
        if self._backbone is None:
            raise InputError(
                "an ExitAdapterBoxHead does not know the stitch: it is for model._target_="
                "snnet_vitdet.modeling.ExitAwareRCNN"
            )
        (backbone,) = self._backbone
        x = self.head(x)
        return x + self.adapters[EXITS[backbone.stitch.exit]](x)


class ExitAwareRCNN(GeneralizedRCNN):
    """A GeneralizedRCNN whose heads know the stitch that is in effect in its backbone."""

    def __init__(self, **kwargs: Any) -> None:
        """
        Args:
            **kwargs: Of ``GeneralizedRCNN``.

        Raises:
            InputError: If its backbone is not a stitched one.
        """
        super().__init__(**kwargs)
        backbone = find_stitched_vit(self)
        if backbone is None:
            raise InputError(
                "an ExitAwareRCNN is for a StitchedViT: take detectron2's GeneralizedRCNN"
            )
        for module in self.modules():
            if isinstance(module, ExitAdapterBoxHead):
                module.follow(backbone)
