"""Trainers: stitches, accumulation, precision, errors, the exchange of gradients."""

import copy
import logging
import math

import pytest
import torch
from detectron2.engine import HookBase, SimpleTrainer
from detectron2.utils import comm
from omegaconf import OmegaConf
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from snnet_vitdet.engine import StitchedTrainer, TrainSettings, as_config, launch_here
from snnet_vitdet.engine.ddp import wrap_for_processes
from snnet_vitdet.engine.trainer import StitchedAMPTrainer
from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import AnchorViT, StitchedViT
from snnet_vitdet.stitching import UniformSampler

SAMPLER = UniformSampler([1.0] * 14, seed=3)


class StubDetector(nn.Module):
    """A loss that every parameter of the stitch in effect has a part in, and a bit of noise."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.noise, self.losses = [], []

    def forward(self, images):
        features = self.backbone(images)["last_feat"]
        self.noise.append(torch.rand(()).item())
        loss = (features - self.noise[-1]).square().mean()
        self.losses.append(loss.item())
        return {"loss_features": loss}


class Record(HookBase):
    """Notes each iteration's stitch, metrics, and the weights before it."""

    def __init__(self):
        self.stitches, self.metrics, self.before, self.gradients = [], [], [], []

    def before_step(self):
        self.before.append(copy.deepcopy(self.trainer.model.state_dict()))

    def after_backward(self):
        named = self.trainer.model.named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})

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
    """Endless batches that depend on the iteration; NaN at one of them.

    Of several parts of the batches, only one is given.
    """

    def __init__(self, start=0, nan_at=None, batch=1, part=0, parts=1):
        self.iteration, self.nan_at, self.batch = start, nan_at, batch
        self.part = slice(part * batch // parts, (part + 1) * batch // parts)

    def __iter__(self):
        return self

    def __next__(self):
        generator = torch.Generator().manual_seed(self.iteration)
        images = torch.randn(self.batch, 3, 32, 32, generator=generator)
        if self.iteration == self.nan_at:
            images[0] = math.nan
        self.iteration += 1
        return images[self.part]


def make_trainer(model, start=0, nan_at=None, cls=StitchedTrainer, images=None, **kwargs):
    """A trainer with weight decay and momentum, and the record it fills."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    trainer = cls(model, images or Images(start, nan_at), optimizer, **kwargs)
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


class Files(Images):
    """The same batches as detectron2's loaders give them."""

    def __next__(self):
        images = super().__next__()
        return [
            {"file_name": f"{self.iteration}-{i}.jpg", "image": x} for i, x in enumerate(images)
        ]


class FileDetector(StubDetector):
    def forward(self, batch):
        return super().forward(torch.stack([sample["image"] for sample in batch]))


def train_files(**kwargs):
    backbone = make_backbone()
    trainer, _ = make_trainer(
        FileDetector(backbone),
        images=Files(nan_at=1, batch=2),
        backbone=backbone,
        sampler=SAMPLER,
        **kwargs,
    )
    trainer.train(0, 3)


def test_nan_loss_names_the_images_of_the_iteration(caplog):
    with pytest.raises(FloatingPointError, match="images: 2-0.jpg, 2-1.jpg"):
        train_files()
    assert "A loss is not finite in iteration 1, process 0" in caplog.text


def test_nan_loss_of_another_process_is_not_blamed_on_own_images(monkeypatch, caplog):
    """The metrics are gathered, and those of the other process are not finite."""
    other = {"loss_features": math.nan, "data_time": 0.0}
    monkeypatch.setattr(comm, "gather", lambda own: [own, {**own, **other}])
    with pytest.raises(FloatingPointError, match="another process's log names the images") as error:
        train_stitched()
    assert "images:" not in str(error.value) and "not finite" not in caplog.text


class OnDevice(torch.Tensor):
    """A stand-in for a tensor on a GPU; notes the copies to the host."""

    events = []

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        result = super().__torch_function__(function, types, args, kwargs or {})
        name = getattr(function, "__name__", "")
        if name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__"):
            cls.events.append("wait")
        elif name == "to" and "cpu" in args:
            cls.events.append("copy" if kwargs.get("non_blocking") else "wait")
            return result.as_subclass(torch.Tensor)
        elif name == "backward":
            cls.events.append("backward")
        return result


@pytest.mark.parametrize("steps", [1, 2])
def test_losses_travel_to_the_host_once_while_the_backward_pass_runs(steps, monkeypatch):
    """The host waits for nothing else before it launches the step."""
    monkeypatch.setattr(OnDevice, "events", [])
    backbone = make_backbone()

    class Detector(StubDetector):
        def forward(self, images):
            loss = super().forward(images)["loss_features"].as_subclass(OnDevice)
            OnDevice.events.clear()  # the stub looks at its loss
            return {"loss_a": loss, "loss_b": 2 * loss}

    trainer, record = make_trainer(
        Detector(backbone),
        images=Images(batch=2),
        backbone=backbone,
        sampler=SAMPLER,
        accumulation_steps=steps,
    )
    step = trainer.optimizer.step
    monkeypatch.setattr(trainer.optimizer, "step", lambda: (OnDevice.events.append("step"), step()))
    trainer.train(0, 1)
    assert OnDevice.events == ["copy", "backward", "step"]
    (metrics,) = record.metrics
    assert metrics["loss_b"] == pytest.approx(2 * metrics["loss_a"])
    assert metrics["loss_a"] == pytest.approx(sum(trainer.model.losses) / steps)


def gradients_of(record, iteration):
    return torch.cat([g.flatten() for g in record.gradients[iteration].values()])


def test_a_large_gradient_is_scaled_down_to_the_norm_and_a_small_one_is_not():
    free, record = train_stitched(stop=1)
    norm = gradients_of(record, 0).norm().item()
    clipped, _ = train_stitched(stop=1, clip_grad_norm=norm / 4)
    parameters = [p for group in clipped.optimizer.param_groups for p in group["params"]]
    left = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    torch.testing.assert_close(left.norm().item(), norm / 4, rtol=1e-4, atol=0)
    logged = clipped.storage.history("grad_norm").latest()
    torch.testing.assert_close(logged, norm, rtol=1e-4, atol=0)
    loose, _ = train_stitched(stop=1, clip_grad_norm=2 * norm)
    for name, value in free.model.state_dict().items():
        assert torch.equal(value, loose.model.state_dict()[name]), name


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


# ------------------------------------------------------------------------------- micro-batches


class ReplayingDetector(StubDetector):
    """The stub on the stitches and the noise of another training."""

    def __init__(self, stitches, noise):
        super().__init__(make_backbone())
        self.stitches, self.noise = iter(stitches), iter(noise)

    def forward(self, images):
        self.backbone.set_stitch(next(self.stitches).id)
        features = self.backbone(images)["last_feat"]
        return {"loss_features": (features - next(self.noise)).square().mean()}


def test_one_micro_batch_is_bitwise_a_step_of_detectron2s_trainer():
    trainer, record = train_stitched(stop=8)
    plain = ReplayingDetector(record.stitches, trainer.model.noise)
    reference, plain_record = make_trainer(plain, cls=SimpleTrainer)
    reference.train(0, 8)
    for name, value in reference.model.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name]), name
    states = [t.optimizer.state_dict()["state"] for t in (reference, trainer)]
    assert states[0].keys() == states[1].keys()
    for parameter, state in states[0].items():
        for name, value in state.items():
            assert torch.equal(value, states[1][parameter][name]), (parameter, name)
    for ours, theirs in zip(record.metrics, plain_record.metrics, strict=True):
        assert ours["total_loss"] == theirs["total_loss"]


