"""Hooks: stopping on a signal, freezing the anchors, writing metrics."""

import copy
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from detectron2.engine import HookBase, SimpleTrainer, TrainerBase
from detectron2.engine.hooks import PeriodicWriter
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from in_process import run_main
from torch import nn

from snnet_vitdet.engine import STOPPED, StitchedTrainer, StrictCheckpointer, checkpoint_to_resume
from snnet_vitdet.engine.hooks import FreezeAnchors, MetricsFile, StopOnSignal, WriteMetrics
from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import AnchorViT, StitchedViT
from snnet_vitdet.stitching import UniformSampler

# ---------------------------------------------------------------------------- stopping on a signal


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, batch):
        return {"loss": (self.weight - batch) ** 2}


class Batches:
    """The batch of an iteration is its number; at one of them the process gets the signal."""

    def __init__(self, start, signal_at, signals):
        self.iteration, self.signal_at, self.signals = start, signal_at, signals

    def __iter__(self):
        return self

    def __next__(self):
        if self.iteration == self.signal_at:
            for number in self.signals:
                os.kill(os.getpid(), number)
        self.iteration += 1
        return float(self.iteration)


class After(HookBase):
    """Does something after every step, as an evaluation does."""

    def __init__(self, function):
        self.function = function

    def after_step(self):
        self.function(self.trainer.iter)


def train(
    folder,
    start=0,
    signal_at=None,
    signals=(signal.SIGTERM,),
    after=lambda stop, iteration: None,
):
    """Ten iterations, from a start that is resumed from the folder unless it is 0."""
    model = Line()
    trainer = SimpleTrainer(
        model,
        Batches(start, signal_at, signals),
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    )
    checkpointer = StrictCheckpointer(model, str(folder), trainer=trainer)
    if start:
        checkpointer.load(checkpoint_to_resume(str(folder)))
        assert trainer.iter + 1 == start
    stop = StopOnSignal(checkpointer)
    trainer.register_hooks([stop, After(lambda iteration: after(stop, iteration))])
    with stop.listening():
        trainer.train(start, 10)
    return model.weight.item()


def test_the_iteration_is_finished_saved_and_gone_on_from(tmp_path):
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        train(tmp_path, signal_at=4)
    assert ended.value.code == STOPPED == 143
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000004.pth"]
    # Nobody else's signal is taken.
    assert signal.getsignal(signal.SIGTERM) is handler
    assert train(tmp_path, start=5) == train(tmp_path / "whole")


@pytest.fixture
def set_interrupt():
    """Sets what Ctrl-C does; it may be ignored where the tests themselves run in the background."""
    before = signal.getsignal(signal.SIGINT)
    yield lambda handler: signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_is_still_ignored_where_it_was(tmp_path, set_interrupt):
    set_interrupt(signal.SIG_IGN)
    train(tmp_path, signal_at=4, signals=[signal.SIGINT, signal.SIGINT])
    assert os.listdir(tmp_path) == []


def test_ctrl_c_saves_and_pressed_again_ends_at_once(tmp_path, set_interrupt):
    set_interrupt(signal.default_int_handler)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as ended:
        train(tmp_path, signal_at=4, signals=[signal.SIGINT])
    assert ended.value.code == 130
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000004.pth"
    assert signal.getsignal(signal.SIGINT) is handler
    assert train(tmp_path, start=5) == train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "hurry", signal_at=4, signals=[signal.SIGINT, signal.SIGINT])
    assert not (tmp_path / "hurry").exists()


def test_the_signal_of_another_process_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(comm, "all_gather", lambda asked: [asked, True])
    with pytest.raises(SystemExit):
        train(tmp_path)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000000.pth"


def test_an_evaluation_is_not_waited_for(tmp_path):
    ends = []

    def evaluate(stop, iteration):
        with stop.at_once():
            if iteration == 6:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0)  # the handler has run
            ends.append(iteration)

    with pytest.raises(SystemExit) as ended:
        train(tmp_path, after=evaluate)
    assert ended.value.code == STOPPED and ends == [0, 1, 2, 3, 4, 5]
    assert train(tmp_path, start=7) == train(tmp_path / "whole")


def test_an_evaluation_after_the_last_iteration_is_not_waited_for_either(tmp_path):
    class Evaluation(HookBase):
        def after_train(self):
            with stop.at_once():
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0)  # the handler has run
                pytest.fail("it goes on")

    model = Line()
    trainer = SimpleTrainer(
        model, Batches(0, None, ()), torch.optim.SGD(model.parameters(), lr=0.1)
    )
    stop = StopOnSignal(StrictCheckpointer(model, str(tmp_path), trainer=trainer))
    trainer.register_hooks([stop, Evaluation()])
    with pytest.raises(SystemExit) as ended, stop.listening():
        trainer.train(0, 10)
    assert ended.value.code == STOPPED
    # What the last iteration has left is saved before.
    assert os.listdir(tmp_path) == []


def test_a_training_that_is_not_asked_leaves_no_checkpoint_of_its_own(tmp_path):
    train(tmp_path)
    assert os.listdir(tmp_path) == []


