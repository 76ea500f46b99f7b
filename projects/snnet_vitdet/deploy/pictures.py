"""Reads images in their usual forms and draws detections into them."""

import os

import cv2
import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import GenericMask, Visualizer
from PIL import Image, ImageOps
from torch.nn import functional as F

from snnet_vitdet.data.images import REMEDIES, deep_mode_problem, read_rgb
from snnet_vitdet.errors import InputError
from snnet_vitdet.text import plot_text

from .instances import PastedMasks

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_DRAWN_SIDE",
    "ImageLike",
    "draw_detections",
    "image_files",
    "reduced_image",
    "reduced_objects",
    "reduced_size",
    "to_rgb",
]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Suffixes of the files in a folder that count as images, in lower case."""

ImageLike = str | os.PathLike | Image.Image | np.ndarray
"""A path, a PIL image, or an array of RGB or grey values, (H, W, 3) or (H, W), uint8."""

MAX_DRAWN_SIDE = 2048
"""Longest side of a drawn picture in pixels: matplotlib takes about 100 bytes for each pixel."""

# Okabe and Ito's palette, which readers with any colour vision can tell apart.
_COLOURS = tuple(
    tuple(int(text[i : i + 2], 16) / 255 for i in (0, 2, 4))
    for text in ("E69F00", "56B4E9", "009E73", "F0E442", "0072B2", "D55E00", "CC79A7")
)


def image_files(folder: str | os.PathLike[str]) -> list[str]:
    """Paths of the images in a folder, sorted by name; subfolders are not searched.

    Raises:
        InputError: If the folder does not exist or has no images.
    """
    folder = os.fspath(folder)
    if not os.path.isdir(folder):
        raise InputError(f"folder {folder} does not exist")
    names = sorted(name for name in os.listdir(folder) if name.lower().endswith(IMAGE_SUFFIXES))
    if not names:
        raise InputError(f"folder {folder} has no images ({', '.join(IMAGE_SUFFIXES)})")
    return [os.path.join(folder, name) for name in names]


def to_rgb(image: ImageLike) -> np.ndarray:
    """Returns an image as RGB, turned upright if its EXIF data have an orientation.

    Returns:
        (H, W, 3), uint8.

    Raises:
        InputError: If a file cannot be read as an image, an image has more than 8 bits a channel,
            or an array has another layout or type.
    """
    if isinstance(image, str | os.PathLike):
        return read_rgb(image)
    if isinstance(image, Image.Image):
        if problem := deep_mode_problem(image.mode):
            raise InputError(f"the image cannot be used ({problem}): {REMEDIES['deep']}")
        image = ImageOps.exif_transpose(image)
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    if isinstance(image, np.ndarray):
        if image.ndim == 2:
            image = np.repeat(image[:, :, None], 3, axis=2)
        if image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8 and image.size:
            return np.ascontiguousarray(image)
        raise InputError(
            "an array must be RGB of shape (H, W, 3) or grey of shape (H, W), type uint8; got "
            f"shape {image.shape}, type {image.dtype}"
        )
    raise InputError(
        f"an image is a path, a PIL image or a numpy array, not {type(image).__name__}"
    )


def draw_detections(
    image: np.ndarray, instances: Instances, min_side: int = 0, max_side: int = MAX_DRAWN_SIDE
) -> np.ndarray:
    """Draws boxes, masks, class names and scores with detectron2's Visualizer.

    Args:
        image: (H, W, 3), RGB, uint8.
        instances: Detections in this image as a Predictor returns them, or annotations, which have
            no ``scores``.
        min_side: An image whose shorter side has fewer pixels is enlarged, so that the text can be
            read.
        max_side: An image whose longer side has more pixels is reduced first.

    Returns:
        (H', W', 3), RGB, uint8; the image's size unless it was enlarged or reduced.
    """
    image, instances = reduced_image(image, max_side), reduced_objects(instances, max_side)
    scale = max(1.0, min_side / min(image.shape[:2]))
    visualizer = Visualizer(image, scale=scale)
    labels = list(instances.class_names)
    if instances.has("scores"):
        # The most certain ones last: a large detection above a small one would hide its text.
        order = np.argsort(instances.scores.numpy(), kind="stable")
        instances = instances[order.tolist()]
        labels = [
            f"{name} {score:.0%}"
            for name, score in zip(instances.class_names, instances.scores.tolist(), strict=True)
        ]
    masks = None
    if instances.has("pred_masks"):
        # One mask at a time, so that no more than one is in memory.
        masks = [
            GenericMask(mask.numpy().view(np.uint8), *instances.image_size).polygons
            for mask in instances.pred_masks
        ]
    drawn = visualizer.overlay_instances(
        boxes=instances.pred_boxes.tensor.numpy(),
        masks=masks,
        labels=[plot_text(label) for label in labels],
        assigned_colors=[_COLOURS[i % len(_COLOURS)] for i in instances.pred_classes.tolist()],
        alpha=0.4,
    )
    return drawn.get_image()


def reduced_size(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """Height and width of an image after its longer side is reduced to ``max_side`` or less."""
    factor = min(1.0, max_side / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def reduced_image(image: np.ndarray, max_side: int) -> np.ndarray:
    """Returns an image reduced to :func:`reduced_size`, (H, W, 3), uint8."""
    size = reduced_size(image.shape[:2], max_side)
    if size == image.shape[:2]:
        return image
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)


def reduced_objects(instances: Instances, max_side: int) -> Instances:
    """Returns the objects of an image, in the image of :func:`reduced_size`."""
    size = reduced_size(instances.image_size, max_side)
    if size == tuple(instances.image_size):
        return instances
    scale_y, scale_x = (new / old for new, old in zip(size, instances.image_size, strict=True))
    fields = dict(instances.get_fields())
    fields["pred_boxes"] = Boxes(fields["pred_boxes"].tensor.clone())
    fields["pred_boxes"].scale(scale_x, scale_y)
    masks = fields.get("pred_masks")
    if isinstance(masks, PastedMasks):
        fields["pred_masks"] = masks.resized(*size)
    elif masks is not None:
        fields["pred_masks"] = _reduced_masks(masks, size)
    return type(instances)(size, **fields)


def _reduced_masks(masks: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    reduced = masks.new_zeros((len(masks), *size))
    for small, mask in zip(reduced, masks, strict=True):
        small.copy_(F.interpolate(mask[None, None].float(), size, mode="area")[0, 0] >= 0.5)
    return reduced
