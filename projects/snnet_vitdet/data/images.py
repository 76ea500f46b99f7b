"""Image files: where they are, and whether they can be used, by their header or fully decoded."""

import hashlib
import os
import warnings
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np
from detectron2.data.detection_utils import _apply_exif_orientation
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

from snnet_vitdet.errors import InputError, first_line

__all__ = [
    "REMEDIES",
    "ImageFacts",
    "ImageFault",
    "ImageFolder",
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
"""What to do about each kind of fault of an image file, in the order of the checks."""

# Pillow converts these to 8 bits a channel by cutting off all values above 255.
_DEEP_MODES = ("I", "F")
_ALPHA_MODES = ("RGBA", "LA", "PA", "La", "RGBa")
_ORIENTATION = 274  # of EXIF
_FIRST_SIDEWAYS = 5  # orientations 5 to 8 exchange width and height


class ImageFolder:
    """Finds files by the names that an annotation file has for them."""

    def __init__(self, root: str) -> None:
        """
        Args:
            root: The folder that names are relative to.
        """
        self.root = root
        # One listing per folder: a stat call per image takes minutes on network file systems.
        self._listings: dict[str, set[str]] = {}

    def path(self, file_name: str) -> str:
        """The path of an image file, whether or not it is there.

        Backslashes, as tools on Windows write them, become slashes, unless there is a file of the
        name as it is.

        Raises:
            InputError: A folder cannot be listed.
        """
        path = os.path.join(self.root, file_name)
        if "\\" in file_name and not self._has(path):
            return os.path.join(self.root, file_name.replace("\\", "/"))
        return path

    def has(self, file_name: str) -> bool:
        """Whether an image file is there.

        Raises:
            InputError: A folder cannot be listed.
        """
        return self._has(self.path(file_name))

    def _has(self, path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in self._listings:
            try:
                self._listings[folder] = set(os.listdir(folder))
            except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no valid path
                self._listings[folder] = set()
            except OSError as error:
                raise InputError(
                    f"The image folder {folder} cannot be listed ({error.strerror}): check the "
                    "path."
                ) from error
        return name in self._listings[folder]


@dataclass(frozen=True)
class ImageFacts:
    """What an image file is.

    Attributes:
        width: Width in pixels, upright.
        height: Height in pixels, upright.
        mode: Pillow's mode of the file.
        turned: Whether its EXIF data say that it is stored turned or mirrored.
        large: Whether Pillow warns of its number of pixels.
        frames: Whether the file has further images, which are not used; known once it is decoded.
        digest: Digest of the file's content; empty unless it is decoded.
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
        """Whether it has transparency, which is ignored."""
        return self.mode in _ALPHA_MODES


@dataclass(frozen=True)
class ImageFault:
    """Why an image file cannot be used.

    Attributes:
        kind: A key of ``REMEDIES``.
        path: Path of the file.
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
        InputError: It cannot be used.
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
        path: Path of the file, as detectron2's ``PathManager`` takes it.
        size: Width and height in pixels that the upright image must have.
        decode: Decode the whole file, which some damage needs to be found. Otherwise, its header
            is read (all bytes of a WebP file are read, and not decoded).

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
    except (OSError, ValueError) as error:  # ValueError: no valid name
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
        InputError: It cannot be used.
    """
    path = os.fspath(path)
    check_image(path)
    try:
        with PathManager.open(path, "rb") as file:
            image = _apply_exif_orientation(Image.open(file))
            # detectron2's read_image makes a second copy of an image that is RGB already.
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except Exception as error:  # Pillow raises many types for damaged files
        raise InputError(str(_damaged(path, error))) from error


def deep_mode_problem(mode: str) -> str | None:
    """Says what is wrong with a mode of more than 8 bits a channel; None for other modes."""
    if not mode.startswith(_DEEP_MODES):
        return None
    return f"its mode is {mode}, grey of more than 8 bits: all values above 255 would become white"


def _inspect(
    file: BinaryIO, path: str, size: tuple[int, int] | None, decode: bool
) -> ImageFacts | ImageFault:
    try:
        # Pillow repeats its warning of many pixels when the image is read.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file)
    except UnidentifiedImageError:
        return ImageFault("no image", path, "its format is not known")
    except Image.DecompressionBombError as error:
        return ImageFault("too large", path, first_line(error).rstrip("."))
    except Exception as error:  # Pillow raises many types for damaged files
        return _damaged(path, error)
    if problem := deep_mode_problem(image.mode):
        return ImageFault("deep", path, problem)
    # In a PNG file, EXIF data may stand behind the pixels, and Pillow decodes these to find them.
    # If the size is right as it is stored, that is left to the reader.
    unread = image.format == "PNG" and "exif" not in image.info
    orientation = 1 if unread and not decode and size in (None, image.size) else _orientation(image)
    width, height = image.size
    if orientation >= _FIRST_SIDEWAYS:
        width, height = height, width
    if size is not None and (width, height) != tuple(size):
        has, wants = f"{width} x {height}", f"{size[0]} x {size[1]}"
        if image.size != tuple(size):
            problem = f"it has {has} pixels, but its annotations are for {wants}"
            return ImageFault("size", path, problem)
        problem = (
            f"its EXIF data say that it is stored turned, upright it has {has} pixels, but its "
            f"annotations are for {wants}"
        )
        return ImageFault("turned", path, problem)
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
    except Exception as error:  # Pillow raises many types for damaged files
        return _damaged(path, error)
    return replace(facts, frames=_has_frames(image))


def _damaged(path: str, error: Exception) -> ImageFault:
    return ImageFault("damaged", path, first_line(error).rstrip("."))


def _orientation(image: Image.Image) -> int:
    """1 to 8, and 1 if it cannot be read: detectron2 then takes the image as it is stored."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow raises any type for damaged EXIF data
        return 1
    return orientation if orientation in range(1, 9) else 1


def _has_frames(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # a damaged second frame is not used
        return True
