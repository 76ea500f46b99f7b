import struct
import zlib

import numpy as np
import pytest
from bad_images import BASE, HANDLED, HEIGHT, ORIENTATION, WIDTH, save, turned
from PIL import Image, ImageFile

from snnet_vitdet.data.images import check_image, inspect_image, read_rgb
from snnet_vitdet.errors import InputError

SIZE = (WIDTH, HEIGHT)


class Decoded(BaseException):
    """Not an Exception, which might be taken for the file's."""


@pytest.fixture
def no_decoding(monkeypatch):
    """Lets every attempt to decode an image fail."""

    def load(self):
        raise Decoded

    # Those of the formats call it.
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff", "bmp", "gif"])
@pytest.mark.parametrize("size", [None, SIZE])
def test_a_header_tells_without_decoding(suffix, size, tmp_path, no_decoding):
    save()(tmp_path / f"some.{suffix}")
    facts = inspect_image(tmp_path / f"some.{suffix}", size)
    assert (facts.width, facts.height) == SIZE
    assert not (facts.turned or facts.large or facts.frames or facts.digest)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_that_of_the_upright_image_as_it_is_read(orientation, tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / "some.jpg"
    Image.fromarray(BASE).save(path, exif=exif)
    facts = inspect_image(path, decode=True)
    assert (facts.height, facts.width) == read_rgb(path).shape[:2]
    assert facts.turned == (orientation > 1)
    assert inspect_image(path, (facts.width, facts.height)) == inspect_image(path)
    fault = inspect_image(path, (facts.height, facts.width))
    assert fault.kind == ("turned" if orientation >= 5 else "size")


def test_an_orientation_behind_the_pixels_of_a_png_is_found_where_it_counts(tmp_path):
    upright, path = (WIDTH, HEIGHT), tmp_path / "late.png"
    turned(6, Image.Transpose.ROTATE_90)(path)
    content = path.read_bytes()
    start = content.index(b"eXIf") - 4
    length = 12 + struct.unpack(">I", content[start : start + 4])[0]
    chunk = content[start : start + length]
    end = content.index(b"IEND") - 4
    path.write_bytes(content[:start] + content[start + length : end] + chunk + content[end:])
    assert zlib.crc32(chunk[4:-4]) == struct.unpack(">I", chunk[-4:])[0]
    assert inspect_image(path, upright).turned
    np.testing.assert_array_equal(read_rgb(path), BASE)
    assert inspect_image(path, upright[::-1], decode=True).kind == "turned"


def test_unreadable_exif_is_taken_as_detectron2_takes_it(tmp_path):
    path = tmp_path / "some.jpg"
    Image.fromarray(BASE).save(path, exif=b"Exif\0\0no such thing")
    assert not inspect_image(path, SIZE).turned
    assert read_rgb(path).shape == BASE.shape


def test_damage_is_found_by_decoding_alone(tmp_path):
    path = tmp_path / "some.png"
    save()(path)
    path.write_bytes(path.read_bytes()[:-60])
    assert check_image(path, SIZE).mode == "RGB"
    assert inspect_image(path, SIZE, decode=True).kind == "damaged"
    with pytest.raises(InputError, match=r"some\.png cannot be read as an image .*: copy it again"):
        read_rgb(path)


def test_names_that_no_file_can_have_are_missing_or_not_opened():
    assert inspect_image("nowhere/some.jpg").kind == "missing"
    assert inspect_image("some\0.jpg").kind == "not opened"


def test_what_is_handled_has_the_mode_and_alpha_of_its_file(tmp_path):
    modes = {}
    for kind, case in HANDLED.items():
        case.make(tmp_path / case.name)
        modes[kind] = inspect_image(tmp_path / case.name, case.size, decode=True)
    assert modes["CMYK"].mode == "CMYK" and modes["16-bit RGB"].mode == "RGB"
    assert {kind for kind, facts in modes.items() if facts.has_alpha} == {"grey with alpha", "RGBA"}
    assert {kind for kind, facts in modes.items() if facts.frames} == {"several pages"}
