"""What every kind of export shares: it is compared with its model, and kept only if it agrees."""

import os
from collections.abc import Callable, Sequence

import torch
from detectron2.modeling import GeneralizedRCNN
from torch import nn

from snnet_vitdet.errors import InputError

__all__ = [
    "TOLERANCE",
    "PixelsToPyramid",
    "largest_difference",
    "noise_image",
]

TOLERANCE = 1e-3
"""Of the largest feature, in float32: other kernels add up in another order."""


class PixelsToPyramid(nn.Module):
    """From the pixels of a square image to the maps of the feature pyramid, normalisation included.

    Pixels beyond an image that is not square have to be ``pixel_mean``, as the detector pads.
    """

    def __init__(self, model: GeneralizedRCNN) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.names = tuple(model.backbone.output_shape())
        """Of the outputs in their order: ``p2`` … ``p6``."""
        self.register_buffer("pixel_mean", model.pixel_mean.clone())
        self.register_buffer("pixel_std", model.pixel_std.clone())

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """
        Args:
            image: (1, 3, side, side), 0 to 255, in the model's order of colours.

        Returns:
            A map for each of ``names``, (1, C, side / stride, side / stride).
        """
        features = self.backbone((image - self.pixel_mean) / self.pixel_std)
        return tuple(features[name] for name in self.names)


def noise_image(side: int, seed: int) -> torch.Tensor:
    """Random pixels, (1, 3, side, side), 0 to 255."""
    generator = torch.Generator().manual_seed(seed)
    return 255 * torch.rand(1, 3, side, side, generator=generator)


@torch.no_grad()
def largest_difference(
    path: str | os.PathLike[str],
    module: PixelsToPyramid,
    other: Callable[[torch.Tensor], Sequence[torch.Tensor]],
    side: int,
) -> float:
    """How far the maps of an export are from those of its model, over the largest feature of each.

    Args:
        path: Of the export, for the error.
        module: Of the model.
        other: Of the export.
        side: Of the image in pixels.

    Raises:
        InputError: If it is more than ``TOLERANCE``.
    """
    # Another image than graphs are traced on: what was taken for a constant would show.
    image = noise_image(side, seed=1).to(module.pixel_mean.device)
    largest = 0.0
    for own, found in zip(module(image), other(image), strict=True):
        difference = (found - own).abs().max() / own.abs().max()
        # A comparison with NaN would be no difference.
        largest = max(largest, torch.nan_to_num(difference, nan=torch.inf).item())
    if largest > TOLERANCE:
        raise InputError(
            f"{path} is not kept: its features differ from the model's by {largest:.1e} of the "
            f"largest one, more than {TOLERANCE:g}"
        )
    return largest