def first_iteration(rank, steps, parts, monkeypatch, **kwargs):
    """What the process of that rank does with its part of eight images: gradients and record."""
    monkeypatch.setattr(comm, "get_rank", lambda: rank)
    backbone = make_backbone()
    images = Images(batch=8, part=rank, parts=parts)
    trainer, record = make_trainer(
        StubDetector(backbone),
        images=images,
        backbone=backbone,
        sampler=SAMPLER,
        accumulation_steps=steps,
        **kwargs,
    )
    trainer.train(0, 1)
    return record.gradients[0], record, trainer.model.losses


def test_gradient_and_losses_are_the_mean_of_those_of_the_micro_batches(monkeypatch):
    gradients, record, losses = first_iteration(0, 4, 1, monkeypatch)
    # Each micro-batch alone, as one of four processes has it: two images, a stitch and noise.
    alone = [first_iteration(rank, 1, 4, monkeypatch, scope="process") for rank in range(4)]
    stitches = [single.stitches[0] for _, single, _ in alone]
    assert [stitch.id for stitch in stitches] == [SAMPLER(0, slot) for slot in range(4)]
    assert len(set(stitches)) > 2
    assert gradients.keys() == set().union(*(single.keys() for single, _, _ in alone))
    for name, gradient in gradients.items():
        singles = [single[name] for single, _, _ in alone if name in single]
        torch.testing.assert_close(gradient, sum(singles) / 4, rtol=1e-5, atol=1e-8)
    assert losses == pytest.approx([single[0] for _, _, single in alone])
    (metrics,) = record.metrics
    assert metrics["total_loss"] == pytest.approx(sum(losses) / 4)
    # The metrics have the last of several stitches.
    assert metrics["stitch_id"] == stitches[-1].id != stitches[0].id


