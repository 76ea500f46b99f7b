"""Tiles of photographs and their annotations."""

import json

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
from research.proxy.tiles import cut


def photograph(number, height, width, rectangles):
    """An image whose objects are rectangles (top, left, bottom, right), and its annotations."""
    picture = np.zeros((height, width, 3), np.uint8)
    annotations = []
    for top, left, bottom, right in rectangles:
        mask = np.zeros((height, width), np.uint8, order="F")
        mask[top:bottom, left:right] = 1
        picture[mask == 1] = 200
        rle = mask_util.encode(mask)
        rle["counts"] = rle["counts"].decode()
        annotations.append({"image_id": number, "category_id": 4, "segmentation": rle})
    name = f"{number}.png"
    entry = {"id": number, "file_name": name, "height": height, "width": width}
    return picture, entry, annotations


@pytest.fixture
def tiles(tmp_path):
    """Cuts the same photographs for both splits; returns what is left of each split."""

    def made(*photographs):
        source, target = tmp_path / "source", tmp_path / "target"
        (source / "images").mkdir(parents=True)
        coco = {"images": [], "annotations": [], "categories": [{"id": 4, "name": "thing"}]}
        for number, given in enumerate(photographs, start=1):
            picture, entry, annotations = photograph(number, *given)
            cv2.imwrite(str(source / "images" / entry["file_name"]), picture)
            coco["images"].append(entry)
            coco["annotations"] += annotations
        for split in ("train", "test"):
            (source / f"{split}.json").write_text(json.dumps(coco))
        cut(source, target)
        return target, {
            s: json.loads((target / f"{s}.json").read_text()) for s in ("train", "test")
        }

    return made


def test_the_middle_of_a_test_image_is_shown_at_twice_its_size(tiles):
    target, found = tiles((256, 256, [(100, 90, 110, 120), (0, 0, 20, 20)]))
    (image,), (thing,) = found["test"]["images"], found["test"]["annotations"]
    # The window is 64 to 192 in both directions; what lies outside is left out.
    assert thing["bbox"] == [52, 72, 60, 20] and thing["area"] == 1200
    assert thing["category_id"] == 4 and thing["image_id"] == image["id"]
    mask = mask_util.decode(thing["segmentation"])
    picture = cv2.imread(str(target / "images" / image["file_name"]))
    assert picture.shape == (256, 256, 3) and mask.sum() == 1200
    # Interpolation blurs the border by a pixel.
    assert (picture[mask == 1] > 100).all() and (picture[mask == 0] > 100).mean() < 0.01


def test_a_large_image_is_seen_as_if_it_had_256_pixels(tiles):
    _, found = tiles((512, 512, [(200, 220, 240, 280)]))
    (thing,) = found["test"]["annotations"]
    # 256 of 512 pixels are shown in 256.
    assert thing["bbox"] == [92, 72, 60, 40]


def test_a_training_image_gives_two_tiles_and_an_empty_tile_none(tiles):
    everywhere = [(i, j, i + 16, j + 16) for i in range(0, 240, 24) for j in range(0, 240, 24)]
    _, found = tiles((240, 240, everywhere), (256, 256, []))
    assert len(found["train"]["images"]) == 2 and len(found["test"]["images"]) == 1
    assert {a["image_id"] for a in found["train"]["annotations"]} == {1, 2}


def test_an_object_of_which_little_is_shown_is_left_out(tiles):
    # The window begins at 64: 0.2 and 0.5 of the two are in it.
    _, found = tiles((256, 256, [(100, 24, 110, 74), (120, 44, 130, 84)]))
    (thing,) = found["test"]["annotations"]
    assert thing["bbox"] == [0, 112, 40, 20]
