"""Pictures as people have them, as the arrays a detector takes."""

import os

import numpy as np
from PIL import Image, ImageOps

from snnet_vitdet.data.images import REMEDIES, deep_mode_problem, read_rgb
from snnet_vitdet.errors import InputError

__all__ = ["IMAGE_SUFFIXES", "ImageLike", "image_files", "to_rgb"]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""What of a folder is taken for an image, in lower case."""


ImageLike = str | os.PathLike | Image.Image | np.ndarray
"""A path, a PIL image, or an array of RGB or grey values, (H, W, 3) or (H, W), uint8."""


def image_files(folder: str | os.PathLike[str]) -> list[str]:
    """Paths of the images of a folder, in the order of their names; subfolders are not searched.

    Raises:
        InputError: If the folder is not there or has none.
    """
    folder = os.fspath(folder)
    if not os.path.isdir(folder):
        raise InputError(f"folder {folder} does not exist")
    files = [
        os.path.join(folder, name)
        for name in sorted(os.listdir(folder))
        if name.lower().endswith(IMAGE_SUFFIXES)
    ]
    if not files:
        raise InputError(f"folder {folder} has no images ({', '.join(IMAGE_SUFFIXES)})")
    return files


def to_rgb(image: ImageLike) -> np.ndarray:
    """An image as RGB, upright where its EXIF data tell how it was held.

    Returns:
        (H, W, 3), uint8.

    Raises:
        InputError: If a file cannot be used as an image, an image has more than 8 bits a channel,
            or an array is not of this layout and type.
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
