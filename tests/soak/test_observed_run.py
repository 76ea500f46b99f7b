"""Processes of a run, with a program of a few lines; phases, by output and files."""

import json
import os
import signal
import sys
import time

import pytest
from observed_run import (
    CHECKPOINT,
    EVALUATION,
    FINAL,
    INITIALISATION,
    SWEEP_FILES,
    SWEEP_IMAGES,
    SWEEP_SCORES,
    SWEEP_START,
    TRAINING,
    Observer,
    Run,
    iterations_of,
)

PROGRAM = """
import os, sys, time
for _ in range(2):
    if os.fork() == 0:
        print("forked", flush=True)
        time.sleep(100)
if sys.argv[1] == "ends":
    sys.exit(7)
if sys.argv[1] == "writes":
    with open(sys.argv[2], "wb") as file:
        file.write(bytes(2000))
    sys.exit(0)
print("ready", flush=True)
time.sleep(100)
"""


@pytest.fixture
def start(tmp_path):
    """Starts the program, which has two children like itself."""
    runs = []

    def start(*arguments, largest_file=None):
        command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
        runs.append(Run(command, tmp_path / f"{len(runs)}.log", largest_file))
        return runs[-1]

    yield start
    for run in runs:
        run.end()


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_copies_of_a_process_are_its_workers(start):
    run = start("waits")
    wait_for(lambda: "ready" in run.output() and len(run.members()) == 3)
    assert [member.pid for member in run.trainers()] == [run.pid]
    workers = run.workers()
    assert len(workers) == 2
    assert all(worker.parent == run.pid for worker in workers)
    assert run.send(signal.SIGKILL, workers[0].pid)
    # A dead one that nobody has asked for is still in the system's list, but not among these.
    wait_for(lambda: [worker.pid for worker in run.workers()] == [workers[1].pid])
    assert run.status is None


def test_who_is_left_over_is_seen_and_ended(start):
    run = start("ends")
    assert run.wait(60) == 7
    assert len(run.wait_until_gone(0.2)) == 2
    run.end()
    assert run.members() == []


def test_a_signal_to_all_reaches_children(start):
    run = start("waits")
    # Python forgets a signal that a child gets while it is being forked.
    wait_for(lambda: "ready" in run.output() and run.output().count("forked") == 2)
    assert run.send(signal.SIGINT)
    assert run.wait(60) == -signal.SIGINT
    assert run.wait_until_gone(60) == []


def test_a_limit_of_a_file_stands_for_a_full_disk(start, tmp_path):
    path = tmp_path / "large"
    assert start("writes", path).wait(60) == 0
    run = start("writes", path, largest_file=1000)
    assert run.wait(60) == 1
    assert "File too large" in run.output()


class StubRun:
    """A run that has written a text."""

    started = 1000.0
    status = None

    def __init__(self):
        self.text, self.busy = "", []

    def output(self):
        return self.text

    def workers(self):
        return self.busy


@pytest.fixture
def run():
    return StubRun()


def write(path, time=2000.0):
    path.write_text("x")
    os.utime(path, (time, time))


def train(folder, iteration):
    with open(folder / "metrics.json", "a") as file:
        file.write(json.dumps({"iteration": iteration, "total_loss": 1.0}) + "\n")


def test_a_training_goes_through_its_phases(run, tmp_path):
    train(tmp_path, 6)
    observer = Observer(run, tmp_path, sweeps=False)
    assert observer.phase() == INITIALISATION
    # As a killed run has left it.
    write(tmp_path / ".tmp.model_0000003.pth", time=900.0)
    run.text += "Starting training from iteration 4\n"
    assert observer.phase() == INITIALISATION
    assert observer.last_iteration() == -1
    train(tmp_path, 4)
    assert observer.phase() == TRAINING
    assert observer.last_iteration() == 4
    write(tmp_path / ".tmp.model_0000009.pth")
    assert observer.phase() == CHECKPOINT
    assert observer.written() == "0000009"
    (tmp_path / ".tmp.model_0000009.pth").unlink()
    assert observer.phase() == TRAINING
    run.text += "Saving checkpoint to there/model_final.pth\n"
    assert observer.phase() == FINAL
    write(tmp_path / ".tmp.model_final.pth")
    assert observer.phase() == FINAL
    (tmp_path / ".tmp.model_final.pth").rename(tmp_path / "model_final.pth")
    assert observer.phase() == EVALUATION


def test_a_sweep_goes_through_its_phases(run, tmp_path):
    observer = Observer(run, tmp_path, sweeps=True)
    assert observer.phase() == SWEEP_START
    run.busy = [1]
    assert observer.phase() == SWEEP_IMAGES
    run.busy = []
    run.text += "stitch 1 of 3: S (id 0)\n"
    assert observer.phase() == SWEEP_SCORES
    assert observer.scored() == (1, 3)
    run.text += "stitch 2 of 3: L (id 1)\nstitch 3 of 3: FS-1 (id 2)\n"
    assert observer.phase() == SWEEP_FILES


def test_iterations_are_read_past_a_cut_line(tmp_path):
    assert iterations_of(tmp_path) == []
    lines = [json.dumps({"iteration": i, "total_loss": 1.0}) for i in range(3)]
    text = "\n".join([lines[0], '{"bbox_AP": 3}', lines[1], lines[2][:20]])
    (tmp_path / "metrics.json").write_text(text)
    assert [values["iteration"] for values in iterations_of(tmp_path)] == [0, 1]


@pytest.mark.parametrize(("progress", "first"), [(0.0, 4), (0.5, 7), (1.0, 9)])
def test_a_moment_of_the_training_is_waited_for(progress, first, run, tmp_path, monkeypatch):
    """Iterations 4 to 9 are to come; a look at the folder lets one of them pass."""
    run.text = "Starting training from iteration 4\n"
    observer = Observer(run, tmp_path, sweeps=False)
    done = iter(range(2, 20))
    struck = []
    monkeypatch.setattr(observer, "last_iteration", lambda: struck.append(next(done)) or struck[-1])
    monkeypatch.setattr("time.sleep", lambda _: None)
    assert observer.wait_for(TRAINING, progress, 0.0, max_iter=10)
    assert struck[-1] + 1 == first


def test_a_moment_of_the_training_is_not_while_a_checkpoint_is_written(run, tmp_path, monkeypatch):
    run.text = "Starting training from iteration 0\n"
    train(tmp_path, 0)
    checkpoint = tmp_path / ".tmp.model_0000000.pth"
    observer = Observer(run, tmp_path, sweeps=False)
    monkeypatch.setattr(observer, "last_iteration", lambda: 0)
    write(checkpoint)
    sleeps = []

    def sleep(seconds):
        sleeps.append(seconds)
        if len(sleeps) == 3:
            checkpoint.unlink()

    monkeypatch.setattr("time.sleep", sleep)
    assert observer.wait_for(TRAINING, 0.0, 0.0, max_iter=10)
    assert len(sleeps) == 3


def test_waiting_ends_when_the_run_ends(run, tmp_path):
    run.status = 0
    observer = Observer(run, tmp_path, sweeps=False)
    assert not observer.wait_for(CHECKPOINT, 0.0, 0.0, max_iter=10)
