"""The moving average of the weights: its arithmetic, its checkpoints, and who takes it."""

import contextlib
import copy
import json
import logging
import os
import shutil
import signal

import pytest
import torch
from detectron2.config import instantiate
from in_process import run_main
from runs import assert_same_tensors, weights
from torch import nn

from snnet_vitdet.deploy import Predictor
from snnet_vitdet.engine import STOPPED, training
from snnet_vitdet.engine.ema import AveragedWeights
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import provenance_of
from snnet_vitdet.modeling import find_stitched_vit
from snnet_vitdet.sweep_run import load_for_sweep

DECAY = 0.4


class Detector(nn.Module):
    """Trained and frozen parameters, a buffer that moves, one that counts."""

    def __init__(self, width=3):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, width)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.norm = nn.BatchNorm1d(2)

    def forward(self, batch):
        return {"loss": self.layer(self.frozen(self.norm(batch))).square().mean()}


@pytest.fixture
def followed():
    """A model, a function that trains it for some steps, and the average of its weights."""
    model = Detector()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    average = AveragedWeights(model, optimizer, DECAY)

    def train(steps, seed=0):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(4, 2, generator=generator))["loss"].backward()
            optimizer.step()

    return model, train, average


def copy_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_average_is_the_formula_by_hand(followed):
    model, train, average = followed
    expected = copy_of(model)
    # 2/11, 3/12, 4/13 and 5/14 are below the decay of 0.4, 6/15 is the decay, the next above it.
    for step, decay in enumerate([2 / 11, 3 / 12, 4 / 13, 5 / 14, 0.4, 0.4, 0.4], start=1):
        train(1, seed=step)
        for name, value in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value
        assert average.num_steps == step
    expected["norm.num_batches_tracked"] = torch.tensor(7)
    assert average.model.state_dict().keys() == expected.keys()
    for name, value in average.model.state_dict().items():
        # A few roundings of float32 a step.
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    assert not torch.equal(average.model.layer.weight, model.layer.weight)
    assert not torch.equal(average.model.norm.running_mean, model.norm.running_mean)


