"""A training that is asked to stop leaves a checkpoint that it goes on from."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from detectron2.engine import HookBase, SimpleTrainer
from detectron2.utils import comm
from torch import nn

from snnet_vitdet.engine import STOPPED, StopOnSignal, StrictCheckpointer, checkpoint_to_resume


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
        from snnet_vitdet.engine.preemption import passing_on_to_children

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
