"""RLE of masks against pycocotools' encoding of the masks that detectron2 pastes."""

from itertools import product

import numpy as np
import pytest
import torch
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Boxes
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as mask_util
from torch.nn import functional as F

from snnet_vitdet.evaluation import mask_rle
from snnet_vitdet.evaluation.mask_rle import find_runs

# Changes of the module, and the device.
LIKE_A_GPU = {"_is_on_cpu": lambda _: False}
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
WAYS = [
    pytest.param(({}, "cpu"), id="boxes"),
    pytest.param(({"_PIXELS_AT_ONCE_CPU": 5}, "cpu"), id="parts of boxes"),
    pytest.param((LIKE_A_GPU, "cpu"), id="images"),
    pytest.param(({**LIKE_A_GPU, "_PIXELS_AT_ONCE_GPU": 2500}, "cpu"), id="some images at once"),
    pytest.param(({}, "cuda"), id="GPU", marks=NO_GPU),
]


def encoded(masks):
    """What pycocotools encodes."""
    return [mask_util.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]


@pytest.fixture(scope="module", params=WAYS)
def assert_as_pasted(request):
    """Compares the RLE with that of the pasted masks, which it returns."""
    changes, device = request.param

    def compare(probabilities, boxes, size):
        probabilities, boxes = probabilities.to(device), boxes.to(device)
        pasted = paste_masks_in_image(probabilities[:, 0], boxes, size).cpu()
        assert find_runs(probabilities, boxes, size).encoded() == encoded(pasted.numpy())
        return pasted

    with pytest.MonkeyPatch.context() as patch:
        for name, value in changes.items():
            patch.setattr(mask_rle, name, value)
        yield compare


def blobs(side):
    coarse = 4 * torch.randn(1, 1, 4, 4)
    return F.interpolate(coarse, (side, side), mode="bicubic")[0, 0].sigmoid()


def point(side):
    return (torch.arange(side * side) == torch.randint(side * side, ())).view(side, side)


KINDS = {
    "noise": lambda side: torch.rand(side, side),
    "blobs": blobs,
    "point": point,
    "empty": lambda side: torch.zeros(side, side),
    "full": lambda side: torch.ones(side, side),
    "threshold": lambda side: torch.full((side, side), 0.5),
}
sides = st.integers(1, 60)


@given(sides, sides, st.lists(st.sampled_from(list(KINDS)), max_size=6), st.integers(0, 2**32))
def test_masks_in_boxes_of_any_size_and_place(assert_as_pasted, height, width, kinds, seed):
    """Boxes lie partly outside until they are clipped, as detectron2 clips them."""
    torch.manual_seed(seed)
    side = int(torch.randint(1, 29, ()))
    corners = (torch.rand(len(kinds), 2, 2) * 1.6 - 0.3) * torch.tensor([width, height])
    if seed % 3 == 0:
        corners = corners.round()
    boxes = Boxes(torch.cat([corners.amin(1), corners.amax(1)], dim=1))
    boxes.clip((height, width))
    probabilities = torch.zeros(len(kinds), 1, side, side)
    for index, kind in enumerate(kinds):
        probabilities[index, 0] = KINDS[kind](side)
    kept = boxes.nonempty()
    assert_as_pasted(probabilities[kept], boxes.tensor[kept], (height, width))


def window(side, rows, columns):
    """A mask that fills some rows and columns of its box."""
    mask = torch.zeros(side, side)
    mask[rows, columns] = 1
    return mask


SPANS = (slice(None), slice(1), slice(-1, None), slice(3, 5))


@pytest.mark.parametrize("image", [(8, 8), (16, 16), (8, 24), (9, 8), (200, 300)])
def test_masks_at_each_edge_and_corner(assert_as_pasted, image):
    """Boxes are images of 8 x 8 that are not resized, or the whole image."""
    masks = torch.stack([window(8, *spans) for spans in product(SPANS, SPANS)])
    height, width = image
    for x, y in ((0, 0), (width - 8, 0), (0, height - 8), (width - 8, height - 8)):
        boxes = torch.tensor([[x, y, x + 8.0, y + 8.0]]).expand(len(masks), 4)
        pasted = assert_as_pasted(masks[:, None], boxes, image)
        assert torch.equal(pasted[:, y : y + 8, x : x + 8], masks > 0.5)
        assert pasted.flatten(1).sum(1).tolist() == masks.flatten(1).sum(1).tolist()
    whole = torch.tensor([[0.0, 0.0, width, height]]).expand(len(masks), 4)
    assert_as_pasted(masks[:, None], whole, image)


@pytest.mark.parametrize("image", [(1, 1), (1, 7), (7, 1), (2, 3)])
def test_images_of_a_few_pixels(assert_as_pasted, image):
    masks = torch.cat([torch.ones(1, 28, 28), torch.zeros(1, 28, 28), torch.rand(5, 28, 28)])
    whole = torch.tensor([[0.0, 0.0, image[1], image[0]]]).expand(len(masks), 4)
    pasted = assert_as_pasted(masks[:, None], whole, image)
    assert pasted[0].all() and not pasted[1].any()


def test_runs_of_a_million_pixels(assert_as_pasted):
    image = (1500, 1100)
    boxes = torch.tensor([[0.0, 0, 1100, 1500], [1090, 1490, 1100, 1500], [3.3, 4.7, 1000, 1400]])
    masks = torch.cat([torch.ones(2, 28, 28), torch.rand(1, 28, 28)])
    assert_as_pasted(masks[:, None], boxes, image)


def test_half_precision_is_pasted_in_float32():
    torch.manual_seed(0)
    masks, boxes = torch.rand(3, 1, 28, 28).bfloat16(), torch.tensor([[2.0, 3, 90, 70]] * 3)
    pasted = paste_masks_in_image(masks[:, 0].float(), boxes, (80, 100))
    assert find_runs(masks, boxes, (80, 100)).encoded() == encoded(pasted.numpy())


def test_no_masks():
    runs = find_runs(torch.empty(0, 1, 28, 28), torch.empty(0, 4), (480, 640))
    assert (len(runs), runs.encoded()) == (0, [])
