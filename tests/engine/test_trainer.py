import copy
import math

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from snnet_vitdet.engine import StitchedTrainer
from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import AnchorViT, StitchedViT
from snnet_vitdet.stitching import UniformSampler

SAMPLER = UniformSampler([1.0] * 14, seed=3)


class StubDetector(nn.Module):
    """A loss that every parameter of the stitch in effect has a part in, and a bit of noise."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.noise = []

    def forward(self, images):
        features = self.backbone(images)["last_feat"]
        self.noise.append(torch.rand(()).item())
        return {"loss_features": (features - self.noise[-1]).square().mean()}


class Record(HookBase):
    """Notes each iteration's stitch, metrics, and the weights before it."""

    def __init__(self):
        self.stitches, self.metrics, self.before, self.gradients = [], [], [], []

    def before_step(self):
        self.before.append(copy.deepcopy(self.trainer.model.state_dict()))

    def after_backward(self):
        named = self.trainer.model.named_parameters()
        self.gradients.append({name for name, p in named if p.grad is not None})

    def after_step(self):
        backbone = self.trainer.model.backbone
        self.stitches.append(getattr(backbone, "stitch", None))
        self.metrics.append({k: v for k, (v, _) in self.trainer.storage.latest().items()})


def make_anchor(width, depth):
    return AnchorViT(32, 16, width, depth, 2, layer_scale_init=None, pretrain_img_size=32)


def make_backbone():
    torch.manual_seed(0)
    return StitchedViT(make_anchor(8, 4), make_anchor(16, 8), lora_rank=2)


class Images:
    """Endless images that depend on the iteration; NaN at one of them."""

    def __init__(self, start=0, nan_at=None):
        self.iteration, self.nan_at = start, nan_at

    def __iter__(self):
        return self

    def __next__(self):
        generator = torch.Generator().manual_seed(self.iteration)
        images = torch.randn(1, 3, 32, 32, generator=generator)
        if self.iteration == self.nan_at:
            images[:] = math.nan
        self.iteration += 1
        return images


def make_trainer(model, start=0, nan_at=None, **kwargs):
    """A trainer with weight decay and momentum, and the record it fills."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    trainer = StitchedTrainer(model, Images(start, nan_at), optimizer, **kwargs)
    record = Record()
    trainer.register_hooks([record])
    return trainer, record


def train_stitched(start=0, stop=6, nan_at=None, **kwargs):
    backbone = make_backbone()
    kwargs = {"sampler": SAMPLER, **kwargs}
    trainer, record = make_trainer(
        StubDetector(backbone), start, nan_at, backbone=backbone, **kwargs
    )
    trainer.train(start, stop)
    return trainer, record


def test_each_iteration_trains_the_stitch_that_the_sampler_gives_it():
    _, record = train_stitched(start=4, stop=10)
    ids = [stitch.id for stitch in record.stitches]
    assert ids == [SAMPLER(iteration, 0) for iteration in range(4, 10)]
    assert len(set(ids)) > 3


def test_metrics_hold_the_id_and_the_kind_of_the_stitch():
    _, record = train_stitched()
    # The order of the kinds in a space of at most two cuts.
    kinds = ("S", "L", "FS", "SF", "SFS", "FSF")
    for stitch, metrics in zip(record.stitches, record.metrics, strict=True):
        assert metrics["stitch_id"] == stitch.id
        assert kinds[int(metrics["stitch_kind"])] == stitch.kind
        assert metrics["total_loss"] > 0


@pytest.mark.parametrize(("scope", "slot"), [("shared", 0), ("process", 5)])
def test_process_draws_its_own_stitches_if_the_scope_is_process(scope, slot, monkeypatch):
    monkeypatch.setattr(comm, "get_rank", lambda: 5)
    asked = []

    def sampler(iteration, slot):
        asked.append((iteration, slot))
        return 0

    train_stitched(stop=2, scope=scope, sampler=sampler)
    assert asked == [(0, slot), (1, slot)]


def test_parameters_of_parts_that_did_not_run_do_not_move():
    trainer, record = train_stitched(stop=8)
    after = [*record.before[1:], trainer.model.state_dict()]
    parameters = dict(trainer.model.named_parameters())
    for stitch, before, now, got in zip(
        record.stitches, record.before, after, record.gradients, strict=True
    ):
        ran = {
            f"backbone.{('small', 'large')[anchor]}.blocks.{block}."
            for anchor, start, stop in stitch.segments
            for block in range(start, stop)
        }
        for name, parameter in parameters.items():
            if ".blocks." not in name:
                continue
            inside = any(name.startswith(prefix) for prefix in ran)
            assert (name in got) == inside, (stitch.name, name)
            if not inside:
                # Bitwise: neither decayed nor moved on by an earlier iteration's momentum.
                assert torch.equal(before[name], now[name]), (stitch.name, name)
            elif parameter.requires_grad and name.endswith("mlp.fc2.weight"):
                assert not torch.equal(before[name], now[name]), (stitch.name, name)


def test_nan_loss_is_an_error_that_names_the_stitch_and_leaves_the_weights_alone():
    stitch = make_backbone().space[SAMPLER(3, 0)]
    with pytest.raises(FloatingPointError) as error:
        train_stitched(nan_at=3)
    message = str(error.value)
    assert f"stitch {stitch.id} ({stitch.name}, kind {stitch.kind}), iteration 3" in message
    assert "loss_features" in message

    backbone = make_backbone()
    trainer, record = make_trainer(
        StubDetector(backbone), nan_at=3, backbone=backbone, sampler=SAMPLER
    )
    with pytest.raises(FloatingPointError):
        trainer.train(0, 6)
    assert len(record.before) == 4
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, record.before[3][name]), name


def noise_of(start, stop, seed=0, disturb=False):
    backbone = make_backbone()
    model = StubDetector(backbone)
    trainer, _ = make_trainer(model, start, backbone=backbone, sampler=SAMPLER, seed=seed)
    if disturb:
        torch.manual_seed(999)
    trainer.train(start, stop)
    return model.noise


def test_randomness_of_the_model_is_a_function_of_seed_and_iteration():
    whole = noise_of(0, 5)
    assert len(set(whole)) == 5
    assert noise_of(2, 5, disturb=True) == whole[2:]
    assert not set(noise_of(0, 5, seed=1)) & set(whole)


def test_randomness_of_the_model_differs_between_processes(monkeypatch):
    first = noise_of(0, 3)
    # Only the first process writes metrics, whatever the rank of this one.
    monkeypatch.setattr(comm, "get_rank", lambda: 1)
    assert not set(noise_of(0, 3)) & set(first)


def test_baseline_without_stitches_trains_in_the_same_way():
    torch.manual_seed(0)
    model = StubDetector(make_anchor(8, 4))
    trainer, record = make_trainer(model)
    trainer.train(0, 20)
    losses = [metrics["total_loss"] for metrics in record.metrics]
    assert losses[-1] < losses[0]
    assert not any("stitch" in key for key in record.metrics[-1])
    # Its noise is that of the stitched model: the same seed and iterations.
    assert model.noise[:3] == noise_of(0, 3)


def test_unknown_scope_is_refused():
    with pytest.raises(InputError, match=r"stitch_scope must be one of .*'process'.* got 'gpu'"):
        train_stitched(scope="gpu")
