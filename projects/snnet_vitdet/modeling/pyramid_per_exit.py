"""A feature pyramid for each anchor that a stitch may end in."""

from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, SimpleFeaturePyramid

from snnet_vitdet.errors import InputError
from snnet_vitdet.stitching import LARGE, SMALL

from .stitched_vit import StitchedViT

__all__ = ["SMALL_EXIT", "GivenFeatures", "PyramidPerExit", "pyramid_of_exit"]

SMALL_EXIT = "small_exit"
"""Name of the small anchor's pyramid inside a :class:`PyramidPerExit`."""


class GivenFeatures(Backbone):
    """Hands through what it is given, as if it had computed it."""

    def __init__(self, name: str, width: int, stride: int) -> None:
        """
        Args:
            name: Of the output.
            width: Its channels.
            stride: Pixels of the image to one of its own.
        """
        super().__init__()
        self._name = name
        self._shape = ShapeSpec(channels=width, stride=stride)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """What is handed through."""
        return {self._name: self._shape}

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Args:
            features: (B, C, H, W).
        """
        return {self._name: features}


class PyramidPerExit(SimpleFeaturePyramid):
    """ViTDet's simple feature pyramid, once for each anchor that a stitch may end in.

    The pyramid of the small anchor is as wide as that anchor where the backbone has no exit
    projection, so that the small end is the network that the small ViT alone is, to the heads. The
    paper has one pyramid of the large width for both (section 4.3).
    """

    def __init__(self, net: StitchedViT, in_feature: str, **kwargs: Any) -> None:
        """
        Args:
            net: The backbone.
            in_feature: Name of its output.
            **kwargs: Of ``SimpleFeaturePyramid``; the same for both.

        Raises:
            InputError: If the backbone is not a stitched one.
        """
        if not isinstance(net, StitchedViT):
            raise InputError(
                f"a PyramidPerExit is for a StitchedViT, not for a {type(net).__name__}: take "
                "detectron2's SimpleFeaturePyramid"
            )
        super().__init__(net, in_feature, **kwargs)
        given = GivenFeatures(
            in_feature, net.exit_widths[SMALL], net.output_shape()[in_feature].stride
        )
        setattr(self, SMALL_EXIT, SimpleFeaturePyramid(given, in_feature, **kwargs))

    def exit_pyramid(self, exit_anchor: int) -> SimpleFeaturePyramid:
        """The pyramid of the stitches that end in an anchor; that of the large one is ``self``."""
        return self if exit_anchor == LARGE else getattr(self, SMALL_EXIT)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Args:
            images: (B, 3, H, W), normalised.

        Returns:
            The levels of the stitch in effect, as ``SimpleFeaturePyramid`` gives them.
        """
        if self.net.stitch.exit == LARGE:
            return super().forward(images)
        features = self.net(images)[self.in_feature]
        return self.exit_pyramid(SMALL)(features)


def pyramid_of_exit(pyramid: SimpleFeaturePyramid, exit_anchor: int) -> SimpleFeaturePyramid:
    """The pyramid of the stitches that end in an anchor; where there is one for all, that one."""
    return pyramid.exit_pyramid(exit_anchor) if isinstance(pyramid, PyramidPerExit) else pyramid
