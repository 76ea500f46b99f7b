"""What a predictor returns: every way to pick objects, and masks that are pasted when used."""

import copy
import operator
import pickle

import numpy as np
import pytest
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.layers import paste_masks_in_image
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.visualizer import Visualizer

from snnet_vitdet.deploy import ClassNames, Detections, PastedMasks, draw_detections, instances

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
    others = whole.scores < 0.95
    for item in (torch.where(others), np.where(others.numpy())):
        assert_are(whole[item], whole, list(range(1, count)))
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
            # What detectron2 itself joined is indexed as well, even a single object.
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


MASK_SIZE = (53, 71)
# Inside, at the edges, over all, thin, of less than a pixel, beside the image.
MASK_BOXES = torch.tensor(
    [
        [10.2, 5.5, 40.7, 30.1],
        [0.0, 0.0, 20.0, 53.0],
        [0.0, 0.0, 71.0, 53.0],
        [60.3, 40.2, 71.0, 53.0],
        [12.0, 3.0, 12.4, 50.0],
        [30.1, 20.1, 30.3, 20.2],
        [71.0, 10.0, 71.0, 20.0],
    ]
)


def probabilities(count=7, side=28):
    return torch.rand(count, side, side, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def masks():
    return PastedMasks(probabilities(), MASK_BOXES, MASK_SIZE)


@pytest.mark.parametrize("pixels", [1, 100, 2**20])
def test_the_pixels_are_those_of_detectron2(monkeypatch, masks, pixels):
    """Whatever number of rows is interpolated at once."""
    monkeypatch.setattr(instances, "_PIXELS_AT_ONCE", pixels)
    expected = paste_masks_in_image(probabilities(), MASK_BOXES, MASK_SIZE)
    assert expected[:4].flatten(1).any(1).all()
    assert torch.equal(masks.tensor, expected)
    for index, mask in enumerate(masks):
        assert torch.equal(mask, expected[index])
        assert torch.equal(masks[index - len(masks)], expected[index])


def test_they_read_as_a_tensor_of_booleans(masks):
    whole = masks.tensor
    assert whole.dtype == torch.bool
    assert masks.shape == whole.shape and len(masks) == len(whole)
    assert masks.ndim == 3 and masks.dtype == torch.bool
    np.testing.assert_array_equal(np.asarray(masks), whole.numpy())
    np.testing.assert_array_equal(masks.cpu().numpy(), whole.numpy())
    assert np.asarray(masks, dtype=np.uint8).dtype == np.uint8
    assert torch.equal(masks.sum((1, 2)), whole.sum((1, 2)))
    assert torch.equal(masks.float(), whole.float())
    assert torch.equal(masks.to(torch.uint8), whole.to(torch.uint8))
    assert torch.equal(torch.stack([masks[0], masks[1]]), whole[:2])
    assert torch.equal(torch.cat([masks, whole]), torch.cat([whole, whole]))
    assert torch.equal(masks & ~masks, torch.zeros_like(whole))
    assert (masks == whole).all() and (whole == masks).all() and not (masks != masks).any()
    assert torch.equal(whole[masks], whole[whole])
    assert masks.tolist() == whole.tolist()
    assert torch.equal(masks[:, 3], whole[:, 3]) and torch.equal(masks[1, 2], whole[1, 2])
    with pytest.raises(AttributeError):
        masks.no_method_of_a_tensor  # noqa: B018


def test_fewer_of_them_are_not_pasted(masks, monkeypatch):
    expected = masks.tensor
    with monkeypatch.context() as patch:
        patch.setattr(PastedMasks, "_paste", None)
        assert masks.size() == (7, *MASK_SIZE) and masks.ndim == 3 and masks.dtype == torch.bool
        assert isinstance(torch.cat([masks, masks[1:2]]), PastedMasks)
        assert isinstance(masks.to("meta"), PastedMasks)
        some = [masks[1:3], masks[torch.tensor([1, 2])], PastedMasks.cat([masks[1:2], masks[2:3]])]
        some.append(copy.deepcopy(masks)[[1, 2]].to("cpu"))
    for each in some:
        assert torch.equal(each.tensor, expected[1:3])
    assert PastedMasks(probabilities(0), MASK_BOXES[:0], MASK_SIZE).tensor.shape == (0, *MASK_SIZE)


def test_masks_of_a_resized_image_are_pasted_at_its_size(masks):
    large = PastedMasks(probabilities(), MASK_BOXES * 100, (5300, 7100))
    small = large.resized(*MASK_SIZE)
    assert small.shape == masks.shape
    assert (small.tensor != masks.tensor).float().mean() < 1e-4


@pytest.mark.parametrize(
    "item",
    [
        torch.tensor(-1),
        np.uint8(2),
        None,
        ...,
        True,
        (None, 1),
        (slice(None), 3),
        torch.tensor([[0, 1], [2, 3]]),
        np.array([2, 0])[::-1],
        [],
        torch.ones(7, *MASK_SIZE).bool(),
    ],
    ids=lambda item: type(item).__name__,
)
def test_they_are_indexed_as_the_tensor(masks, item):
    # torch itself has no arrays in reverse order.
    expected = masks.tensor[item.copy() if isinstance(item, np.ndarray) else item]
    assert masks[item].shape == expected.shape and torch.equal(masks[item], expected)


def test_in_another_type_they_are_a_tensor(masks):
    real = torch.zeros(1)
    moves = [((torch.float32,), {}), ((), {"dtype": torch.float32}), ((real,), {})]
    for args, kwargs in (*moves, (("cpu", torch.float32), {})):
        moved = masks.to(*args, **kwargs)
        assert moved.dtype == torch.float32 and torch.equal(moved, masks.tensor.float())
    for same in (masks.to("cpu"), masks.to(torch.bool), masks.to(torch.ones(1).bool())):
        assert isinstance(same, PastedMasks) and torch.equal(same, masks.tensor)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_code_for_tensors_takes_them(count):
    masks = PastedMasks(probabilities(count), MASK_BOXES[:count], MASK_SIZE)
    whole = masks.tensor
    for taken in (torch.as_tensor(masks), masks.clone(), BitMasks(masks).tensor):
        assert taken.dtype == torch.bool and taken.shape == whole.shape
        assert torch.equal(taken, whole)
    # torch itself subtracts no booleans.
    for name in ("gt", "ge", "lt", "le", "eq", "ne", "add", "mul", "truediv"):
        operate = getattr(operator, name)
        for other in (2, 0.5, torch.ones(MASK_SIZE)):
            assert torch.equal(operate(masks, other), operate(whole, other))
            assert torch.equal(operate(other, masks), operate(other, whole))
    with pytest.raises(RuntimeError, match="Subtraction"):
        masks - 1  # noqa: B018


def test_they_are_not_changed(masks):
    with pytest.raises(TypeError, match=r"change their \.tensor"):
        masks[0] = True
    with pytest.raises(TypeError, match=r"change their \.tensor"):
        masks.zero_()
