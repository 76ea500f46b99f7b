"""RoI heads: training on the objects that have a mask, and half precision with float32 masks."""

import pytest
import torch
from detectors import cascade_config, instances, nano_config, picture
from detectron2.config import instantiate
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import BitMasks
from detectron2.utils.events import EventStorage
from pycocotools import mask as mask_util

from snnet_vitdet import Predictor
from snnet_vitdet.evaluation.one_pass import detect
from snnet_vitdet.modeling import running_in, train_on_given_masks
from snnet_vitdet.stitching import PrefixTree


@pytest.fixture(params=[nano_config, cascade_config], ids=["Mask R-CNN", "Cascade"])
def detector(request):
    torch.manual_seed(0)
    detector = instantiate(request.param()).train()
    train_on_given_masks(detector)
    return detector


def sample(has_mask):
    objects = instances()
    if has_mask is not None:
        objects.gt_has_mask = torch.tensor(has_mask)
        masks = objects.gt_masks.tensor.clone()
        masks[~objects.gt_has_mask] = False
        objects.gt_masks = BitMasks(masks)
    size = picture().shape[-1]
    return {"image": picture(), "height": size, "width": size, "instances": objects}


def losses_and_gradients(detector, batch):
    """Losses, and gradients of the mask head; a fixed seed samples the proposals."""
    detector.zero_grad()
    torch.manual_seed(1)
    with EventStorage():
        losses = detector(batch)
    losses["loss_mask"].backward()
    head = detector.roi_heads.mask_head
    gradients = {name: p.grad.clone() for name, p in head.named_parameters()}
    return {name: loss.item() for name, loss in losses.items()}, gradients


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_gradients_are_those_without_the_proposals_of_boxes_alone(detector, monkeypatch):
    batch = [sample([True, False]), sample(None)]
    losses, gradients = losses_and_gradients(detector, batch)
    # By hand: the same proposals, sampled with the masks of all, but for those of class 4 of the
    # first image, which reach no mask head.
    head_forward, given = type(detector.roi_heads.mask_head).forward, []

    def without_class_4(head, features, proposals):
        keep = [
            proposals[0].gt_classes != 4,
            torch.ones(len(proposals[1]), dtype=torch.bool),
        ]
        given.append([len(proposals[0]), int(keep[0].sum())])
        chosen = [each[kept] for each, kept in zip(proposals, keep, strict=True)]
        return head_forward(head, features[torch.cat(keep)], chosen)

    monkeypatch.setattr(type(detector.roi_heads.mask_head), "forward", without_class_4)
    expected_losses, expected = losses_and_gradients(detector, [sample(None), sample(None)])
    ((before, after),) = given
    assert 0 < after < before
    assert losses == expected_losses
    assert_equal(gradients, expected)
    assert any(gradient.abs().sum() > 0 for gradient in gradients.values())


def test_without_any_mask_every_parameter_has_a_gradient_of_zero(detector):
    losses, gradients = losses_and_gradients(detector, [sample([False, False])])
    assert losses["loss_mask"] == 0
    assert losses["loss_cls" if "loss_cls" in losses else "loss_cls_stage0"] > 0
    for name, gradient in gradients.items():
        assert torch.equal(gradient, torch.zeros_like(gradient)), name


SIDE = 512
RESIZING = {"augmentations": [], "image_format": "RGB"}


@pytest.fixture(scope="module", params=[nano_config, cascade_config], ids=["mask", "cascade"])
def model(request):
    """A detector with random weights, whose masks have edges."""
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
    ((_, (found,)),) = detect(model, inputs(), PrefixTree([net.stitch]))
    masks = mask_util.decode(found.mask_runs.encoded()).astype(bool)  # (H, W, N)
    found.pred_masks = torch.from_numpy(masks).permute(2, 0, 1)
    return found


@torch.no_grad()
def test_pasting_in_bfloat16_moves_the_edges(model):
    """The fault of autocast alone, which `running_in` avoids."""
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
