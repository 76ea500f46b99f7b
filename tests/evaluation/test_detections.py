import os

import numpy as np
import pytest
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances

from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation.detections import Detections, DetectionStore, unpacked
from snnet_vitdet.evaluation.mask_rle import MaskRuns

HEIGHT, WIDTH = 90, 120
PLAN = {"checkpoint": "a.pth", "mtime": 1700000000.123, "images": None}


def found_in(image_id, count, masks=True, seed=0):
    """Random instances, as from a model."""
    generator = torch.Generator().manual_seed(1000 * seed + image_id)
    corners = torch.rand(count, 2, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT])
    boxes = torch.cat([corners.amin(1), corners.amax(1) + 0.37], dim=1)
    instances = Instances((HEIGHT, WIDTH))
    instances.pred_boxes = Boxes(boxes)
    instances.scores = torch.rand(count, generator=generator)
    instances.pred_classes = torch.randint(80, (count,), generator=generator)
    if masks:
        noise = torch.rand(count, HEIGHT, WIDTH, generator=generator)
        grid = torch.stack(torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij"))
        inside = (grid[None, 1] >= boxes[:, 0, None, None]) & (
            grid[None, 1] < boxes[:, 2, None, None]
        )
        instances.pred_masks = inside & (noise > 0.1)
    return instances


def runs_of(masks):
    """The runs of masks, (N, H, W)."""
    flat = masks.transpose(1, 2).flatten(1).numpy()
    starts = np.flatnonzero(np.diff(flat, axis=1, prepend=False))
    return MaskRuns(starts, *masks.shape)


def arrays_of(instances, image_id, *points):
    """The instances as they reach the store, the same for all points."""
    count = len(instances)
    return Detections(
        image_id,
        points,
        instances.pred_boxes.tensor.numpy(),
        instances.scores.numpy(),
        instances.pred_classes.numpy(),
        np.tile(np.arange(count)[:, None], (1, len(points))),
        runs_of(instances.pred_masks) if instances.has("pred_masks") else None,
    )


def fill(store, image_ids, stitch_ids=(0, 3, 7), batch_size=1, masks=True):
    """What a pass over images does; the counts differ and are 0 for some."""
    image_ids = list(image_ids)
    for start in range(0, len(image_ids), batch_size):
        batch = image_ids[start : start + batch_size]
        store.add(
            arrays_of(instances_of(stitch_id, image_id, masks), image_id, str(stitch_id))
            for stitch_id in stitch_ids
            for image_id in batch
        )
    store.flush()


def instances_of(stitch_id, image_id, masks=True):
    return found_in(image_id, (image_id + stitch_id) % 4, masks, seed=stitch_id)


def expected_of(stitch_id, image_ids, masks=True):
    """What detectron2 makes of them."""
    return [
        detection
        for image_id in image_ids
        for detection in instances_to_coco_json(instances_of(stitch_id, image_id, masks), image_id)
    ]


@pytest.fixture
def make(tmp_path):
    """A store of a process in the test's folder."""
    return lambda **kwargs: DetectionStore(tmp_path / "detections", **kwargs)


@pytest.fixture
def store(make):
    store = make()
    store.open(PLAN, ["0", "3", "7"])
    return store


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("images_per_file", [1, 4, 50])
def test_what_comes_out_is_what_went_in_to_the_bit(masks, images_per_file, make):
    store = make(images_per_file=images_per_file)
    store.open(PLAN, ["0", "3", "7"])
    # Ids as COCO's: up to six digits, in no order; beyond 32 bits as others number.
    image_ids = [397133, 37777, 252219, 8, 7_000_000_000, 9, 10, 11, 12]
    fill(store, image_ids, masks=masks)
    assert len(list(store.folder.glob("*.npz"))) == {1: 9, 4: 3, 50: 1}[images_per_file]
    for stitch_id in (0, 3, 7):
        expected = expected_of(stitch_id, image_ids, masks)
        found = list(unpacked(make().arrays_of(str(stitch_id))))
        assert found == expected
        types = [{key: type(value) for key, value in d.items()} for d in (found[0], expected[0])]
        assert types[0] == types[1]
        assert len(found) > 5
        assert all(("segmentation" in d) == masks for d in found)
    assert store.image_ids() == image_ids


def test_each_point_has_its_own_detections_in_their_order(store):
    """Points that differ in the number of proposals share most detections, and their masks."""
    instances = found_in(5, 6)
    arrays = arrays_of(instances, 5, "0", "3", "7")
    arrays.places[:] = np.array(
        [[0, 1, -1], [1, -1, -1], [-1, 3, -1], [2, 2, -1], [3, 0, -1], [-1, 4, -1]]
    )
    store.add([arrays])
    store.flush()
    for point, rows in (("0", [0, 1, 3, 4]), ("3", [4, 0, 3, 2, 5]), ("7", [])):
        expected = instances_to_coco_json(instances[torch.tensor(rows, dtype=torch.long)], 5)
        assert list(unpacked(store.arrays_of(point))) == expected


def test_several_processes_share_a_folder(store, make):
    second = make(rank=1, images_per_file=2)
    fill(store, [1, 2, 3])
    fill(second, [4, 5, 6])
    assert (store.num_images_done(), second.num_images_done()) == (3, 3)
    assert sorted(second.image_ids()) == [1, 2, 3, 4, 5, 6]
    for reader in (store, second):
        assert list(unpacked(reader.arrays_of(str(7)))) == expected_of(7, [1, 2, 3, 4, 5, 6])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_a_file_never_ends_within_a_batch(batch_size, make):
    """Otherwise the other images of the batch would be detected again after an interruption."""
    store = make(images_per_file=4)
    store.open(PLAN, ["0", "3", "7"])
    image_ids = list(range(1, 14))
    fill(store, image_ids, batch_size=batch_size)
    files = sorted(store.folder.glob("*.npz"))
    assert len(files) > 1
    done = 0
    for path in files:
        with np.load(path) as arrays:
            images = arrays["images"].tolist()
            assert images == image_ids[done : done + len(images)]
            assert set(arrays["7/image_ids"].tolist()) <= set(images)
        done += len(images)
        assert done % batch_size == 0 or done == len(image_ids)
    assert list(unpacked(store.arrays_of("7"))) == expected_of(7, image_ids)


def test_what_is_pending_is_bounded_by_the_images_of_a_file(make):
    store = make(images_per_file=3)
    store.open(PLAN, ["0"])
    for image_id in range(1, 9):
        store.add([arrays_of(found_in(image_id, 2), image_id, "0")])
        assert store.num_images_done() == image_id // 3 * 3
        assert sum(map(len, store._pending.values())) == image_id % 3
    store.flush()
    store.flush()  # of nothing
    assert store.num_images_done() == 8
    assert len(list(store.folder.glob("*.npz"))) == 3


def test_an_opened_folder_is_continued(store, make):
    fill(store, [1, 2])
    again = make()
    assert again.open(dict(PLAN), ["7", "0", "3"]) == ["0", "3", "7"]
    assert again.num_images_done() == 2
    fill(again, [3])
    assert list(unpacked(again.arrays_of("3"))) == expected_of(3, [1, 2, 3])


def test_a_folder_of_more_stitches_is_kept_and_says_which(store, make):
    fill(store, [1, 2])
    again = make()
    assert again.open(PLAN, ["3"]) == ["0", "3", "7"]
    assert again.num_images_done() == 2


@pytest.mark.parametrize(
    ("plan", "stitch_ids"),
    [
        (PLAN, ["0", "3", "7", "8"]),
        ({**PLAN, "checkpoint": "b.pth"}, ["0", "3", "7"]),
        ({**PLAN, "mtime": 1700000000.124}, ["0", "3", "7"]),
        ({**PLAN, "images": [1, 2]}, ["0", "3", "7"]),
        ({}, ["0", "3", "7"]),
    ],
)
def test_a_folder_of_another_plan_or_fewer_stitches_is_made_anew(plan, stitch_ids, store, make):
    fill(store, [1, 2])
    again = make()
    assert again.open(plan, reversed(stitch_ids)) == stitch_ids
    assert again.num_images_done() == 0
    assert os.listdir(store.folder) == ["manifest.json"]
    # From now on it is a folder of the new plan.
    fill(again, [1])
    assert make().open(plan, stitch_ids) == stitch_ids
    assert make().num_images_done() == 1


@pytest.mark.parametrize("content", [None, "{", "[]", '{"plan": {}}', "null", "\udcff"])
def test_a_folder_with_a_damaged_manifest_is_made_anew(content, store, make):
    fill(store, [1, 2])
    manifest = store.folder / "manifest.json"
    manifest.unlink()
    if content is not None:
        manifest.write_bytes(content.encode("utf-8", errors="surrogateescape"))
    assert make().open(PLAN, ["0", "3", "7"]) == ["0", "3", "7"]
    assert make().num_images_done() == 0


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_no_part_of_a_file(step, store, make, monkeypatch):
    fill(store, [1, 2])

    def fail(*_args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(InputError, match="No space left"):
            fill(store, [3])
    # Resumed: what is left of the file is overwritten, and the image counts once.
    again = make()
    again.open(PLAN, ["0", "3", "7"])
    assert again.num_images_done() == 2
    fill(again, [3])
    assert list(unpacked(again.arrays_of("3"))) == expected_of(3, [1, 2, 3])
    assert sorted(os.listdir(store.folder)) == [
        "0000-000000.npz",
        "0000-000001.npz",
        "manifest.json",
    ]
