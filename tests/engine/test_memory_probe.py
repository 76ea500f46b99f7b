import re

import pytest
import torch
from detectron2.config import instantiate

from snnet_vitdet.engine import synthetic_batch
from snnet_vitdet.engine.memory_probe import log_step_costs, memory_to_come, probe_memory
from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import stitch_costs


def detector(config):
    """The detector of a config, and its optimizer."""
    torch.manual_seed(0)
    model = instantiate(config.model)
    return model, torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_the_most_expensive_stitch_runs_and_leaves_nothing_behind(tiny_config, mask_format):
    config = tiny_config(f"dataloader.train.mapper.instance_mask_format={mask_format}")
    costs = stitch_costs(config.model)
    model, optimizer = detector(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    backbone, ran, trained = model.backbone.net, [], set()
    backbone.set_stitch("FS-2")
    backbone.register_forward_hook(lambda *_: ran.append(backbone.stitch.name))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda _, name=name: trained.add(name))
    probe_memory(config, model, optimizer, costs)
    most_expensive = max(backbone.space, key=lambda stitch: costs.gflops[stitch.id])
    assert ran == [most_expensive.name] == ["L"]
    # The backward pass has gone through backbone, pyramid and every head.
    for part in ("backbone.net.large.blocks.0", "proposal_generator", "roi_heads.mask_head"):
        assert any(name.startswith(part) for name in trained), part
    assert backbone.stitch.name == "FS-2" and model.training
    assert all(p.grad is None for p in model.parameters())
    assert not optimizer.state
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_synthetic_batch_is_what_the_mapper_gives_and_always_the_same():
    first, second = (synthetic_batch(2, 64, 3, "bitmask") for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one["image"].shape == (3, 64, 64) and one["image"].dtype == torch.uint8
        assert torch.equal(one["image"], other["image"])
        instances = one["instances"]
        assert len(instances) == 50 and instances.gt_masks.tensor.shape == (50, 64, 64)
        assert instances.gt_boxes.nonempty().all() and set(instances.gt_classes.tolist()) == {
            0,
            1,
            2,
        }
        boxes = instances.gt_boxes.tensor
        assert boxes.min() >= 0 and boxes.max() <= 64
    assert not torch.equal(first[0]["image"], first[1]["image"])


def test_too_little_memory_is_an_error_that_says_what_to_change(tiny_config, monkeypatch):
    config = tiny_config("dataloader.train.total_batch_size=1")
    model, optimizer = detector(config)
    model.backbone.net.set_stitch("S")

    def out_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.\nmore lines")

    monkeypatch.setattr(model.roi_heads, "forward", out_of_memory)
    with pytest.raises(InputError) as info:
        probe_memory(config, model, optimizer, stitch_costs(config.model))
    message = str(info.value)
    assert message.startswith("1 image of 64 x 64 pixels through the most expensive stitch do")
    assert "(CUDA out of memory. Tried to allocate 3 GiB.): try train.accumulation.steps" in message
    assert "activation_checkpointing" in message and "more lines" not in message
    assert model.backbone.net.stitch.name == "S"


def test_the_memory_to_come_is_that_of_the_state_of_all_parameters(tiny_config):
    model, optimizer = detector(tiny_config())
    trained = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert memory_to_come(model, optimizer) == 2 * trained
    assert memory_to_come(model, optimizer, accumulates=True) == 3 * trained
    assert memory_to_come(model, optimizer, num_processes=2) == 3 * trained
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    # What is there already, after a resume for instance, does not come again.
    assert memory_to_come(model, optimizer) == 0
    plain = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    assert memory_to_come(model, plain) == trained


def test_each_image_size_has_its_activations_and_time_in_the_log(tiny_config, caplog):
    config = tiny_config("train.image_sizes=[32,96]", "dataloader.train.total_batch_size=1")
    model, _ = detector(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    backbone, ran = model.backbone.net, []
    backbone.set_stitch("FS-2")
    backbone.register_forward_hook(lambda net, given, _: ran.append((net.stitch.name, given)))
    state = torch.get_rng_state()
    with caplog.at_level("INFO"):
        log_step_costs(config, model, stitch_costs(config.model))
    assert torch.equal(torch.get_rng_state(), state)
    assert {(name, images.shape[-1]) for name, (images,) in ran} == {("L", 96), ("L", 32)}
    told = (
        r"Most expensive step at (\d+) pixels \(L, 1 image\): activations take (\d+) MiB, "
        r"forward and backward pass \d+\.\d\d s\.$"
    )
    found = [re.match(told, line) for line in caplog.messages]
    (large, much), (small, little) = (map(int, match.groups()) for match in found)
    assert (large, small) == (96, 32) and much > little > 0
    assert backbone.stitch.name == "FS-2" and all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
