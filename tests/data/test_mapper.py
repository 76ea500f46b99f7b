import copy

import pytest
import torch
from bad_images import BASE, save
from detectron2.config import instantiate
from detectron2.data import DatasetMapper
from detectron2.structures import BitMasks, PolygonMasks

from snnet_vitdet.data import CheckedMapper, build_train_loader, coco_dicts
from snnet_vitdet.errors import InputError


@pytest.fixture
def nodes(tiny_config):
    """Nodes of the mappers of training and test."""
    loaders = tiny_config().dataloader
    return loaders.train.mapper, loaders.test.mapper


@pytest.fixture
def records(tiny_scenes):
    return coco_dicts(tiny_scenes.train_json, tiny_scenes.train_images, filter_empty=False)


def of_detectron2(node):
    return DatasetMapper(**{key: instantiate(node[key]) for key in node if key != "_target_"})


def one_sample(record, mapper):
    return next(build_train_loader([record], mapper, total_batch_size=1, num_workers=0).__iter__())[
        0
    ]


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert torch.equal(first["image"], second["image"])
    if "instances" in first:
        a, b = first["instances"].get_fields(), second["instances"].get_fields()
        assert a.keys() == b.keys()
        for name in a:
            tensors = (
                value if torch.is_tensor(value) else value.tensor for value in (a[name], b[name])
            )
            assert torch.equal(*tensors), name


def test_samples_are_those_of_detectron2s_mapper(nodes, records):
    mappers = [instantiate(node) for node in nodes]
    assert [type(mapper) for mapper in mappers] == [CheckedMapper] * 2
    for record in records:
        # Under the same random state, by the loader of training.
        assert_same(one_sample(record, mappers[0]), one_sample(record, of_detectron2(nodes[0])))
        assert_same(mappers[1](record), of_detectron2(nodes[1])(record))


def test_an_error_that_is_not_the_files_is_left_as_it_is(nodes, records):
    mapper = instantiate(nodes[0])
    broken = {**records[0], "annotations": [{"bbox": "no box", "bbox_mode": 0}]}
    with pytest.raises(Exception, match=".") as error:
        mapper(broken)
    assert not isinstance(error.value, InputError)


def test_a_size_that_no_annotation_gives_is_not_compared(nodes, tmp_path):
    save()(tmp_path / "some.png")
    sample = instantiate(nodes[1])({"file_name": str(tmp_path / "some.png")})
    assert (sample["height"], sample["width"]) == BASE.shape[:2]


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
    # Masks fill their boxes, so the boxes are the same but for the rounding of bitmasks.
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


def test_a_box_that_the_crop_leaves_out_is_gone(tiny_config, record):
    for each in record["annotations"]:
        del each["segmentation"]
    record["annotations"][0]["bbox"] = [1000.0, 1000.0, 5.0, 5.0]
    found = crop_of(record, tiny_config().dataloader.train.mapper)
    assert len(found) < len(record["annotations"])
