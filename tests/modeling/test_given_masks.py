"""Training a mask head from the objects that have a mask."""

import pytest
import torch
from detectors import cascade_config, instances, nano_config, picture
from detectron2.config import instantiate
from detectron2.structures import BitMasks
from detectron2.utils.events import EventStorage

from snnet_vitdet.modeling import train_on_given_masks


@pytest.fixture(params=[nano_config, cascade_config], ids=["Mask R-CNN", "Cascade"])
def model(request):
    torch.manual_seed(0)
    model = instantiate(request.param()).train()
    train_on_given_masks(model)
    return model


def sample(has_mask):
    objects = instances()
    if has_mask is not None:
        objects.gt_has_mask = torch.tensor(has_mask)
        masks = objects.gt_masks.tensor.clone()
        masks[~objects.gt_has_mask] = False
        objects.gt_masks = BitMasks(masks)
    size = picture().shape[-1]
    return {"image": picture(), "height": size, "width": size, "instances": objects}


def losses_and_gradients(model, batch):
    """Of the mask head; proposals are sampled under a fixed seed."""
    model.zero_grad()
    torch.manual_seed(1)
    with EventStorage():
        losses = model(batch)
    losses["loss_mask"].backward()
    head = model.roi_heads.mask_head
    gradients = {name: p.grad.clone() for name, p in head.named_parameters()}
    return {name: loss.item() for name, loss in losses.items()}, gradients


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_gradients_are_those_without_the_proposals_of_boxes_alone(model, monkeypatch):
    batch = [sample([True, False]), sample(None)]
    losses, gradients = losses_and_gradients(model, batch)
    # By hand: the same proposals, sampled with the masks of all, but for those of class 4 of the
    # first image, which reach no mask head.
    head_forward, given = type(model.roi_heads.mask_head).forward, []

    def without_class_4(head, features, proposals):
        keep = [
            proposals[0].gt_classes != 4,
            torch.ones(len(proposals[1]), dtype=torch.bool),
        ]
        given.append([len(proposals[0]), int(keep[0].sum())])
        chosen = [each[kept] for each, kept in zip(proposals, keep, strict=True)]
        return head_forward(head, features[torch.cat(keep)], chosen)

    monkeypatch.setattr(type(model.roi_heads.mask_head), "forward", without_class_4)
    expected_losses, expected = losses_and_gradients(model, [sample(None), sample(None)])
    ((before, after),) = given
    assert 0 < after < before
    assert losses == expected_losses
    assert_equal(gradients, expected)
    assert any(gradient.abs().sum() > 0 for gradient in gradients.values())


def test_with_masks_of_all_nothing_changes(model):
    losses, gradients = losses_and_gradients(model, [sample(None), sample(None)])
    model.roi_heads.mask_head._forward_pre_hooks.clear()
    expected_losses, expected = losses_and_gradients(model, [sample(None), sample(None)])
    assert losses == expected_losses
    assert_equal(gradients, expected)


def test_without_any_mask_every_parameter_has_a_gradient_of_zero(model):
    losses, gradients = losses_and_gradients(model, [sample([False, False])])
    assert losses["loss_mask"] == 0
    assert losses["loss_cls" if "loss_cls" in losses else "loss_cls_stage0"] > 0
    for name, gradient in gradients.items():
        assert torch.equal(gradient, torch.zeros_like(gradient)), name


def test_inference_is_not_concerned(model):
    model.eval()
    image = {"image": picture(), "height": 128, "width": 128}
    with torch.no_grad():
        found = model([image])[0]["instances"]
        model.roi_heads.mask_head._forward_pre_hooks.clear()
        expected = model([image])[0]["instances"]
    assert torch.equal(found.scores, expected.scores)
