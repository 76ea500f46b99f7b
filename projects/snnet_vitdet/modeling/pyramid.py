"""Feature pyramids on features that are already there, and one for each anchor a stitch ends in."""

from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, SimpleFeaturePyramid

from snnet_vitdet.errors import InputError
from snnet_vitdet.stitching import LARGE, SMALL

from .stitched_vit import StitchedViT

__all__ = ["SMALL_EXIT", "PyramidPerExit", "pyramid_from_features", "pyramid_of_exit"]

SMALL_EXIT = "small_exit"
"""Name of the small anchor's pyramid inside a :class:`PyramidPerExit`."""


def pyramid_from_features(
    pyramid: SimpleFeaturePyramid, features: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The levels of a pyramid on given features: its forward without the ViT.

    Args:
        pyramid: The pyramid; its ``net`` does not run.
        features: The ViT's output, (B, C, H, W).

    Returns:
        The levels by name, as ``SimpleFeaturePyramid`` returns them.
    """
    names = list(pyramid.output_shape())
    levels = [stage(features) for stage in pyramid.stages]
    top = pyramid.top_block
    if top is not None:
        on_vit = top.in_feature == pyramid.in_feature
        levels.extend(top(features if on_vit else levels[names.index(top.in_feature)]))
    return dict(zip(names, levels, strict=True))


def pyramid_of_exit(pyramid: SimpleFeaturePyramid, exit_anchor: int) -> SimpleFeaturePyramid:
    """The pyramid of the stitches that end in an anchor; ``pyramid`` itself if one serves all."""
    return pyramid.exit_pyramid(exit_anchor) if isinstance(pyramid, PyramidPerExit) else pyramid


class PyramidPerExit(SimpleFeaturePyramid):
    """ViTDet's simple feature pyramid, once for each anchor that a stitch may end in.

    If the backbone has no exit projection, the small anchor's pyramid has the small anchor's width.
    The small end is then the network that the small ViT is alone, up to the heads. The paper has
    one pyramid of the large width for all stitches (section 4.3).
    """

    def __init__(self, net: StitchedViT, in_feature: str, **kwargs: Any) -> None:
        """
        Args:
            net: The backbone.
            in_feature: Name of its output.
            **kwargs: Arguments of ``SimpleFeaturePyramid`` for both pyramids.

        Raises:
            InputError: If the backbone is not a StitchedViT.
        """
        if not isinstance(net, StitchedViT):
            raise InputError(
                f"a PyramidPerExit is for a StitchedViT, not for a {type(net).__name__}: take "
                "detectron2's SimpleFeaturePyramid"
            )
        super().__init__(net, in_feature, **kwargs)
        self._arguments = {"in_feature": in_feature, **kwargs}
        stride = net.output_shape()[in_feature].stride
        shape = ShapeSpec(channels=net.exit_widths[SMALL], stride=stride)
        given = _GivenFeatures({in_feature: shape})
        self.add_module(SMALL_EXIT, SimpleFeaturePyramid(given, in_feature, **kwargs))

    def exit_pyramid(self, exit_anchor: int) -> SimpleFeaturePyramid:
        """The pyramid of the stitches that end in an anchor; the large anchor's is ``self``."""
        return self if exit_anchor == LARGE else self.get_submodule(SMALL_EXIT)

    def alone(self, exit_anchor: int) -> SimpleFeaturePyramid:
        """The pyramid of an exit on its anchor alone, as detectron2 has it; shares all weights."""
        own = self.exit_pyramid(exit_anchor)
        with torch.device("meta"):
            pyramid = SimpleFeaturePyramid(self.net.anchors[exit_anchor], **self._arguments)
        pyramid.stages = own.stages
        for name, child in own.named_children():
            if child in own.stages:
                pyramid.add_module(name, child)
        return pyramid

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Args:
            images: (B, 3, H, W), normalised.

        Returns:
            The levels of the stitch in effect, as ``SimpleFeaturePyramid`` returns them.
        """
        features = self.net(images)[self.in_feature]
        return pyramid_from_features(self.exit_pyramid(self.net.stitch.exit), features)


class _GivenFeatures(Backbone):
    """Takes the place of a ViT where a pyramid runs on given features."""

    def __init__(self, shapes: dict[str, ShapeSpec]) -> None:
        super().__init__()
        self._shapes = shapes

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shapes

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        raise NotImplementedError("this pyramid is called by pyramid_from_features")
