"""Objects without a mask among others that have one."""

import copy
import json
import logging
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from detectron2.structures import BitMasks, PolygonMasks

from snnet_vitdet.data import build_train_loader, check_coco_json, coco_dicts
from snnet_vitdet.data.datasets import mask_truth
from snnet_vitdet.errors import InputError


@pytest.fixture
def record(tiny_scenes):
    """A dataset dict with more than two objects, the first of which have a box alone."""
    records = coco_dicts(tiny_scenes.train_json, tiny_scenes.train_images, filter_empty=False)
    (record, *_) = sorted(records, key=lambda record: -len(record["annotations"]))
    assert len(record["annotations"]) > 2
    return record


def crop_of(record, node):
    """What large-scale jitter makes of it, the same every time."""
    return next(
        iter(build_train_loader([record], instantiate(node), total_batch_size=1, num_workers=0))
    )[0]["instances"]


def by_box(instances):
    return {tuple(box): index for index, box in enumerate(instances.gt_boxes.tensor.tolist())}


@pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
def test_a_box_alone_is_cropped_as_a_box_and_the_others_as_before(tiny_config, record, mask_format):
    node = tiny_config().dataloader.train.mapper
    node.instance_mask_format = mask_format
    for each in record["annotations"]:
        x, y, w, h = each["bbox"]
        each["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    mixed = copy.deepcopy(record)
    for each in mixed["annotations"][:2]:
        del each["segmentation"]
    all_masks, found = crop_of(record, node), crop_of(mixed, node)
    assert found.image_size == all_masks.image_size
    # Of masks that fill their boxes, the boxes are the same but for the rounding of bitmasks.
    assert len(found) == len(all_masks)
    kept = all_masks.gt_boxes.tensor.sort(dim=0).values
    assert torch.allclose(found.gt_boxes.tensor.sort(dim=0).values, kept, atol=1.0)
    masks = {"bitmask": BitMasks, "polygon": PolygonMasks}[mask_format]
    assert isinstance(found.gt_masks, masks)
    assert found.gt_has_mask.tolist() == found.gt_masks.nonempty().tolist()
    # What has a mask is to the bit what it is beside others that have one.
    rest = copy.deepcopy(record)
    del rest["annotations"][:2]
    alone, given = crop_of(rest, node), found[found.gt_has_mask]
    assert torch.equal(given.gt_boxes.tensor, alone.gt_boxes.tensor)
    assert torch.equal(given.gt_classes, alone.gt_classes)
    if mask_format == "bitmask":
        assert torch.equal(given.gt_masks.tensor, alone.gt_masks.tensor)


def test_an_image_of_boxes_alone_has_empty_masks(tiny_config, record):
    for each in record["annotations"]:
        del each["segmentation"]
    found = crop_of(record, tiny_config().dataloader.train.mapper)
    assert len(found) > 0 and not found.gt_has_mask.any()
    assert found.gt_masks.tensor.shape == (len(found), *found.image_size)


def test_an_image_with_masks_of_all_has_no_further_field(tiny_config, record):
    found = crop_of(record, tiny_config().dataloader.train.mapper)
    assert set(found.get_fields()) == {"gt_boxes", "gt_classes", "gt_masks"}


def test_a_box_that_the_crop_leaves_out_is_gone(tiny_config, record):
    for each in record["annotations"]:
        del each["segmentation"]
    record["annotations"][0]["bbox"] = [1000.0, 1000.0, 5.0, 5.0]
    found = crop_of(record, tiny_config().dataloader.train.mapper)
    assert len(found) < len(record["annotations"])


@pytest.fixture
def mixed_file(tiny_scenes, tmp_path):
    """An annotation file whose first two objects have a box alone."""
    coco = json.loads(Path(tiny_scenes.train_json).read_text(encoding="utf-8"))
    for annotation in coco["annotations"][:2]:
        del annotation["segmentation"]
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps(coco), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("for_evaluation", "consequence"),
    [
        (False, "training learns their boxes, and masks from the others"),
        (True, "mask AP counts what is found in their boxes neither for nor against"),
    ],
)
def test_boxes_alone_are_counted_in_a_sentence(
    mixed_file, tiny_scenes, caplog, for_evaluation, consequence
):
    with caplog.at_level(logging.WARNING, "snnet_vitdet.data.checks"):
        summary = check_coco_json(
            mixed_file, tiny_scenes.train_images, for_evaluation=for_evaluation
        )
    assert summary.masks == sum(summary.instances.values()) - 2
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("2 of ") and "have no mask" in line and consequence in line


def test_normalised_boxes_are_refused_without_masks_too(tiny_scenes, tmp_path):
    coco = json.loads(Path(tiny_scenes.train_json).read_text(encoding="utf-8"))
    for annotation in coco["annotations"]:
        del annotation["segmentation"]
        annotation["bbox"] = [side / 64 for side in annotation["bbox"]]
    path = tmp_path / "normalised.json"
    path.write_text(json.dumps(coco), encoding="utf-8")
    with pytest.raises(InputError, match="have a box of numbers from 0 to 1"):
        check_coco_json(str(path), tiny_scenes.train_images, for_evaluation=False, masks=False)


def test_masks_are_scored_on_crowds_in_place_of_boxes_alone():
    mask = {"bbox": [0, 0, 2, 2], "iscrowd": 0, "segmentation": [[0, 0, 2, 0, 2, 2]]}
    box = {"bbox": [1, 2, 3, 4], "iscrowd": 0}
    content = {"annotations": [mask, box], "images": []}
    assert mask_truth({"annotations": [mask]})["annotations"][0] is mask
    first, second = mask_truth(content)["annotations"]
    assert first is mask
    assert second == {**box, "iscrowd": 1, "segmentation": [[1, 2, 4, 2, 4, 6, 1, 6]]}
    assert "segmentation" not in box