def test_children_get_what_their_launcher_gets():
    program = """
        import multiprocessing, os, signal, time
        from snnet_vitdet.engine.launch import passing_on_to_children

        if __name__ == "__main__":
            child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            child.start()
            with passing_on_to_children():
                os.kill(os.getpid(), signal.SIGTERM)
                child.join(60)
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            print("child", child.exitcode)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True
    )
    assert done.stdout == f"child {-signal.SIGTERM}\n", done.stderr


# ---------------------------------------------------------------------------------- frozen anchors


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


# ----------------------------------------------------------------------------------------- metrics


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def record(path, period, iterations, losses):
    """What a training between two starts writes, a line every period."""
    file = MetricsFile(path, period)
    with EventStorage(iterations[0]) as storage:
        for storage.iter in iterations:
            storage.put_scalar("total_loss", losses[storage.iter])
            if (storage.iter + 1) % period == 0:
                file.write()
    file.close()


@pytest.mark.parametrize("period", [1, 4])
def test_a_resumed_training_writes_the_lines_of_an_uninterrupted_one(period, tmp_path):
    losses = [(7 * i) % 11 for i in range(12)]
    whole, resumed = tmp_path / "whole.json", tmp_path / "resumed.json"
    record(whole, period, range(12), losses)
    record(resumed, period, range(8), losses)
    record(resumed, period, range(8, 12), losses)
    assert read(resumed) == read(whole)
    assert [line["iteration"] for line in read(whole)] == list(range(period - 1, 12, period))
    if period == 1:
        assert [line["total_loss"] for line in read(whole)] == losses


def test_what_comes_later_in_an_iteration_gets_a_line_and_nothing_is_written_twice(tmp_path):
    path = tmp_path / "metrics.json"
    file = MetricsFile(path, 1)
    with EventStorage(3) as storage:
        storage.put_scalar("total_loss", 2.0)
        file.write()
        storage.put_scalar("bbox_AP", 5.0, smoothing_hint=False)
        file.write()
        file.write()
    assert read(path) == [{"total_loss": 2.0, "iteration": 3}, {"bbox_AP": 5.0, "iteration": 3}]


def test_a_cut_line_takes_no_other_with_it(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 0, "total_loss": 1.0}\n{"iteration": 1, "tot')
    record(path, 1, range(2, 3), {2: 3.0})
    assert path.read_text() == (
        '{"iteration": 0, "total_loss": 1.0}\n{"iteration": 1, "tot\n'
        '{"iteration": 2, "total_loss": 3.0}\n'
    )


def test_a_checkpoint_finds_the_line_of_its_iteration_written(tmp_path):
    path, seen = tmp_path / "metrics.json", []
    file = MetricsFile(path, 2)

    class Checkpoint(HookBase):
        def after_step(self):
            seen.append([line["iteration"] for line in read(path)])

    class Trainer(TrainerBase):
        def run_step(self):
            self.storage.put_scalar("total_loss", 1.0)

    trainer = Trainer()
    trainer.register_hooks([WriteMetrics(file, 2), Checkpoint(), PeriodicWriter([file], 2)])
    trainer.train(0, 5)
    assert seen == [[], [1], [1], [1, 3], [1, 3, 4]]
    assert [line["iteration"] for line in read(path)] == [1, 3, 4]


def refuse(constant):
    raise ValueError(f"{constant} is no JSON")


def test_every_line_is_json_to_the_letter(tmp_path):
    path = tmp_path / "metrics.json"
    file = MetricsFile(path, 1)
    with EventStorage(3) as storage:
        storage.put_scalars(bbox_APl=float("nan"), grad_norm=float("inf"), lr=1e-3)
        file.write()
    (line,) = path.read_text().splitlines()
    assert json.loads(line, parse_constant=refuse) == {
        "bbox_APl": None,
        "grad_norm": None,
        "lr": 1e-3,
        "iteration": 3,
    }


# A limit on the size of files stands for a full disk: the same error from the same call.
TENSORBOARD = """
import resource, signal, sys, time
from detectron2.utils.events import EventStorage
from snnet_vitdet.engine.hooks import TensorBoardFile
from snnet_vitdet.errors import exit_on_input_error

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with EventStorage(0) as storage, exit_on_input_error():
    writer = TensorBoardFile(sys.argv[1])
    storage.put_scalar("total_loss", 1.0)
    writer.write()
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    try:
        # A thread writes, when it comes to it.
        for storage.iter in range(1, 10_000):
            storage.put_scalar("total_loss", 1.0)
            writer.write()
            time.sleep(0.01)
    finally:
        writer.write()
        writer.close()
"""


def test_the_thread_of_tensorboard_says_the_same_sentence_on_a_full_disk(tmp_path):
    program = [sys.executable, "-c", TENSORBOARD, str(tmp_path)]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 2
    assert f"error: cannot write the events of TensorBoard in {tmp_path}: File too" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_training_on_a_full_disk_ends_in_a_sentence(
    tiny_config, tmp_path, capfd, restored_logging
):
    for name in ("log.txt", "metrics.json"):
        (tmp_path / name).symlink_to("/dev/full")
    config = tiny_config(f"train.output_dir='{tmp_path}'", "train.max_iter=3", "train.log_period=1")
    with pytest.raises(InputError, match="cannot write .*metrics.json: No space left on device"):
        run_main(config)
    said = "".join(capfd.readouterr())
    assert "Traceback" not in said and said.count("log.txt: No space left") == 1
    assert (tmp_path / "model_init.pth").stat().st_size > 1000
