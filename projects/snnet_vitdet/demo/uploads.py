"""Uploaded files as arrays for a detector, or a sentence that says why not."""

import os

import numpy as np
from PIL import Image, ImageOps

from snnet_vitdet.errors import InputError

__all__ = ["MAX_SIDE", "open_picture"]

MAX_SIDE = 1600
"""Longest side in pixels; larger pictures are reduced to it."""

# Decoders of other formats are not tried: one of them starts a program (EPS), most are not
# maintained.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
_NAMES = "JPEG, PNG, WebP, TIFF, BMP or GIF"


def open_picture(path: str | os.PathLike[str], max_pixels: int) -> np.ndarray:
    """Reads an image file: upright, alpha over white, 16 bits of grey as 8.

    Args:
        path: The file.
        max_pixels: Larger pictures are not decoded; a small file can hold a huge one.

    Returns:
        (H, W, 3), RGB, uint8, no side longer than ``MAX_SIDE``.

    Raises:
        InputError: If it is no image, damaged, or too large.
    """
    try:
        image = Image.open(path, formats=_FORMATS)
        width, height = image.size
    except Image.DecompressionBombError as error:
        raise InputError(_too_large(max_pixels)) from error
    except Exception as error:  # Pillow raises many types for what is damaged
        raise InputError(f"This file is not an image that can be read: use {_NAMES}.") from error
    with image:
        if width * height > max_pixels:
            raise InputError(f"{_too_large(max_pixels)} It has {width} × {height}.")
        try:
            # A large JPEG is decoded at a smaller size.
            image.draft("RGB", (MAX_SIDE, MAX_SIDE))
            rgb = _as_rgb(ImageOps.exif_transpose(image))
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                "This image is damaged: it cannot be read to its end. Save it again, or use "
                "another one."
            ) from error
    rgb.thumbnail((MAX_SIDE, MAX_SIDE))
    return np.ascontiguousarray(rgb)


def _too_large(max_pixels: int) -> str:
    return f"This picture is too large: at most {max_pixels / 1e6:g} megapixels are taken."


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise InputError("This image has floating-point pixels: save it with 8 or 16 bits.")
    if image.mode.startswith("I"):
        # Pillow's conversion clips: everything above 255 would be white.
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray((values >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
