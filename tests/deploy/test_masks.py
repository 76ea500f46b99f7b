"""Masks that are pasted when they are looked at."""

import copy
import operator

import numpy as np
import pytest
import torch
from detectron2.layers import paste_masks_in_image
from detectron2.structures import BitMasks

from snnet_vitdet.deploy import PastedMasks
from snnet_vitdet.deploy import instances as masks_module

SIZE = (53, 71)
# Inside, at the edges, over all, thin, of less than a pixel, beside the image.
BOXES = torch.tensor(
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
    return PastedMasks(probabilities(), BOXES, SIZE)


@pytest.mark.parametrize("pixels", [1, 100, 2**20])
def test_the_pixels_are_those_of_detectron2(monkeypatch, masks, pixels):
    """Whatever number of rows is interpolated at once."""
    monkeypatch.setattr(masks_module, "_PIXELS_AT_ONCE", pixels)
    expected = paste_masks_in_image(probabilities(), BOXES, SIZE)
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
    assert torch.equal(masks[:, 3], whole[:, 3]) and torch.equal(masks[1, 2], whole[1, 2])
    with pytest.raises(AttributeError):
        masks.no_method_of_a_tensor  # noqa: B018


def test_fewer_of_them_are_not_pasted(masks, monkeypatch):
    expected = masks.tensor
    with monkeypatch.context() as patch:
        patch.setattr(PastedMasks, "_paste", None)
        some = [masks[1:3], masks[torch.tensor([1, 2])], PastedMasks.cat([masks[1:2], masks[2:3]])]
        some.append(copy.deepcopy(masks)[[1, 2]].to("cpu"))
    for each in some:
        assert torch.equal(each.tensor, expected[1:3])
    assert PastedMasks(probabilities(0), BOXES[:0], SIZE).tensor.shape == (0, *SIZE)


def test_masks_of_a_resized_image_are_pasted_at_its_size(masks):
    large = PastedMasks(probabilities(), BOXES * 100, (5300, 7100))
    small = large.resized(*SIZE)
    assert small.shape == masks.shape
    assert (small.tensor != masks.tensor).float().mean() < 1e-4


@pytest.mark.parametrize(
    "item",
    [
        torch.tensor(2),
        torch.tensor(-1),
        np.array(2),
        np.uint8(2),
        None,
        ...,
        True,
        (2,),
        (None, 1),
        (slice(None), 3),
        torch.tensor([[0, 1], [2, 3]]),
        np.array([2, 0])[::-1],
        [],
        torch.ones(7, *SIZE).bool(),
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


def test_they_stay_unpasted_when_they_are_moved_and_joined(masks, monkeypatch):
    monkeypatch.setattr(PastedMasks, "_paste", None)
    assert isinstance(masks.to("meta"), PastedMasks) and masks.to("meta").is_meta
    assert isinstance(torch.cat([masks, masks[1:2]]), PastedMasks)


def test_they_are_the_index_of_another_tensor(masks):
    values = torch.rand(7, *SIZE)
    assert isinstance(masks, torch.Tensor)
    assert torch.equal(values[masks], values[masks.tensor])
    assert masks.tolist() == masks.tensor.tolist()


@pytest.mark.parametrize("count", [0, 1, 7])
def test_code_for_tensors_takes_them(count):
    masks = PastedMasks(probabilities(count), BOXES[:count], SIZE)
    whole = masks.tensor
    for taken in (torch.as_tensor(masks), masks.clone(), BitMasks(masks).tensor):
        assert taken.dtype == torch.bool and taken.shape == whole.shape
        assert torch.equal(taken, whole)
    # torch itself subtracts no booleans.
    for name in ("gt", "ge", "lt", "le", "eq", "ne", "add", "mul", "truediv"):
        operate = getattr(operator, name)
        for other in (2, 0.5, torch.ones(SIZE)):
            assert torch.equal(operate(masks, other), operate(whole, other))
            assert torch.equal(operate(other, masks), operate(other, whole))
    with pytest.raises(RuntimeError, match="Subtraction"):
        masks - 1  # noqa: B018


def test_what_they_are_is_known_without_pasting(masks, monkeypatch):
    monkeypatch.setattr(PastedMasks, "_paste", None)
    assert masks.shape == masks.size() == (7, *SIZE) and masks.size(-1) == SIZE[1]
    assert masks.ndim == masks.dim() == 3
    assert masks.dtype == torch.bool and masks.device == torch.device("cpu")


def test_they_are_not_changed(masks):
    with pytest.raises(TypeError, match=r"change their \.tensor"):
        masks[0] = True
    with pytest.raises(TypeError, match=r"change their \.tensor"):
        masks.zero_()
