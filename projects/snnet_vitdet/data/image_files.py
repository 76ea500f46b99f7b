"""What an image file is and whether it can be used, by its header or decoded as a whole."""

import hashlib
import os
import warnings
from dataclasses import dataclass, replace

import numpy as np
from detectron2.data.detection_utils import _apply_exif_orientation
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

from snnet_vitdet.errors import InputError, first_line

__all__ = [
    "REMEDIES",
    "ImageFacts",
    "ImageFault",
    "check_image",
    "deep_mode_problem",
    "inspect_image",
    "read_rgb",
]

REMEDIES = {
    "missing": "correct the image folder, or add the file",
    "not opened": "check what it is and its permissions",
    "empty": "copy it again, or take it out",
    "no image": "replace it, or take it out",
    "damaged": "copy it again, or take it out",
    "too large": "make a smaller copy, and scale its annotations with it",
    "deep": "save it with 8 bits a channel, its values scaled to 0 to 255",
    "size": "correct width and height, or give the image that was annotated",
    "turned": "remove the orientation from its EXIF data, or annotate the upright image",
    "thin": "cut it into pieces, or take it out",
}
"""What to do about each kind of fault of an image file, in the order they are looked for."""

# Pillow's way from these to 8 bits a channel is to cut off what is above 255.
_DEEP_MODES = ("I", "F")
_ORIENTATION = 274  # of EXIF
# Of the orientations, 5 to 8 exchange width and height.
_FIRST_SIDEWAYS = 5


@dataclass(frozen=True)
class ImageFacts:
    """What an image file is.

    Attributes:
        width: In pixels, upright.
        height: In pixels, upright.
        mode: Pillow's, of the file.
        turned: Whether its EXIF data say that it is stored turned or mirrored.
        large: Whether it has so many pixels that Pillow warns of it.
        frames: Whether there are further images in the file, which are not used; known if it has
            been decoded.
        digest: Of the file's bytes; empty unless it has been decoded.
    """

    width: int
    height: int
    mode: str
    turned: bool
    large: bool
    frames: bool = False
    digest: str = ""

    @property
    def has_alpha(self) -> bool:
        """Whether it has a transparency, which is left out."""
        return self.mode in ("RGBA", "LA", "PA", "La", "RGBa")


@dataclass(frozen=True)
class ImageFault:
    """Why an image file cannot be used.

    Attributes:
        kind: A key of ``REMEDIES``.
        path: Of the file.
        problem: What is wrong with it.
    """

    kind: str
    path: str
    problem: str

    def __str__(self) -> str:
        remedy = REMEDIES[self.kind]
        return f"{self.path} cannot be read as an image ({self.problem}): {remedy}."


def check_image(path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> ImageFacts:
    """Checks an image by its header, see :func:`inspect_image`.

    Raises:
        InputError: If it cannot be used.
    """
    found = inspect_image(path, size)
    if isinstance(found, ImageFault):
        raise InputError(str(found))
    return found


def inspect_image(
    path: str | os.PathLike[str], size: tuple[int, int] | None = None, *, decode: bool = False
) -> ImageFacts | ImageFault:
    """Looks at an image file as detectron2's ``read_image`` would read it.

    Args:
        path: Of the file, as detectron2's ``PathManager`` takes it.
        size: Width and height in pixels that the upright image must have.
        decode: Whether to read and decode it to its end, which alone finds some damage. Without,
            its header is read (of a WebP file, the bytes are all read, and not decoded).

    Returns:
        What it is, or the first thing that is wrong.
    """
    path = os.fspath(path)
    if os.path.exists(path) and not os.path.isfile(path):
        return ImageFault("not opened", path, "it is no regular file")
    try:
        file = PathManager.open(path, "rb")
    except FileNotFoundError:
        return ImageFault("missing", path, "there is no such file")
    except (OSError, ValueError) as error:  # ValueError: no name that a file can have
        return ImageFault("not opened", path, getattr(error, "strerror", None) or str(error))
    with file:
        if not file.read(1):
            return ImageFault("empty", path, "the file is empty")
        file.seek(0)
        found = _inspect(file, path, size, decode)
        if not decode or isinstance(found, ImageFault):
            return found
        file.seek(0)
        return replace(found, digest=hashlib.blake2b(file.read(), digest_size=8).hexdigest())


def read_rgb(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads an image as detectron2 does, upright.

    Returns:
        (H, W, 3), RGB, uint8.

    Raises:
        InputError: If it cannot be used.
    """
    path = os.fspath(path)
    check_image(path)
    try:
        with PathManager.open(path, "rb") as file:
            image = _apply_exif_orientation(Image.open(file))
            # detectron2's read_image makes a second copy of one that is RGB already.
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except Exception as error:  # Pillow raises many types for what is damaged
        raise InputError(str(ImageFault("damaged", path, _line(error)))) from error


def deep_mode_problem(mode: str) -> str | None:
    """What is wrong with a mode of Pillow that has more than 8 bits a channel; None for others."""
    if not mode.startswith(_DEEP_MODES):
        return None
    return f"its mode is {mode}, grey of more than 8 bits, of which all above 255 would be white"


def _inspect(
    file: object, path: str, size: tuple[int, int] | None, decode: bool
) -> ImageFacts | ImageFault:
    try:
        # Its warning of many pixels comes again when the image is read.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file)
    except UnidentifiedImageError:
        return ImageFault("no image", path, "it is none that is known")
    except Image.DecompressionBombError as error:
        return ImageFault("too large", path, _line(error))
    except Exception as error:  # Pillow raises many types for what is damaged
        return ImageFault("damaged", path, _line(error))
    if problem := deep_mode_problem(image.mode):
        return ImageFault("deep", path, problem)
    # Of a PNG file Pillow looks for them behind the pixels as well, and decodes these on the way.
    far = image.format == "PNG" and "exif" not in image.info
    # Where the size is as it must be, the reader will tell if they are there and it is not.
    known = far and not decode and size in (None, image.size)
    orientation = 1 if known else _orientation(image)
    width, height = image.size
    if orientation >= _FIRST_SIDEWAYS:
        width, height = height, width
    if size is not None and (width, height) != tuple(size):
        return _size_fault(path, image.size, (width, height), size)
    facts = ImageFacts(
        width,
        height,
        image.mode,
        turned=orientation > 1,
        large=width * height > (Image.MAX_IMAGE_PIXELS or float("inf")),
    )
    if not decode:
        return facts
    try:
        image.load()
    except Exception as error:  # Pillow raises many types for what is damaged
        return ImageFault("damaged", path, _line(error))
    return replace(facts, frames=_has_frames(image))


def _size_fault(
    path: str, stored: tuple[int, int], upright: tuple[int, int], wanted: tuple[int, int]
) -> ImageFault:
    has, wants = (f"{width} x {height}" for width, height in (upright, wanted))
    if stored == tuple(wanted):
        problem = (
            f"its EXIF data say that it is stored turned, upright it has {has} pixels, but its "
            f"annotations are for {wants}"
        )
        return ImageFault("turned", path, problem)
    return ImageFault("size", path, f"it has {has} pixels, but its annotations are for {wants}")


def _orientation(image: Image.Image) -> int:
    """1 to 8, 1 also for what cannot be read, which detectron2 takes as it is stored."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # as detectron2: whatever EXIF data may raise
        return 1
    return orientation if orientation in range(1, 9) else 1


def _has_frames(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a damaged second frame is not used
        return True


def _line(error: Exception) -> str:
    return first_line(error).rstrip(".")
