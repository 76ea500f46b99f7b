import copy
import math

import pytest
import torch
from detectron2.engine import HookBase
from torch import nn

from snnet_vitdet.engine import FreezeAnchors, StitchedTrainer
from snnet_vitdet.modeling import AnchorViT, StitchedViT
from snnet_vitdet.stitching import UniformSampler

SAMPLER = UniformSampler([1.0] * 14, seed=3)


class StubDetector(nn.Module):
    """A backbone and a head, as far as freezing is concerned."""

    def __init__(self, net, width):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.net = net
        self.head = nn.Linear(width, 1)

    def forward(self, images):
        features = self.backbone.net(images)["last_feat"].permute(0, 2, 3, 1)
        return {"loss": (self.head(features) - 1).square().mean()}


def make_anchor(width, depth, **kwargs):
    return AnchorViT(32, 16, width, depth, 2, layer_scale_init=None, pretrain_img_size=32, **kwargs)


def make_model(**kwargs):
    torch.manual_seed(0)
    anchors = make_anchor(8, 4, **kwargs), make_anchor(16, 8, **kwargs)
    return StubDetector(StitchedViT(*anchors, lora_rank=2), 16)


class Images:
    """Endless images that depend on the iteration."""

    def __init__(self, start):
        self.iteration = start

    def __iter__(self):
        return self

    def __next__(self):
        generator = torch.Generator().manual_seed(self.iteration)
        self.iteration += 1
        return torch.randn(1, 3, 32, 32, generator=generator)


class Record(HookBase):
    """The weights after each iteration, and what the optimizer then has a state of."""

    def __init__(self, model, optimizer):
        self.model, self.optimizer = model, optimizer
        self.weights = [copy.deepcopy(model.state_dict())]
        self.names = {parameter: name for name, parameter in model.named_parameters()}
        self.with_state = []

    def after_step(self):
        self.weights.append(copy.deepcopy(self.model.state_dict()))
        self.with_state.append({self.names[p] for p in self.optimizer.state})

    def moved(self, iteration):
        """Names of the parameters that the iteration has changed."""
        before, after = self.weights[iteration : iteration + 2]
        return {name for name in self.names.values() if not torch.equal(before[name], after[name])}


def make_trainer(model, iterations, start=0):
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-3, weight_decay=0.1)
    net = model.backbone.net
    stitched = {"backbone": net, "sampler": SAMPLER} if isinstance(net, StitchedViT) else {}
    trainer = StitchedTrainer(model, Images(start), optimizer, **stitched)
    record = Record(model, optimizer)
    trainer.register_hooks([FreezeAnchors(model, iterations), record])
    return trainer, record


def of_anchors(names):
    return {n for n in names if n.startswith(("backbone.net.small.", "backbone.net.large."))}


def trainable(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kwargs", [{}, {"lora_rank": 2}], ids=["whole", "LoRA"])
def test_anchors_stand_still_until_the_iteration_and_train_from_it_on(kwargs):
    model = make_model(**kwargs)
    before = trainable(model)
    trainer, record = make_trainer(model, 4)
    trainer.train(0, 10)
    for iteration in range(10):
        moved = record.moved(iteration)
        assert "head.weight" in moved
        assert bool(of_anchors(moved)) == (iteration >= 4), iteration
        # Nothing of an earlier iteration is kept that would decay or move them later.
        assert bool(of_anchors(record.with_state[iteration])) == (iteration >= 4), iteration
    assert any("stitching_layers" in name for i in range(4) for name in record.moved(i))
    moved = set().union(*(record.moved(i) for i in range(10)))
    assert moved <= before == trainable(model)
    if kwargs:
        assert all(".lora_" in name for name in of_anchors(before))


def test_training_without_frozen_iterations_is_as_it_was():
    models = [make_model(), make_model()]
    trainer, _ = make_trainer(models[0], 0)
    trainer.train(0, 4)
    other, _ = make_trainer(models[1], 0)
    other._hooks.pop(0)
    other.train(0, 4)
    for name, value in models[0].state_dict().items():
        assert torch.equal(value, models[1].state_dict()[name]), name


@pytest.mark.parametrize("stop", [2, 4, 5])
def test_resumed_training_ends_with_the_bits_of_an_uninterrupted_one(stop):
    whole = make_model()
    trainer, _ = make_trainer(whole, 4)
    trainer.train(0, 7)
    expected = trainer.state_dict()["optimizer"]

    first = make_model()
    stopped, _ = make_trainer(first, 4)
    stopped.train(0, stop)
    state = copy.deepcopy(stopped.state_dict())
    second = make_model()
    second.load_state_dict(first.state_dict())
    resumed, record = make_trainer(second, 4, start=stop)
    resumed.load_state_dict(state)
    resumed.train(stop, 7)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    optimizer = resumed.state_dict()["optimizer"]
    assert optimizer["param_groups"] == expected["param_groups"]
    assert optimizer["state"].keys() == expected["state"].keys()
    for parameter, values in expected["state"].items():
        for key, value in values.items():
            assert torch.equal(value, optimizer["state"][parameter][key]), (parameter, key)


def test_model_is_as_trainable_as_before_when_a_training_ends_frozen():
    model = make_model(lora_rank=2)
    before = trainable(model)
    trainer, _ = make_trainer(model, 10)
    trainer.train(0, 2)
    assert trainable(model) == before
    with torch.no_grad():
        model.head.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError):
        trainer.train(2, 4)
    assert trainable(model) == before


def test_baseline_has_one_anchor_to_freeze():
    torch.manual_seed(0)
    model = StubDetector(make_anchor(8, 4), 8)
    trainer, record = make_trainer(model, 2)
    trainer.train(0, 4)
    assert record.moved(1) == {"head.weight", "head.bias"}
    assert any(name.startswith("backbone.net.blocks.") for name in record.moved(2))
