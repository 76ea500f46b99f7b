import copy

import pytest
import torch
from detectron2.config import instantiate
from detectron2.engine.defaults import create_ddp_model
from detectron2.modeling import GeneralizedRCNN
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from snnet_vitdet.engine import StitchedTrainer, launch_here, synthetic_batch
from snnet_vitdet.engine.distillation import InPlaceDistillation, distils, rpn_distance, teacher_of
from snnet_vitdet.engine.memory_probe import probe_memory
from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import (
    anchor_alone,
    join_configs,
    stitch_costs,
)
from snnet_vitdet.stitching import StitchSpace

L = 1  # id of the large anchor
NET = "model.backbone.net"
OWN_PYRAMIDS = (
    f"{NET}.exit_projection=False",
    "model.backbone._target_=snnet_vitdet.modeling.PyramidPerExit",
)
# Both ViTs draw: what the teacher draws would be seen.
DROP = (f"{NET}.small.drop_path_rate=0.3", f"{NET}.large.drop_path_rate=0.3")


@pytest.fixture
def make(tiny_config):
    """Makes the tiny detector with stochastic depth in training mode, the same each time."""

    def make(*overrides, **distillation):
        torch.manual_seed(0)
        model = instantiate(tiny_config(*DROP, *overrides).model).train()
        if distillation:
            InPlaceDistillation(model, L, **distillation)
        return model

    return make


def batch_of(model, number=1):
    return synthetic_batch(number, 64, model.roi_heads.num_classes)


def losses_of(model, stitch, iteration=0, seed=5):
    """The losses of a training forward, from the same random state."""
    torch.manual_seed(seed)
    model.backbone.net.set_stitch(stitch)
    with EventStorage(iteration) as storage:
        storage.iter = iteration
        return model(batch_of(model))


def features_by_hand(model, stitch, seed=5):
    """The pyramid as the student has it, then as the teacher: in evaluation mode."""
    images = model.preprocess_image(batch_of(model)).tensor
    torch.manual_seed(seed)
    with model.backbone.net.using_stitch(stitch):
        student = model.backbone.forward(images)
    model.backbone.eval()
    with torch.no_grad(), model.backbone.net.using_stitch(L):
        teacher = model.backbone.forward(images)
    model.backbone.train()
    return student, teacher


def gradients_of(model):
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("stitch", ["S", "FS-2", "SF-2"])
@pytest.mark.parametrize("pyramids", [(), OWN_PYRAMIDS], ids=["one", "per_exit"])
def test_the_backbone_has_the_gradients_of_a_detached_teacher(pyramids, stitch, make):
    model = make(*pyramids, weight=2.0)
    loss = losses_of(model, stitch)["loss_distill"]
    loss.backward()
    plain = make(*pyramids)
    student, teacher = features_by_hand(plain, stitch)
    levels = ["p2", "p3", "p4", "p5"]
    expected = 2 * sum((student[p] - teacher[p]).square().mean() for p in levels) / 4
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    assert loss > 0.01
    found, wanted = gradients_of(model), gradients_of(plain)
    # Neither the pyramid nor the heads learn anything from it.
    of_pyramid = {name for name in wanted if not name.startswith("backbone.net.")}
    assert found.keys() == wanted.keys() - of_pyramid and found and of_pyramid
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-7)
    # What the teacher alone runs learns nothing from it either.
    large = {n for n in found if n.startswith("backbone.net.large.blocks.")}
    run = model.backbone.net.space[stitch].segments
    blocks = {f"backbone.net.large.blocks.{i}." for a, s, e in run if a == 1 for i in range(s, e)}
    assert all(name.startswith(tuple(blocks)) for name in large)
    assert bool(large) == (stitch != "S")


def test_a_norm_with_running_statistics_sees_the_student_once(make):
    norm = ("model.backbone.norm=BN",)
    plain, model = make(*norm), make(*norm, weight=1.0)
    for detector in (plain, model):
        losses_of(detector, "S")
    counts = {n: b for n, b in model.named_buffers() if n.endswith("num_batches_tracked")}
    assert counts and all(count == 1 for count in counts.values())
    for name, buffer in plain.named_buffers():
        assert torch.equal(model.get_buffer(name), buffer), name


def test_other_losses_and_the_random_stream_are_untouched(make):
    plain = losses_of(make(), "SF-2")
    state = torch.get_rng_state()
    model = make(weight=1.0, rpn_weight=1.0)
    losses = losses_of(model, "SF-2")
    assert torch.equal(torch.get_rng_state(), state)
    added = {"loss_distill", "loss_distill_rpn"}
    assert losses.keys() == plain.keys() | added
    for name, loss in plain.items():
        assert torch.equal(losses[name], loss), name
    assert all(losses[name] > 0 for name in added)
    # They are part of the sum that is trained.
    sum(losses.values()).backward()
    assert model.proposal_generator.rpn_head.conv.weight.grad is not None