def test_micro_batches_of_one_stitch_give_the_gradient_of_the_whole_batch(monkeypatch):
    # A loss that is a mean over the images, but for the noise.
    monkeypatch.setattr(torch, "rand", lambda _: torch.tensor(0.5))
    whole, record, _ = first_iteration(0, 1, 1, monkeypatch)
    split, same, _ = first_iteration(0, 4, 1, monkeypatch, accumulation_stitch="same")
    assert same.stitches == record.stitches
    assert whole.keys() == split.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(split[name], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("scope", "stitch", "slots"),
    [
        ("shared", "own", [0, 1, 2]),
        ("process", "own", [15, 16, 17]),
        ("shared", "same", [0, 0, 0]),
        ("process", "same", [5, 5, 5]),
    ],
)
def test_slots_that_micro_batches_draw_from(scope, stitch, slots, monkeypatch):
    monkeypatch.setattr(comm, "get_rank", lambda: 5)
    asked = []

    def sampler(iteration, slot):
        asked.append((iteration, slot))
        return 0

    backbone = make_backbone()
    trainer, _ = make_trainer(
        StubDetector(backbone),
        images=Images(batch=3),
        backbone=backbone,
        sampler=sampler,
        scope=scope,
        accumulation_steps=3,
        accumulation_stitch=stitch,
    )
    trainer.train(4, 6)
    assert asked == [(iteration, slot) for iteration in (4, 5) for slot in slots]


def test_nan_loss_names_all_stitches_of_the_iteration():
    backbone = make_backbone()
    model = StubDetector(backbone)
    trainer, record = make_trainer(
        model,
        images=Images(batch=3, nan_at=1),
        backbone=backbone,
        sampler=SAMPLER,
        accumulation_steps=3,
    )
    with pytest.raises(FloatingPointError) as error:
        trainer.train(0, 3)
    stitches = [backbone.space[SAMPLER(1, slot)] for slot in range(3)]
    assert stitches.pop() == stitches[1]  # named once
    names = ", ".join(f"stitch {s.id} ({s.name}, kind {s.kind})" for s in stitches)
    assert f"iteration 1, process 0: {names}, loss_features nan" in str(error.value)
    for name, value in model.state_dict().items():
        assert torch.equal(value, record.before[1][name]), name


def test_batch_that_cannot_be_split_is_refused():
    with pytest.raises(InputError, match="batch of 1 images .* into 2 equal micro-batches"):
        train_stitched(accumulation_steps=2)


# ------------------------------------------------------------------------------ mixed precision


def train_amp(stop=3, enabled=True, disturb=None, **kwargs):
    """Mixed precision as on a GPU, but for the type; returns the trainer and its record."""
    backbone = make_backbone()
    model = StubDetector(backbone)
    trainer, record = make_trainer(
        model,
        images=Images(batch=4),
        cls=StitchedAMPTrainer,
        backbone=backbone,
        sampler=SAMPLER,
        accumulation_steps=4,
        precision=torch.bfloat16,
        grad_scaler=torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=enabled),
        **kwargs,
    )
    if disturb is not None:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_hook(lambda gradient: disturb(model, gradient))
    trainer.train(0, stop)
    return trainer, record


