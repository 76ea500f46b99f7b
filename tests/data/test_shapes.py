import json
import logging
import os
import threading
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest

from snnet_vitdet.data import check_coco_json, generate_shapes
from snnet_vitdet.data.scenes import CATEGORIES, _candidate, _coverage
from snnet_vitdet.errors import InputError

NUM_TRAIN, NUM_TEST, SIZE = 36, 24, 256


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "scenes"
    return generate_shapes(str(root), NUM_TRAIN, NUM_TEST, SIZE, seed=0)


def contents(root):
    """Bytes by relative path."""
    files = (path for path in sorted(Path(root).rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def splits(scenes):
    return [(scenes.train_json, scenes.train_images), (scenes.test_json, scenes.test_images)]


def decode(segmentation):
    if isinstance(segmentation, list):
        segmentation = mask_util.merge(mask_util.frPyObjects(segmentation, SIZE, SIZE))
    return mask_util.decode(segmentation).astype(bool)


def test_masks_decode_to_the_stated_area_and_box_and_do_not_overlap(scenes):
    for json_file, _ in splits(scenes):
        covered = defaultdict(lambda: np.zeros((SIZE, SIZE), dtype=int))
        for annotation in json.loads(Path(json_file).read_text())["annotations"]:
            mask = decode(annotation["segmentation"])
            ys, xs = np.nonzero(mask)
            x, y = xs.min(), ys.min()
            assert annotation["area"] == mask.sum()
            assert annotation["bbox"] == [x, y, xs.max() + 1 - x, ys.max() + 1 - y]
            assert annotation["iscrowd"] == 0
            covered[annotation["image_id"]] += mask
        assert max(count.max() for count in covered.values()) == 1


def test_each_split_has_every_category_size_and_mask_form_and_an_empty_image(scenes):
    for json_file, images in splits(scenes):
        summary = check_coco_json(json_file, images, for_evaluation=True)
        assert list(summary.categories.values()) == list(CATEGORIES)
        assert len(CATEGORIES) >= 6
        assert min(summary.instances.values()) >= 3
        assert min(summary.sizes.values()) >= 5
        assert 0 < summary.rle_masks < summary.annotations
    train = check_coco_json(scenes.train_json, scenes.train_images, for_evaluation=False)
    assert train.empty_images == 1


def test_rings_have_a_hole_and_one_to_six_objects_share_an_image(scenes):
    data = json.loads(Path(scenes.train_json).read_text())
    ring = CATEGORIES.index("ring") + 1
    rings = [a["segmentation"] for a in data["annotations"] if a["category_id"] == ring]
    assert rings
    assert all(isinstance(segmentation, dict) for segmentation in rings)
    per_image = Counter(annotation["image_id"] for annotation in data["annotations"])
    assert set(per_image.values()) == {1, 2, 3, 4, 5, 6}


def test_mask_follows_the_painted_outline():
    for category in range(len(CATEGORIES)):
        shape = _candidate(np.random.default_rng(category), SIZE, category, 4000.0, True, [])
        painted = _coverage(shape.outlines, (0, 0), SIZE, SIZE) >= 0.5
        union = np.count_nonzero(painted | shape.whole)
        assert np.count_nonzero(painted & shape.whole) / union > 0.96


def test_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    roots = [tmp_path / name for name in ("first", "second", "other")]
    for root, seed in zip(roots, (3, 3, 4), strict=True):
        generate_shapes(str(root), 3, 2, 64, seed=seed)
    first, second, other = map(contents, roots)
    assert first == second
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first)


def test_an_image_does_not_depend_on_how_many_are_made_nor_on_the_global_generator(tmp_path):
    generate_shapes(str(tmp_path / "few"), 2, 1, 64)
    np.random.seed(5)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    generate_shapes(str(tmp_path / "many"), 4, 2, 64)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    few, many = contents(tmp_path / "few"), contents(tmp_path / "many")
    pictures = [name for name in few if name.endswith(".jpg")]
    assert len(pictures) == 3
    assert {name: few[name] for name in pictures} == {name: many[name] for name in pictures}
    assert few["train/000001.jpg"] != few["test/000001.jpg"]


def test_a_whole_set_is_reused_untouched(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="snnet_vitdet")
    root = tmp_path / "scenes"
    first = generate_shapes(str(root), 2, 1, 64)
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    caplog.clear()
    assert generate_shapes(str(root), 2, 1, 64) == first
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == times
    assert "Reusing the generated scenes" in caplog.text


@pytest.mark.parametrize(
    "damage",
    [
        lambda root: (root / "train" / "000001.jpg").unlink(),
        lambda root: (root / "train" / "000001.jpg").write_bytes(b"\xff\xd8"),
        lambda root: (root / "test" / "000009.jpg").write_bytes(b"extra"),
        lambda root: (root / "test.json").write_text("{}"),
        lambda root: (root / "train.json").unlink(),
        lambda root: (root / "generated.json").write_text('{"parameters": '),
    ],
    ids=["image gone", "image cut", "image added", "json changed", "json gone", "marker cut"],
)
def test_a_damaged_set_is_made_anew(tmp_path, damage):
    root = tmp_path / "scenes"
    generate_shapes(str(root), 2, 1, 64)
    whole = contents(root)
    damage(root)
    generate_shapes(str(root), 2, 1, 64)
    assert contents(root) == whole
    assert os.listdir(tmp_path) == ["scenes"]


def test_what_a_killed_generation_left_is_removed_by_the_next(tmp_path):
    for name in ("s.partial-0a1b2c3d", "s.outdated-0a1b2c3d", "t.partial-0a1b2c3d"):
        (tmp_path / name / "train").mkdir(parents=True)
    generate_shapes(str(tmp_path / "s"), 1, 1, 64)
    # The other set is left alone.
    assert sorted(os.listdir(tmp_path)) == ["s", "t.partial-0a1b2c3d"]


def test_callers_at_the_same_time_end_with_one_whole_set(tmp_path, caplog):
    caplog.set_level("INFO", logger="snnet_vitdet.data.shapes")
    root = tmp_path / "scenes"
    generate_shapes(str(root), 1, 1, 64, seed=9)
    results, errors = [], []

    def call():
        try:
            results.append(generate_shapes(str(root), 4, 2, 64))
        except Exception as error:  # noqa: BLE001 - reported below, by the main thread
            errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(set(results)) == 1
    # The first call's set is replaced once; who comes later finds it made.
    assert caplog.text.count("made with other parameters") == 1
    assert os.listdir(tmp_path) == ["scenes"]
    generate_shapes(str(tmp_path / "alone"), 4, 2, 64)
    assert contents(root) == contents(tmp_path / "alone")


def test_a_folder_with_other_things_is_never_replaced(tmp_path):
    root = tmp_path / "mine"
    (root / "train").mkdir(parents=True)
    (root / "train.json").write_text("precious")
    with pytest.raises(InputError, match="mine is not a folder of generated scenes alone"):
        generate_shapes(str(root), 2, 1, 64)
    assert (root / "train.json").read_text() == "precious"

    made = tmp_path / "made"
    generate_shapes(str(made), 1, 1, 64)
    (made / "notes.txt").write_text("precious")
    with pytest.raises(InputError, match=r"it has notes\.txt.*choose another folder"):
        generate_shapes(str(made), 2, 1, 64)


def test_wrong_parameters_and_places_are_named(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="need num_test of at least 1, not 0"):
        generate_shapes(str(tmp_path / "a"), 1, 0)
    with pytest.raises(InputError, match="need image_size of at least 64, not 32"):
        generate_shapes(str(tmp_path / "a"), 1, 1, 32)
    with pytest.raises(InputError, match="need seed of at least 0, not -1"):
        generate_shapes(str(tmp_path / "a"), 1, 1, seed=-1)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is a file or lies in one, .* choose another"):
        generate_shapes(str(tmp_path / "file"), 1, 1)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(InputError, match=r"Cannot create .*new .*\(Permission denied\): choose a"):
        generate_shapes(str(tmp_path / "new"), 1, 1)