def test_the_teacher_leaves_modes_stitch_and_state_as_they_were(make):
    model = make(weight=1.0, rpn_weight=1.0)
    assert model.state_dict().keys() == make().state_dict().keys()
    # A part that somebody keeps in evaluation mode.
    model.backbone.net.small.blocks[1].eval()
    before = {name: module.training for name, module in model.named_modules()}
    losses_of(model, "S")
    assert {name: module.training for name, module in model.named_modules()} == before
    assert model.backbone.net.stitch.name == "S"


def test_the_teacher_itself_and_left_out_iterations_add_zeros(make):
    model = make(weight=1.0, rpn_weight=0.5, every=3)
    ran = []
    model.backbone.net.register_forward_hook(lambda net, *_: ran.append(net.stitch.name))
    found = []
    for iteration in range(7):
        losses = losses_of(model, "FS-1", iteration)
        found.append({name: losses[name].item() > 0 for name in losses if "distill" in name})
    assert found == [dict.fromkeys(found[0], i % 3 == 0) for i in range(7)] and len(found[0]) == 2
    assert ran == [name for i in range(7) for name in ["FS-1", "L"][: 1 + (i % 3 == 0)]]
    own = losses_of(model, "L")
    assert own["loss_distill"] == own["loss_distill_rpn"] == 0
    assert len(ran) == 7 + 3 + 1
    # A zero without a graph is no obstacle.
    sum(own.values()).backward()


def test_only_the_wanted_losses_are_there(make):
    assert not [name for name in losses_of(make(), "S") if "distill" in name]
    for key, name in (("weight", "loss_distill"), ("rpn_weight", "loss_distill_rpn")):
        losses = losses_of(make(**{"weight": 0.0, key: 1.0}), "S")
        assert [n for n in losses if "distill" in n] == [name]


def test_evaluation_is_bitwise_the_one_without(make):
    plain, model = make().eval(), make(weight=1.0, rpn_weight=1.0)
    losses_of(model, "S")
    model.eval()
    for detector in (plain, model):
        detector.backbone.net.set_stitch("SF-2")
    with torch.no_grad():
        (expected,), (found,) = plain(batch_of(plain)), model(batch_of(model))
        assert len(expected["instances"]) > 0
        for key, value in expected["instances"].get_fields().items():
            other = found["instances"].get(key)
            value, other = getattr(value, "tensor", value), getattr(other, "tensor", other)
            assert torch.equal(value, other), key


# ---------------------------------------------------------------------------------------- the RPN


def outputs(seed, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(2, 3, s, s, generator=generator) for s in (4, 2)]
    deltas = [torch.randn(2, 12, s, s, generator=generator) for s in (4, 2)]
    for tensor in (*logits, *deltas):
        tensor.requires_grad_(requires_grad)
    return logits, deltas


def test_rpn_outputs_that_agree_have_neither_loss_nor_gradient():
    student = outputs(0, requires_grad=True)
    distance = rpn_distance(student, outputs(0))
    distance.backward()
    assert distance == 0
    for tensor in (*student[0], *student[1]):
        # The rounding of the sigmoid.
        torch.testing.assert_close(tensor.grad, torch.zeros_like(tensor), rtol=0, atol=1e-7)


def test_rpn_learns_objectness_everywhere_and_boxes_where_the_teacher_sees_objects():
    student, teacher = outputs(0, requires_grad=True), outputs(1)
    rpn_distance(student, teacher).backward()
    objects = sum(logits.sigmoid().sum() for logits in teacher[0])
    for logits, deltas, aim, aim_deltas in zip(*student, *teacher, strict=True):
        expected = (logits.sigmoid() - aim.sigmoid()) / objects
        torch.testing.assert_close(logits.grad, expected.detach(), rtol=1e-4, atol=1e-7)
        # detectron2 reads the deltas of RPN anchor a in channels 4 a … 4 a + 3.
        seen = (aim > 0).repeat_interleave(4, dim=1)
        assert torch.equal(deltas.grad != 0, seen)
        linear = seen & ((deltas - aim_deltas).abs() > 1 / 9)
        expected = (deltas - aim_deltas).sign() / objects
        torch.testing.assert_close(deltas.grad[linear], expected[linear].detach())


def test_rpn_loss_is_the_distance_of_the_outputs_of_one_head(make):
    model = make(weight=0.0, rpn_weight=3.0)
    loss = losses_of(model, "S")["loss_distill_rpn"]
    plain = make()
    head, names = plain.proposal_generator.rpn_head, plain.proposal_generator.in_features
    student, teacher = features_by_hand(plain, "S")
    with torch.no_grad():
        expected = 3 * rpn_distance(*(head([f[n] for n in names]) for f in (student, teacher)))
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-4, atol=0)


# ----------------------------------------------------------------------------------- in a training


class Batches:
    """Endless batches of two images, each iteration other ones."""

    def __init__(self, model, iteration):
        self.batch, self.iteration = batch_of(model, 2), iteration

    def __iter__(self):
        return self

    def __next__(self):
        batch = [{**sample, "image": sample["image"].roll(self.iteration)} for sample in self.batch]
        self.iteration += 1
        return batch


