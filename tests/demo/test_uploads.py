"""Whatever is uploaded becomes an array, or a sentence."""

import numpy as np
import pytest
from PIL import Image

from snnet_vitdet.demo.uploads import MAX_SIDE, open_picture
from snnet_vitdet.errors import InputError

LIMIT = 4_000_000


@pytest.fixture
def rgb():
    """A picture whose corners differ: 40 high, 60 wide."""
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def opened(image, path, **kwargs):
    image.save(path, **kwargs)
    return open_picture(path, LIMIT)


def test_colours_and_grey_are_as_in_the_file(rgb, tmp_path):
    assert (opened(Image.fromarray(rgb), tmp_path / "a.png") == rgb).all()
    grey = rgb[:, :, 0]
    expected = np.stack([grey] * 3, axis=2)
    assert (opened(Image.fromarray(grey), tmp_path / "b.png") == expected).all()
    palette = Image.fromarray(rgb).quantize(8)
    expected = np.asarray(palette.convert("RGB"))
    assert (opened(palette, tmp_path / "c.png") == expected).all()
    # What phones write with a second, smaller picture inside.
    small = Image.new("RGB", (3, 2))
    found = opened(
        Image.fromarray(rgb), tmp_path / "e.jpg", format="MPO", save_all=True, append_images=[small]
    )
    assert found.shape == rgb.shape
    assert opened(Image.fromarray(rgb).convert("CMYK"), tmp_path / "d.jpg").shape == rgb.shape


def test_alpha_is_over_white(rgb, tmp_path):
    alpha = np.full((40, 60, 1), 255, np.uint8)
    alpha[:, :30] = 0
    found = opened(Image.fromarray(np.concatenate([rgb, alpha], axis=2)), tmp_path / "a.png")
    assert (found[:, :30] == 255).all() and (found[:, 30:] == rgb[:, 30:]).all()


def test_sixteen_bits_keep_their_brightness(rgb, tmp_path):
    """Pillow's own conversion makes everything above 255 white."""
    grey = rgb[:, :, 0]
    found = opened(Image.fromarray(grey.astype(np.uint16) * 256 + 7), tmp_path / "a.png")
    assert (found == np.stack([grey] * 3, axis=2)).all()


def test_a_turned_photograph_is_upright(rgb, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(rgb).transpose(Image.Transpose.ROTATE_90)
    assert (opened(turned, tmp_path / "a.png", exif=exif) == rgb).all()


@pytest.mark.parametrize(("suffix", "size"), [("jpg", (3000, 1000)), ("png", (1000, 1700))])
def test_a_large_picture_is_reduced(suffix, size, tmp_path):
    found = opened(Image.new("RGB", size, "red"), tmp_path / f"a.{suffix}")
    scale = MAX_SIDE / max(size)
    # To a pixel: halves may be rounded either way.
    assert abs(found.shape[1] - scale * size[0]) <= 1 and abs(found.shape[0] - scale * size[1]) <= 1
    assert max(found.shape) == MAX_SIDE


def test_a_single_pixel_is_a_picture(tmp_path):
    assert opened(Image.new("RGB", (1, 1), "red"), tmp_path / "a.png").tolist() == [[[255, 0, 0]]]


def test_what_is_no_image_is_refused_in_a_sentence(rgb, tmp_path):
    path = tmp_path / "a.png"
    path.write_text("no image")
    with pytest.raises(InputError, match="not an image that can be read: use JPEG, PNG"):
        open_picture(path, LIMIT)
    # Pillow hands PostScript to another program.
    Image.fromarray(rgb).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(path)
    with pytest.raises(InputError, match="not an image that can be read"):
        open_picture(path, LIMIT)
    Image.fromarray(rgb).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match="This image is damaged"):
        open_picture(path, LIMIT)
    Image.fromarray(rgb[:, :, 0].astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="floating-point pixels"):
        open_picture(tmp_path / "a.tif", LIMIT)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.new("1", (2100, 2000)).save(path)
    with pytest.raises(InputError, match="too large: at most 4 megapixels .* 2100 × 2000"):
        open_picture(path, LIMIT)
    # Above twice this, Pillow itself raises.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2_000_000)
    with pytest.raises(InputError, match="too large: at most 4 megapixels"):
        open_picture(path, LIMIT)
