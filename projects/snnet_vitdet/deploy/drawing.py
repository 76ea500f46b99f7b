"""Detections drawn into their image."""

import cv2
import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import GenericMask, Visualizer

from snnet_vitdet.text import plot_text

from .masks import PastedMasks

__all__ = [
    "MAX_DRAWN_SIDE",
    "draw_detections",
    "reduced_image",
    "reduced_objects",
    "reduced_size",
]

MAX_DRAWN_SIDE = 2048
"""Longest side in pixels of what is drawn: matplotlib takes some 100 bytes for each pixel."""

# Okabe and Ito's palette, which readers with any colour vision tell apart; classes take turns.
_COLOURS = tuple(
    tuple(int(text[i : i + 2], 16) / 255 for i in (0, 2, 4))
    for text in ("E69F00", "56B4E9", "009E73", "F0E442", "0072B2", "D55E00", "CC79A7")
)


def draw_detections(
    image: np.ndarray, instances: Instances, min_side: int = 0, max_side: int = MAX_DRAWN_SIDE
) -> np.ndarray:
    """Draws boxes, masks, class names and scores, by detectron2's Visualizer.

    Args:
        image: (H, W, 3), RGB, uint8.
        instances: Of this image, as a Predictor returns them; annotations have no ``scores``.
        min_side: Images whose shorter side has fewer pixels are enlarged to it, so that the text
            can be read.
        max_side: Images whose longer side has more pixels are reduced to it before.

    Returns:
        (H', W', 3), RGB, uint8; of the image's size unless it was enlarged or reduced.
    """
    image, instances = reduced_image(image, max_side), reduced_objects(instances, max_side)
    scale = max(1.0, min_side / min(image.shape[:2]))
    visualizer = Visualizer(image, scale=scale)
    labels = list(instances.class_names)
    if instances.has("scores"):
        # A large detection over a small one would hide its text.
        order = np.argsort(instances.scores.numpy(), kind="stable")
        instances = instances[order.tolist()]
        labels = [
            f"{name} {score:.0%}"
            for name, score in zip(instances.class_names, instances.scores.tolist(), strict=True)
        ]
    classes = instances.pred_classes.tolist()
    drawn = visualizer.overlay_instances(
        boxes=instances.pred_boxes.tensor.numpy(),
        masks=_outlines(instances) if instances.has("pred_masks") else None,
        labels=[plot_text(label) for label in labels],
        assigned_colors=[_COLOURS[i % len(_COLOURS)] for i in classes],
        alpha=0.4,
    )
    return drawn.get_image()


def reduced_size(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """Height and width of an image whose longer side has no more pixels than are wanted."""
    factor = min(1.0, max_side / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def reduced_image(image: np.ndarray, max_side: int) -> np.ndarray:
    """An image of :func:`reduced_size`, (H, W, 3), uint8."""
    size = reduced_size(image.shape[:2], max_side)
    if size == image.shape[:2]:
        return image
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)


def reduced_objects(instances: Instances, max_side: int) -> Instances:
    """The objects of an image in the image of :func:`reduced_size`."""
    size = reduced_size(instances.image_size, max_side)
    if size == tuple(instances.image_size):
        return instances
    scale_y, scale_x = (new / old for new, old in zip(size, instances.image_size, strict=True))
    fields = dict(instances.get_fields())
    fields["pred_boxes"] = Boxes(fields["pred_boxes"].tensor.clone())
    fields["pred_boxes"].scale(scale_x, scale_y)
    if isinstance(masks := fields.get("pred_masks"), PastedMasks):
        fields["pred_masks"] = masks.resized(*size)
    elif masks is not None:
        fields["pred_masks"] = masks.new_zeros((len(masks), *size))
        for small, mask in zip(fields["pred_masks"], masks, strict=True):
            small.copy_(_reduced_mask(mask, size))
    return type(instances)(size, **fields)


def _reduced_mask(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    shares = cv2.resize(255 * mask.numpy().view(np.uint8), size[::-1], interpolation=cv2.INTER_AREA)
    return torch.from_numpy(shares >= 128)


def _outlines(instances: Instances) -> list[list[np.ndarray]]:
    """Polygons of each object, whose masks are looked at one by one."""
    return [
        GenericMask(mask.numpy().view(np.uint8), *instances.image_size).polygons
        for mask in instances.pred_masks
    ]