def test_mixed_precision_leaves_every_gradient_in_place(make):
    """Weights without gradient in autocast's cache would take the student's away."""
    names = []
    for model in (make(), make(weight=1.0, rpn_weight=1.0)):
        with torch.autocast("cpu", torch.bfloat16):
            # Its stitches share blocks, pyramid and RPN with the teacher.
            losses = losses_of(model, "FS-2")
            losses.pop("loss_distill_rpn", None)
            sum(losses.values()).backward()
        names.append(gradients_of(model).keys())
    assert names[0] == names[1]
    assert any(".large.blocks." in name for name in names[0])


def test_activation_checkpointing_changes_no_gradient(make):
    gradients = []
    for checkpointing in (False, True):
        overrides = [
            f"{NET}.{anchor}.activation_checkpointing={checkpointing}"
            for anchor in ("small", "large")
        ]
        model = make(*overrides, weight=1.0, rpn_weight=1.0)
        sum(losses_of(model, "SF-2").values()).backward()
        gradients.append(gradients_of(model))
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.equal(gradients[1][name], gradient), name


def test_a_copy_of_the_model_teaches_itself(make):
    model = make(weight=1.0)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.backbone.net.large.blocks[-1].mlp.fc2.bias += 1.0
    model.eval()
    assert losses_of(other, "S")["loss_distill"] != losses_of(make(weight=1.0), "S")["loss_distill"]


def train_one_of_two(config, folder):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = instantiate(config)
    InPlaceDistillation(model, L, weight=1.0, rpn_weight=1.0)
    wrapped = create_ddp_model(model, find_unused_parameters=True, device_ids=None)
    trainer = StitchedTrainer(
        wrapped,
        Batches(model, 0),
        torch.optim.SGD(model.parameters(), lr=0.01),
        backbone=model.backbone.net,
        # The first process trains the teacher.
        sampler=lambda iteration, slot: (L, 0)[(iteration + slot) % 2],
        scope="process",
    )
    trainer.train(0, 2)
    metrics = {name: value for name, (value, _) in trainer.storage.latest().items()}
    torch.save({"model": model.state_dict(), "metrics": metrics}, f"{folder}/{comm.get_rank()}.pth")


@pytest.mark.slow
def test_processes_of_which_one_trains_the_teacher_agree(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    args = (tiny_config().model, str(tmp_path))
    launch_here(train_one_of_two, 2, *args)
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in range(2))
    assert first["metrics"]["loss_distill"] > 0 and first["metrics"]["loss_distill_rpn"] > 0
    for name, value in first["model"].items():
        assert torch.equal(second["model"][name], value), name


# -------------------------------------------------------------------------- memory, cost, refusals


def test_the_memory_probe_runs_a_stitch_that_is_taught(make, tiny_config, monkeypatch):
    model = make(weight=1.0)
    config = tiny_config("train.distillation.weight=1")
    found = []
    forward = GeneralizedRCNN.forward

    def noted(self, batch):
        losses = forward(self, batch)
        found.append(self.backbone.net.stitch.name)
        return losses

    monkeypatch.setattr(GeneralizedRCNN, "forward", noted)
    ran = []
    model.backbone.net.register_forward_hook(lambda net, *_: ran.append(net.stitch.name))
    optimizer = torch.optim.AdamW(model.parameters())
    probe_memory(config, model, optimizer, stitch_costs(config.model))
    assert found[0] == "L" and found[1] != "L" and len(found) == 2
    assert ran == [*found, "L"]
    assert all(p.grad is None for p in model.parameters())


def test_the_teacher_is_the_large_anchor_or_the_most_expensive():
    space = StitchSpace((4, 8))
    assert space[teacher_of(space, [1.0] * len(space))].name == "L"
    without = StitchSpace((4, 8), kinds=("S", "FS"))
    assert teacher_of(without, [1.0, 3.0, 2.0, 2.5]) == 1


def test_a_detector_without_stitches_or_of_another_kind_is_refused(tiny_config, make):
    alone = instantiate(anchor_alone(tiny_config().model, "small"))
    with pytest.raises(InputError, match="no stitches, so there is no larger one to learn"):
        InPlaceDistillation(alone, L)
    model = make()
    model.proposal_generator = None
    with pytest.raises(InputError, match="works in a GeneralizedRCNN on a SimpleFeaturePyramid"):
        InPlaceDistillation(model, L)
    config = tiny_config().model
    joined = join_configs(anchor_alone(config, "small"), anchor_alone(config, "large"))
    with pytest.raises(InputError, match="one cannot teach all stitches"):
        InPlaceDistillation(instantiate(joined), L)


def test_nothing_is_distilled_unless_it_is_asked_for(tiny_config):
    assert not distils(tiny_config().train.distillation)
    assert distils(tiny_config("train.distillation.rpn_weight=0.5").train.distillation)
