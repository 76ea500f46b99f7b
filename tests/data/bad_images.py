"""Image files of every kind that data sets have, good and bad, made for real."""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 64, 48
ORIENTATION = 274  # of EXIF


def base_picture():
    """(48, 64, 3) uint8: every channel differs, and no two sides or corners are alike."""
    ys, xs = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([4 * xs, 5 * ys, 255 - 2 * xs - 2 * ys], axis=-1).astype(np.uint8)


BASE = base_picture()
GREY = np.repeat(np.asarray(Image.fromarray(BASE).convert("L"))[:, :, None], 3, axis=2)


@dataclass(frozen=True)
class Case:
    """An image file and what is made of it.

    Attributes:
        name: Name of the file.
        make: Writes it.
        says: What the error says, or what the note does for what is handled; may be empty.
        expected: The upright RGB image, (H, W, 3); None where the file is refused.
        tolerance: How far the mean colour of a pixel may be from it.
        size: Width and height in the annotation file.
        alone: Whether it is wrong without its annotations, too.
    """

    name: str
    make: Callable[[Path], None]
    says: str = ""
    expected: np.ndarray | None = None
    tolerance: float = 0.0
    size: tuple[int, int] = (WIDTH, HEIGHT)
    alone: bool = True


def png(width, height, depth, colour_type, rows):
    """The bytes of a PNG file, also of kinds that Pillow does not write."""

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    raw = b"".join(b"\0" + row for row in rows)
    chunks = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def save(mode="RGB", **options):
    """Writes the picture in a mode of Pillow."""

    def make(path):
        Image.fromarray(BASE).convert(mode).save(path, **options)

    return make


def truncated(share, **options):
    """Writes the beginning of the picture's file."""

    def make(path):
        save(**options)(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return make


def write_bytes(content):
    return lambda path: path.write_bytes(content)


def sixteen_bits_of_rgb(path):
    values = (BASE.astype(np.uint16) * 256 + 77).astype(">u2")
    path.write_bytes(png(WIDTH, HEIGHT, 16, 2, [row.tobytes() for row in values]))


def sixteen_bits_of_grey(path):
    values = (GREY[:, :, 0].astype(np.uint16) * 257).astype(">u2")
    path.write_bytes(png(WIDTH, HEIGHT, 16, 0, [row.tobytes() for row in values]))


def whole_numbers(path):
    Image.fromarray(GREY[:, :, 0].astype(np.int32) * 1000).save(path)


def floats(path):
    Image.fromarray(GREY[:, :, 0].astype(np.float32) / 255).save(path)


def palette(path):
    Image.fromarray(BASE).quantize(256).save(path)


def transparent(path):
    alpha = np.full((HEIGHT, WIDTH, 1), 128, np.uint8)
    Image.fromarray(np.concatenate([BASE, alpha], axis=2)).save(path)


def transparent_grey(path):
    Image.fromarray(GREY[:, :, :1].repeat(2, axis=2)).save(path)


def turned(orientation, transposed):
    """Writes the picture as a camera that was held another way."""

    def make(path):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        Image.fromarray(BASE).transpose(transposed).save(path, exif=exif)

    return make


def two_frames(path):
    other = Image.fromarray(255 - BASE)
    Image.fromarray(BASE).save(path, save_all=True, append_images=[other])


def one_pixel(path):
    Image.fromarray(BASE[:1, :1]).save(path)


def thin(path):
    Image.new("RGB", (4000, 1)).save(path)


REFUSED = {
    "missing": Case("missing.jpg", lambda path: None, "there is no such file"),
    "a folder": Case("folder.jpg", lambda path: path.mkdir(), "no regular file"),
    "zero bytes": Case("zero.jpg", write_bytes(b""), "the file is empty"),
    "no image": Case("text.jpg", write_bytes(b"<html>404</html>"), "its format is not known"),
    "truncated JPEG": Case("cut.jpg", truncated(0.9), "image file is truncated"),
    "truncated PNG": Case("cut.png", truncated(0.6), "image file is truncated"),
    "truncated WebP": Case("cut.webp", truncated(0.6), "could not create decoder object"),
    "huge": Case(
        "huge.png",
        write_bytes(png(20000, 10000, 8, 0, [])),
        "Image size (200000000 pixels) exceeds limit",
        size=(20000, 10000),
    ),
    "16-bit grey": Case("grey16.png", sixteen_bits_of_grey, "its mode is I;16, grey of more"),
    "32-bit grey": Case("grey32.tiff", whole_numbers, "its mode is I, grey of more than 8 bits"),
    "float": Case("float.tiff", floats, "its mode is F, grey of more than 8 bits"),
    "another size": Case(
        "wide.png",
        save(),
        "it has 64 x 48 pixels, but its annotations are for 60 x 48",
        size=(60, HEIGHT),
        alone=False,
    ),
    "EXIF-rotated, annotated as stored": Case(
        "sideways.jpg",
        turned(6, Image.Transpose.ROTATE_90),
        "its EXIF data say that it is stored turned",
        size=(HEIGHT, WIDTH),
        alone=False,
    ),
    "4000 x 1 pixels": Case(
        "thin.png", thin, "height and width must be > 0", size=(4000, 1), alone=False
    ),
}
"""By what is wrong."""

HANDLED = {
    "grey": Case("grey.png", save("L"), "", GREY),
    "grey with alpha": Case("grey_alpha.png", transparent_grey, "have transparency", GREY),
    "palette": Case("palette.gif", palette, "", BASE, 8.0),
    "RGBA": Case("rgba.png", transparent, "have transparency", BASE),
    "CMYK": Case("cmyk.jpg", save("CMYK", quality=98), "", BASE, 6.0),
    "16-bit RGB": Case("rgb16.png", sixteen_bits_of_rgb, "", BASE),
    "black and white": Case(
        "bilevel.png", save("1"), "", np.asarray(Image.fromarray(BASE).convert("1").convert("RGB"))
    ),
    "EXIF-rotated": Case(
        "rotated.jpg",
        turned(6, Image.Transpose.ROTATE_90),
        "stored turned or mirrored",
        BASE,
        6.0,
    ),
    "EXIF-mirrored": Case(
        "mirrored.png",
        turned(2, Image.Transpose.FLIP_LEFT_RIGHT),
        "stored turned or mirrored",
        BASE,
    ),
    "several pages": Case("pages.tiff", two_frames, "several frames or pages", BASE),
    "1 x 1 pixel": Case("pixel.png", one_pixel, "", BASE[:1, :1], size=(1, 1)),
}
"""By what is odd."""
