"""Every way to pick objects, of none, one and many."""

import copy
import pickle

import numpy as np
import pytest
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import Visualizer

from snnet_vitdet.deploy import ClassNames, Detections, PastedMasks, draw_detections

SIZE = (30, 40)
NAMES = ["pear", "nut", "apple", "fig", "nut"]


def found(count):
    """So many objects, each with its own box, score and name."""
    starts = 2.0 * torch.arange(count)[:, None] + torch.tensor([[1.0, 2.0]])
    boxes = torch.cat([starts, starts + 12.5], dim=1)
    return Detections(
        SIZE,
        pred_boxes=Boxes(boxes),
        scores=1 - 0.1 * torch.arange(count),
        pred_classes=torch.arange(count),
        pred_masks=PastedMasks(
            torch.linspace(0, 1, 16).reshape(1, 4, 4).repeat(count, 1, 1), boxes, SIZE
        ),
        class_names=ClassNames(NAMES[:count]),
    )


def assert_are(picked, whole, indexes):
    """The objects at some places of others, in all fields."""
    assert isinstance(picked, Detections) and len(picked) == len(indexes)
    assert picked.image_size == whole.image_size
    rows = torch.tensor(indexes, dtype=torch.long)
    assert torch.equal(picked.pred_boxes.tensor, whole.pred_boxes.tensor[rows])
    assert torch.equal(picked.scores, whole.scores[rows])
    assert torch.equal(picked.pred_classes, whole.pred_classes[rows])
    assert torch.equal(picked.pred_masks, whole.pred_masks.tensor[rows])
    assert isinstance(picked.pred_masks, PastedMasks)
    assert picked.class_names.tolist() == [NAMES[i] for i in indexes]
    assert isinstance(picked.class_names, ClassNames)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_objects_are_picked_in_every_way(count):
    whole = found(count)
    for keep in ([], [count - 1], list(range(count)), list(range(count))[::-1]):
        if count == 0:
            keep = []
        for item in (
            keep,
            tuple(keep),
            torch.tensor(keep, dtype=torch.long),
            torch.tensor(keep, dtype=torch.int32),
            np.array(keep, dtype=np.int64),
            np.array(keep),
        ):
            assert_are(whole[item], whole, keep)
    for flags in (torch.ones(count).bool(), torch.zeros(count).bool(), whole.scores >= 0.95):
        keep = flags.nonzero()[:, 0].tolist()
        for item in (flags, flags.numpy(), flags.tolist()):
            assert_are(whole[item], whole, keep)
    for item in (slice(None), slice(1, None), slice(0, 1), slice(None, None, 2), slice(-1, None)):
        assert_are(whole[item], whole, list(range(count))[item])
    for index in range(-count, count):
        for item in (index, np.int64(index), torch.tensor(index)):
            assert_are(whole[item], whole, [index % count])
    for index in (count, -count - 1):
        with pytest.raises(IndexError):
            whole[index]
    order = np.argsort(whole.scores.numpy())[::-1]
    assert_are(whole[order], whole, order.tolist())
    nuts = [i for i in range(count) if NAMES[i] == "nut"]
    assert_are(whole[whole.class_names == "nut"], whole, nuts)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_picks_nothing_that_is_there_is_an_error(count):
    whole = found(count)
    for item in (torch.ones(count + 1).bool(), [0.5], "pear", True, torch.zeros(1, 1).long()):
        with pytest.raises((IndexError, TypeError, ValueError)):
            whole[item]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_objects_are_iterated_joined_moved_and_copied(count):
    whole = found(count)
    singles = list(whole)
    assert len(singles) == count
    for index, single in enumerate(singles):
        assert_are(single, whole, [index])
    if count:
        for cat in (Detections.cat, Instances.cat):
            joined = cat(singles)
            assert joined.class_names.tolist() == NAMES[:count]
            # Of one object, too: what detectron2 itself joined is indexed as well.
            assert joined[joined.scores >= 0.95].class_names.tolist() == NAMES[:1]
            assert torch.equal(joined.pred_masks, whole.pred_masks)
    joined = Detections.cat([whole, found(0), found(2)])
    assert_are(joined[:count], whole, list(range(count)))
    assert joined.class_names.tolist() == NAMES[:count] + NAMES[:2]
    for other in (whole.to("cpu"), copy.deepcopy(whole), pickle.loads(pickle.dumps(whole))):
        assert_are(other, whole, list(range(count)))
        assert_are(other[other.scores >= 0.95], whole, [0][:count])


@pytest.mark.parametrize("count", [0, 1, 5])
def test_detectron2_takes_them_as_its_own(count):
    whole = found(count)
    image = np.zeros((*SIZE, 3), np.uint8)
    rows = instances_to_coco_json(whole, 7)
    assert len(rows) == count and all("segmentation" in row for row in rows)
    assert Visualizer(image).draw_instance_predictions(whole).get_image().shape == image.shape
    drawn = draw_detections(image, whole)
    dense = Instances(SIZE, **whole.get_fields())
    dense.pred_masks = whole.pred_masks.tensor
    np.testing.assert_array_equal(drawn, draw_detections(image, dense))


def test_booleans_of_torch_and_numpy_are_joined_into_a_mask():
    whole = found(5)
    nuts, likely = whole.class_names == "nut", whole.scores > 0.75
    for item in (nuts & likely, likely & nuts, likely & nuts.numpy(), nuts & likely.numpy()):
        assert_are(whole[item], whole, [1])
    assert_are(whole[(whole.class_names != "nut") & likely], whole, [0, 2])
    assert np.asarray(nuts).tolist() == [False, True, False, False, True]
    assert np.unique(whole.class_names).tolist() == ["apple", "fig", "nut", "pear"]


def test_uint8_is_a_mask_as_in_torch():
    whole = found(5)
    mask = (whole.scores < 0.75).byte()
    for item in (mask, mask.numpy()):
        assert_are(whole[item], whole, [3, 4])
    assert torch.equal(whole.pred_masks[mask], whole.pred_masks.tensor[3:])
    assert whole.class_names[mask].tolist() == NAMES[3:]
    with pytest.raises(IndexError):
        whole[mask[:4]]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_tuple_of_one_array_of_indexes_picks_as_the_array(count):
    whole = found(count)
    flags = whole.scores < 0.95
    for item in (torch.where(flags), np.where(flags.numpy())):
        assert_are(whole[item], whole, list(range(1, count)))
