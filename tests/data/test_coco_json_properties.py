"""The COCO reader and its checks: any mask comes back, any garbage is an InputError."""

import itertools
import json
import math

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import example, given
from hypothesis import strategies as st
from pycocotools import mask as coco_masks

from snnet_vitdet.data import (
    check_coco_json,
    coco_dicts,
    dataset_name,
)
from snnet_vitdet.data.annotations import rle_pixels
from snnet_vitdet.errors import InputError

WIDTH, HEIGHT = 20, 10


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    """Writes text, bytes or data to a new file beside ``1.jpg`` to ``3.jpg``; its path.

    New each time, as what is read is kept by path and time, and detectron2's catalogues keep it.
    """
    folder = tmp_path_factory.mktemp("coco")
    for number in (1, 2, 3):
        (folder / f"{number}.jpg").touch()
    numbers = itertools.count()

    def write_file(content):
        path = folder / f"{next(numbers)}.json"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write_file


def image(number, **changes):
    return {"id": number, "file_name": f"{number}.jpg", "width": WIDTH, "height": HEIGHT} | changes


def annotation(number, **changes):
    return {
        "id": number,
        "image_id": 1,
        "category_id": 5,
        "bbox": [1.0, 1.0, 8.0, 8.0],
        "area": 32.0,
        "iscrowd": 0,
        "segmentation": [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0]],
    } | changes


def coco(*annotations, **sections):
    """Annotation 1 of image 1 and category 5 is faultless."""
    return {
        "images": [image(1), image(2)],
        "annotations": [annotation(1), *annotations],
        "categories": [{"id": 5, "name": "nut"}, {"id": 2, "name": "fig"}],
    } | sections


def check(path, for_evaluation=False):
    """The summary, or None where there is an InputError."""
    try:
        return check_coco_json(str(path), str(path.parent), for_evaluation=for_evaluation)
    except InputError as error:
        assert str(error)
        return None


def load(path):
    """What training reads."""
    name = dataset_name(str(path), str(path.parent))
    try:
        return coco_dicts(str(path), str(path.parent), filter_empty=False)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def assert_loads_as_checked(path, summary):
    """What passes the check is read without an exception, with boxes and masks fit for use."""
    dicts = load(path)
    assert len(dicts) == summary.images
    objects = [obj for record in dicts for obj in record["annotations"]]
    assert len(objects) == summary.annotations
    for record in dicts:
        for obj in record["annotations"]:
            assert 0 <= obj["category_id"] < len(summary.categories)
            assert len(obj["bbox"]) == 4 and all(map(math.isfinite, obj["bbox"]))
            if obj.get("segmentation"):
                assert_mask_of_the_image(obj["segmentation"], record)


def assert_mask_of_the_image(mask, record):
    if isinstance(mask, dict):
        bitmap = coco_masks.decode(mask)
        assert bitmap.shape == (record["height"], record["width"])
        assert bitmap.max() <= 1  # pycocotools leaves what no run covers as the memory was
    else:
        assert all(len(polygon) >= 6 and all(map(math.isfinite, polygon)) for polygon in mask)


def bitmaps(height, width):
    rows = st.lists(st.integers(0, 1), min_size=width, max_size=width)
    return st.lists(rows, min_size=height, max_size=height).map(
        lambda rows: np.asfortranarray(rows, dtype=np.uint8)
    )


shapes = st.tuples(st.integers(1, 12), st.integers(1, 12))


@given(shapes.flatmap(lambda shape: bitmaps(*shape)), st.booleans())
@example(np.zeros((300, 500), np.uint8, order="F"), True)
@example(np.ones((300, 500), np.uint8, order="F"), True)
def test_a_mask_of_its_image_comes_back_and_one_pixel_more_or_less_is_no_mask(write, mask, text):
    height, width = mask.shape
    if text:
        counts = coco_masks.encode(mask)["counts"].decode()
    else:
        flat = mask.flatten("F")
        edges = [0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]
        counts = [*[0] * int(flat[0]), *map(int, np.diff(edges))]
    assert rle_pixels(counts) == mask.size
    entry = annotation(2, image_id=3, segmentation={"size": [height, width], "counts": counts})
    entry["bbox"] = [0, 0, width, height]
    path = write(coco(entry, images=[image(1), image(3, width=width, height=height)]))
    assert check(path, for_evaluation=True).rle_masks == 1
    (found,) = load(path)[1]["annotations"]
    assert np.array_equal(coco_masks.decode(found["segmentation"]), mask)


# --------------------------------------------------------------------------------------- garbage


@pytest.mark.parametrize(
    "changes",
    [
        {"bbox": [0, 0, 10**400, 1.5]},
        {"area": 10**400},
        {"segmentation": [[1, 1, 9, 1, 10**400, 9]]},
        {"segmentation": {"size": [10.0, 20.0], "counts": [200]}},
        {"segmentation": {"size": [10.0, 20.0], "counts": "X6"}},
        *(
            {"segmentation": {"size": [HEIGHT, WIDTH], "counts": counts}}
            for counts in (["a", 1], [300, -100], [100.5, 99.5], "0000", "zzz0", "é", "")
        ),
        {"segmentation": {"size": [HEIGHT, WIDTH], "counts": "ooooooooooo0"}},
        {"segmentation": {"size": [HEIGHT, WIDTH], "counts": "oooooooooooo1" * 16}},
        {"iscrowd": 1, "segmentation": 5},
        {"iscrowd": 1, "segmentation": {"size": [HEIGHT, WIDTH]}},
        {"ignore": None},
        {"ignore": ""},
    ],
)
def test_an_annotation_that_failed_once_is_an_input_error_or_loads(write, changes):
    path = write(coco(annotation(2, **changes)))
    summary = check(path)
    if summary is not None:
        assert_loads_as_checked(path, summary)
    for_evaluation = check(path, for_evaluation=True)
    assert for_evaluation is None or summary is not None  # evaluation asks for more


@pytest.mark.parametrize(
    "changes",
    [{"id": "2"}, {"width": 10**400}]
    + [{"file_name": name + "/b.jpg"} for name in ("a\0", "\ud800", "a" * 5000)],
)
def test_an_image_that_failed_once_is_an_input_error(write, changes):
    path = write(coco(images=[image(1), image(2), image(3, **changes)]))
    with pytest.raises(InputError):
        check_coco_json(str(path), str(path.parent), for_evaluation=False)


WHOLE = json.dumps(coco(annotation(2))).encode()


@given(st.binary(max_size=40) | st.integers(0, len(WHOLE)).map(lambda n: WHOLE[:n]))
@example(b"[" * 100_000)  # deeper than the parser goes
@example(b'{"images": ' + b"[" * 100_000)
@example(b'{"images": ' + b"9" * 5000 + b"}")
@example(b"\xff\xfe")
def test_any_bytes_are_an_input_error_or_are_read(write, content):
    path = write(content)
    assert (check(path) is not None) == (content == WHOLE)