def test_average_does_not_change_what_is_trained(followed):
    model, train, average = followed
    train(5)
    alone = Detector()
    optimizer = torch.optim.AdamW([p for p in alone.parameters() if p.requires_grad], lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        optimizer.zero_grad()
        alone(torch.randn(4, 2, generator=generator))["loss"].backward()
        optimizer.step()
    assert_same_tensors(model.state_dict(), alone.state_dict())
    assert not any(p.requires_grad for p in average.model.parameters())
    assert all(p.requires_grad for p in model.layer.parameters())


def test_what_is_frozen_takes_no_room_twice(followed, tmp_path):
    model, train, average = followed
    train(2)
    assert average.model.frozen.weight.data_ptr() == model.frozen.weight.data_ptr()
    assert average.model.layer.weight.data_ptr() != model.layer.weight.data_ptr()
    # The same storage is written once.
    torch.save({"model": model.state_dict(), "ema": average.state_dict()}, tmp_path / "both.pth")
    saved = torch.load(tmp_path / "both.pth", weights_only=True)
    assert saved["model"]["frozen.weight"].data_ptr() == (
        saved["ema"]["weights"]["frozen.weight"].data_ptr()
    )


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_loss_scaling_leaves_out_is_none(fused):
    model = Detector()
    optimizer = torch.optim.AdamW(model.layer.parameters(), fused=fused)
    average = AveragedWeights(model.eval(), optimizer, DECAY)
    scaler = torch.amp.GradScaler("cpu")
    before = copy_of(average.model)
    for value, steps in ((float("inf"), 0), (1.0, 1)):
        scaler.scale(model(torch.full((4, 2), value))["loss"]).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert average.num_steps == steps
        same = all(torch.equal(v, before[n]) for n, v in average.model.state_dict().items())
        assert same == (steps == 0)


def test_without_an_average_in_the_checkpoint_it_begins_at_the_weights(followed, caplog):
    model, train, average = followed
    train(3)
    state = {"ema": copy.deepcopy(average.state_dict())}
    train(2)
    average.resume(state)
    assert average.num_steps == 3
    assert_same_tensors(average.model.state_dict(), state["ema"]["weights"])
    assert not torch.equal(average.model.layer.weight, model.layer.weight)

    with caplog.at_level(logging.INFO, "snnet_vitdet"):
        average.resume({})
    assert "no moving average of the weights: it starts from them" in caplog.text
    assert average.num_steps == 0
    assert_same_tensors(average.model.state_dict(), model.state_dict())


def test_average_of_another_model_is_refused(followed):
    _, _, average = followed
    other = Detector(width=4)
    state = AveragedWeights(other, torch.optim.SGD(other.layer.parameters()), 0.9).state_dict()
    with pytest.raises(InputError, match=r"not one of this model: 2 .*\(layer.bias, layer.weight"):
        average.load_state_dict(state)


def test_averaged_detector_runs_its_own_weights_at_its_own_stitch(tiny_config):
    torch.manual_seed(0)
    model = instantiate(tiny_config().model).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    image = [{"image": torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)}]
    backbone = find_stitched_vit(model)
    average = AveragedWeights(model, torch.optim.SGD(model.parameters()), DECAY)
    outputs = []
    with torch.no_grad():
        for stitch_id in (0, 5):
            backbone.set_stitch(stitch_id)
            outputs.append(model(image)[0]["instances"])
        backbone.set_stitch(1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.zero_()
        for stitch_id, expected in zip((0, 5), outputs, strict=True):
            find_stitched_vit(average.model).set_stitch(stitch_id)
            own = average.model(image)[0]["instances"]
            assert len(own) > 0
            assert torch.equal(own.scores, expected.scores)
            assert torch.equal(own.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert not torch.equal(outputs[0].scores, outputs[1].scores)
    assert backbone.stitch.id == 1


# ------------------------------------------------------------------------------ in train_net.py

ITERATIONS = 5


def overrides_of(output, *more):
    """The overrides of a short training that keeps every checkpoint."""
    return [
        f"train.output_dir={output}",
        f"train.max_iter={ITERATIONS}",
        "train.checkpointer.period=1",
        "train.eval_period=0",
        "train.eval_stitches=[0]",
        "init.num_images=2",
        *more,
    ]


@pytest.fixture(scope="module")
def trained(tiny_config, tmp_path_factory, restored_logging):
    """The folders of the same training without an average and with one."""
    folders = [tmp_path_factory.mktemp(name) for name in ("without", "with")]
    for folder, decay in zip(folders, (0, 0.3), strict=True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "evaluate_stitch", lambda *_: {"bbox_AP": 0.0})
            run_main(tiny_config(*overrides_of(folder, f"train.ema_decay={decay}")))
    return folders


def checkpoint(folder, name):
    return torch.load(folder / f"{name}.pth", weights_only=True)


def from_iteration(source, iteration, folder):
    """A folder in which a training has got to an iteration and was killed."""
    folder.mkdir()
    name = f"model_{iteration:07d}.pth"
    for each in ("model_init.pth", name, "config.yaml"):
        shutil.copy(source / each, folder)
    (folder / "last_checkpoint").write_text(name)
    return folder


@pytest.mark.slow
def test_average_may_be_turned_on_and_off_at_a_resume(
    trained, tiny_config, tmp_path, restored_logging, monkeypatch
):
    monkeypatch.setattr(training, "evaluate_stitch", lambda *_: {"bbox_AP": 0.0})
    folder = from_iteration(trained[0], 2, tmp_path / "on")
    run_main(tiny_config(*overrides_of(folder, "train.ema_decay=0.3")), "--resume")
    assert "has no moving average of the weights: it starts" in (folder / "log.txt").read_text()
    start = checkpoint(folder, "model_0000002")["model"]
    saved = checkpoint(folder, "model_0000003")
    assert saved["ema"]["num_steps"] == 1
    for name, value in saved["model"].items():
        expected = 2 / 11 * start[name] + 9 / 11 * value
        torch.testing.assert_close(saved["ema"]["weights"][name], expected, rtol=1e-5, atol=1e-6)
    assert_same_tensors(weights(folder), weights(trained[0]))

    folder = from_iteration(trained[1], 2, tmp_path / "off")
    run_main(tiny_config(*overrides_of(folder)), "--resume")
    assert "the checkpoint's moving average is not kept" in (folder / "log.txt").read_text()
    assert "ema" not in checkpoint(folder, "model_final")
    assert_same_tensors(weights(folder), weights(trained[0]))


@pytest.mark.slow
@pytest.mark.parametrize("end", ["error", "signal", "none"])
def test_what_is_evaluated_is_the_average_and_what_is_saved_and_trained_are_the_weights(
    end, trained, tiny_config, tmp_path, restored_logging, monkeypatch
):
    """Also if the evaluation is interrupted."""
    seen = []

    def evaluate(model, *_):
        seen.append(copy_of(model))
        if end == "error":
            raise RuntimeError("evaluation failed")
        if end == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        return {"bbox_AP": 0.0}

    monkeypatch.setattr(training, "evaluate_stitch", evaluate)
    config = tiny_config(
        *overrides_of(tmp_path, "train.ema_decay=0.3", "train.checkpointer.period=100"),
        "train.eval_period=3",
    )
    ends = {
        "error": pytest.raises(RuntimeError, match="evaluation failed"),
        "signal": pytest.raises(SystemExit, check=lambda e: e.code == STOPPED),
        "none": contextlib.nullcontext(),
    }
    with ends[end]:
        run_main(config)
    whole = checkpoint(trained[1], "model_0000002")
    assert_same_tensors(seen[0], whole["ema"]["weights"])
    if end != "none":
        saved = checkpoint(tmp_path, "model_0000002")
        assert_same_tensors(saved["model"], whole["model"])
        assert_same_tensors(saved["ema"]["weights"], whole["ema"]["weights"])
        return
    final = checkpoint(trained[1], "model_final")
    assert_same_tensors(seen[1], final["ema"]["weights"])
    assert_same_tensors(weights(tmp_path), final["model"])


@pytest.mark.slow
def test_sweep_scores_the_average_or_the_weights_and_does_not_mix_them(
    trained, tiny_config, tmp_path, restored_logging
):
    path = trained[1] / "model_final.pth"
    saved = torch.load(path, weights_only=True)
    shared = (f"train.output_dir={tmp_path}", f"train.init_checkpoint={path}")
    for averaged, expected in ((True, saved["ema"]["weights"]), (False, saved["model"])):
        config = tiny_config(*shared, f"sweep.averaged={averaged}")
        model = instantiate(config.model)
        assert load_for_sweep(config, model) == (str(path), ITERATIONS, averaged)
        assert_same_tensors(model.state_dict(), expected)
    run_main(tiny_config(*shared, "sweep.stitch_ids=S", "sweep.averaged=False"), "--eval-only")
    assert json.loads((tmp_path / "sweep/sweep.json").read_text())["averaged"] is False
    with pytest.raises(InputError, match="averaged: False then, True now"):
        run_main(tiny_config(*shared, "sweep.stitch_ids=S"), "--eval-only", "--resume")

    # A sweep of a checkpoint without an average depends on what it did before there were any.
    config = tiny_config(f"train.init_checkpoint={trained[0] / 'model_final.pth'}")
    *_, averaged = load_for_sweep(config, instantiate(config.model))
    assert averaged is None
    assert "averaged" not in provenance_of(config, str(path), averaged)


@pytest.mark.slow
def test_predictor_and_a_new_training_take_the_average(
    trained, tiny_config, tmp_path, restored_logging
):
    saved = checkpoint(trained[1], "model_final")
    # Not merged, as low-rank updates are.
    name = "roi_heads.box_predictor.cls_score.weight"
    config = tiny_config(f"train.output_dir={trained[1]}")
    assert torch.equal(Predictor(config).model.state_dict()[name], saved["ema"]["weights"][name])
    config.sweep.averaged = False
    assert torch.equal(Predictor(config).model.state_dict()[name], saved["model"][name])
    # A config of an earlier version.
    del config.sweep.averaged
    assert torch.equal(Predictor(config).model.state_dict()[name], saved["ema"]["weights"][name])

    start = f"train.init_checkpoint={trained[1] / 'model_final.pth'}"
    run_main(tiny_config(*overrides_of(tmp_path, start, "train.max_iter=1")))
    assert_same_tensors(checkpoint(tmp_path, "model_init")["model"], saved["ema"]["weights"])