def test_loss_scaling_is_undone_before_the_step_and_counted_once_an_iteration():
    scaled, record = train_amp()
    plain, plain_record = train_amp(enabled=False)
    # Mixed precision it is: another gradient than in full precision.
    backbone = make_backbone()
    full, full_record = make_trainer(
        StubDetector(backbone),
        images=Images(batch=4),
        backbone=backbone,
        sampler=SAMPLER,
        accumulation_steps=4,
    )
    full.train(0, 1)
    name = next(key for key in full_record.gradients[0] if key.endswith("qkv.weight"))
    assert not torch.equal(full_record.gradients[0][name], plain_record.gradients[0][name])
    # A power of two scales exactly; recorded before the step, the gradients are scaled.
    assert record.gradients[0].keys() == plain_record.gradients[0].keys()
    for name, gradient in record.gradients[0].items():
        assert torch.equal(gradient, 1024 * plain_record.gradients[0][name]), name
    for name, value in scaled.model.state_dict().items():
        assert torch.equal(value, plain.model.state_dict()[name]), name
    state = scaled.state_dict()["grad_scaler"]
    assert (state["scale"], state["_growth_tracker"]) == (1024.0, 3)


def test_overflow_in_one_micro_batch_skips_the_step_and_lowers_the_scale():
    def overflow(model, gradient):
        # In the second micro-batch of the second iteration.
        return gradient * (math.inf if len(model.noise) == 6 else 1)

    trainer, record = train_amp(disturb=overflow)
    for name, value in record.before[1].items():
        assert torch.equal(value, record.before[2][name]), name
    assert trainer.state_dict()["grad_scaler"]["scale"] == 512.0
    moved = [n for n, v in record.before[0].items() if not torch.equal(v, record.before[1][n])]
    assert moved
    # A checkpoint has the scaler's state, and gives it back.
    other, _ = train_amp(stop=0)
    other.load_state_dict(trainer.state_dict())
    assert other.grad_scaler.get_scale() == 512.0
    skipped = [value for value, _ in trainer.storage.history("skipped_steps").values()]
    assert skipped == [0, 1, 1]


@pytest.mark.parametrize("fused", [True, False])
def test_a_training_is_resumed_with_the_kernels_of_its_own_device(fused):
    """A checkpoint has its own; with loss scaling, the wrong ones would end in an error."""
    trainers = []
    for own in (not fused, fused):
        trainer, _ = train_amp(stop=0)
        trainer.optimizer = torch.optim.AdamW(trainer.model.parameters(), lr=1e-3, fused=own)
        trainer._hooks.clear()
        trainers.append(trainer)
    first, second = trainers
    first.train(0, 2)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.model.load_state_dict(first.model.state_dict())
    second.data_loader.iteration = 2
    second.train(2, 4)
    assert all(group["fused"] is fused for group in second.optimizer.param_groups)
    # Fused or not: the same training, up to rounding.
    first.train(2, 4)
    for name, value in first.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_a_training_is_resumed_in_the_other_precision():
    scaled, _ = train_amp(stop=1)
    plain, _ = train_amp(stop=1, enabled=False)
    state = plain.state_dict()
    assert state["grad_scaler"] == {}
    plain.load_state_dict(scaled.state_dict())
    scaled.load_state_dict(state)
    assert scaled.grad_scaler.get_scale() == 1024.0
    assert "skipped_steps" not in plain.storage.histories()


def test_scaled_gradients_are_clipped_at_their_own_size():
    free, record = train_amp(stop=1, enabled=False)
    norm = gradients_of(record, 0).norm().item()
    clipped, _ = train_amp(stop=1, clip_grad_norm=norm / 4)
    logged = clipped.storage.history("grad_norm").latest()
    torch.testing.assert_close(logged, norm, rtol=1e-4, atol=0)


# ---------------------------------------------------------------------------- several processes

# Stitch ids by iteration and slot: 0 is the small anchor alone, 1 the large one. The small one is
# in an early micro-batch of both processes, then of one, then in the last one of one.
TABLE = ((0, 1, 0, 1), (0, 1, 1, 1), (1, 1, 1, 0))


def from_table(iteration, slot):
    return TABLE[iteration][slot]


