"""Masks that are pasted when they are looked at."""

import copy

import numpy as np
import pytest
import torch
from detectron2.layers import paste_masks_in_image

from snnet_vitdet.deploy import PastedMasks
from snnet_vitdet.deploy import masks as masks_module

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
