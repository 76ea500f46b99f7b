"""Detectors in half precision, whose masks are pasted in float32."""

import pytest
import torch
from detectors import cascade_config, nano_config, picture
from detectron2.config import instantiate
from detectron2.modeling.postprocessing import detector_postprocess

from snnet_vitdet import Predictor
from snnet_vitdet.evaluation.one_pass import detect
from snnet_vitdet.modeling import running_in
from snnet_vitdet.stitching import PrefixTree

SIDE = 512
RESIZING = {"augmentations": [], "image_format": "RGB"}


@pytest.fixture(scope="module", params=[nano_config, cascade_config], ids=["mask", "cascade"])
def model(request):
    """Of random weights, whose masks have edges."""
    torch.manual_seed(4)
    model = instantiate(request.param(num_classes=3)).eval()
    torch.nn.init.normal_(model.roi_heads.mask_head.predictor.weight, std=1.0)
    return model


def inputs():
    return [{"image": picture(), "height": SIDE, "width": SIDE}]


def share_of_the_union(masks, others):
    """Mask IoU, the mean over objects."""
    union = (masks | others).flatten(1).sum(1)
    assert len(masks) > 5 and (union > 0).all()
    return ((masks & others).flatten(1).sum(1) / union).mean().item()


def pasted_in_float32(model):
    """The masks of the same pass in bfloat16, whose probabilities became float32 before pasting."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = model.inference(inputs(), do_postprocess=False)
    assert found.pred_masks.dtype == torch.bfloat16
    found.pred_masks = found.pred_masks.float()
    return detector_postprocess(found, SIDE, SIDE).pred_masks


def separately(model):
    return model(inputs())[0]["instances"]


def in_one_pass(model):
    net = model.backbone.net
    ((_, _, (found,)),) = detect(model, inputs(), PrefixTree([net.stitch]))
    return found


@torch.no_grad()
def test_pasting_in_bfloat16_moves_the_edges(model):
    """What autocast alone gives: the reason for all this."""
    expected = pasted_in_float32(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = separately(model)
    assert 0.9 < share_of_the_union(found.pred_masks, expected) < 0.996


@torch.no_grad()
@pytest.mark.parametrize("way", [separately, in_one_pass])
def test_a_sweep_pastes_masks_in_float32(model, way):
    expected = pasted_in_float32(model)
    with running_in(model, torch.bfloat16):
        found = way(model)
    assert share_of_the_union(found.pred_masks, expected) == 1
    assert {found.scores.dtype, found.pred_boxes.tensor.dtype} == {torch.float32}
    # Afterwards the model is as it was.
    assert not model.roi_heads._forward_hooks and separately(model).scores.dtype == torch.float32


def test_a_predictor_pastes_masks_in_float32(model):
    predictor = Predictor.from_model(
        model, ["a", "b", "c"], RESIZING, device="cpu", precision="bfloat16"
    )
    (found,) = predictor.detect(inputs())
    assert share_of_the_union(found.pred_masks, pasted_in_float32(model)) == 1


def test_float32_is_left_as_it_is(model):
    with running_in(model, torch.float32):
        assert not model.roi_heads._forward_hooks
        assert not torch.is_autocast_enabled("cpu")