def train_by_table(images, folder, **kwargs):
    """Trains on the table, by plain gradient descent; saves weights and first gradients."""
    torch.set_num_threads(1)
    backbone = make_backbone()
    model = StubDetector(backbone)
    settings = TrainSettings(device="cpu", stitch_scope=kwargs.get("scope", "shared"))
    config = OmegaConf.create({"train": as_config(settings)})
    config.train.accumulation.steps = kwargs["accumulation_steps"]
    wrapped = wrap_for_processes(config, model, torch.float32)
    exchanges = []
    if wrapped is not model:

        def exchange(_, bucket):
            exchanges.append(trainer.iter)
            return allreduce_hook(None, bucket)

        wrapped.register_comm_hook(None, exchange)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = StitchedTrainer(
        wrapped, images, optimizer, backbone=backbone, sampler=from_table, **kwargs
    )
    gradients = []

    class Keep(HookBase):
        def after_backward(self):
            named = model.named_parameters()
            gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    trainer.register_hooks([Keep()])
    trainer.train(0, len(TABLE))
    state = {"model": model.state_dict(), "gradients": gradients, "exchanges": exchanges}
    torch.save(state, f"{folder}/{comm.get_world_size()}_{comm.get_rank()}.pth")


def train_half_of_the_table(folder):
    images = Images(batch=8, part=comm.get_rank(), parts=2)
    train_by_table(images, folder, scope="process", accumulation_steps=2)


@pytest.mark.slow
def test_two_processes_of_two_micro_batches_train_what_one_of_four_does(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    launch_here(train_half_of_the_table, 2, str(tmp_path))
    train_by_table(Images(batch=8), str(tmp_path), accumulation_steps=4)
    first, second, alone = (torch.load(tmp_path / f"{name}.pth") for name in ("2_0", "2_1", "1_0"))
    # Once an iteration: the model is small enough for one bucket.
    assert first["exchanges"] == second["exchanges"] == [0, 1, 2]
    small = {n for n in alone["gradients"][0] if n.startswith("backbone.small.blocks.")}
    assert small
    for iteration, expected in enumerate(alone["gradients"]):
        assert small < expected.keys()
        for other in (first, second):
            assert other["gradients"][iteration].keys() == expected.keys()
            for name, gradient in expected.items():
                torch.testing.assert_close(
                    other["gradients"][iteration][name], gradient, rtol=1e-4, atol=1e-7
                )
    for name, value in alone["model"].items():
        assert torch.equal(first["model"][name], second["model"][name]), name
        torch.testing.assert_close(first["model"][name], value, rtol=1e-4, atol=1e-6)


def test_proposals_that_are_not_finite_name_the_images_too(monkeypatch):
    """detectron2 raises in the forward, where a training usually diverges first."""
    stitch = make_backbone().space[SAMPLER(2, 0)]
    forward = StubDetector.forward
    calls = []

    def diverged(self, batch):
        calls.append(batch)
        if len(calls) == 3:
            raise FloatingPointError("Predicted boxes or scores contain Inf/NaN.")
        return forward(self, batch)

    monkeypatch.setattr(StubDetector, "forward", diverged)
    with pytest.raises(FloatingPointError) as error:
        train_stitched()
    first, where = str(error.value).splitlines()
    assert first == "Predicted boxes or scores contain Inf/NaN."
    assert where == (
        f"iteration 2, process 0: stitch {stitch.id} ({stitch.name}, kind {stitch.kind}); images: "
        "without file names"
    )


@pytest.mark.parametrize(
    ("error", "logged"), [(InputError("some.jpg cannot be used"), False), (RuntimeError(), True)]
)
def test_wrong_input_ends_a_training_without_a_traceback_in_the_log(error, logged, monkeypatch):
    """It ends the program in its sentence; detectron2 logs what ends a training."""
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    log = logging.getLogger("detectron2.engine.train_loop")
    monkeypatch.setattr(log, "handlers", [handler])
    trainer, _ = make_trainer(StubDetector(make_backbone()))

    def fail():
        raise error

    monkeypatch.setattr(trainer, "run_step", fail)
    with pytest.raises(type(error)):
        trainer.train(0, 2)
    assert [r for r in records if r.exc_info] == ([] if not logged else [records[-1]])
