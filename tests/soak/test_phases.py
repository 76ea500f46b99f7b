"""The phases of a training and a sweep, as their output and files tell them."""

import json
import os

import pytest

from snnet_vitdet.soak.phases import (
    CHECKPOINT,
    EVALUATION,
    FINAL,
    INITIALISATION,
    SWEEP_FILES,
    SWEEP_IMAGES,
    SWEEP_SCORES,
    SWEEP_START,
    TRAINING,
    Aim,
    Durations,
    Observer,
    iterations_of,
)


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
    assert observer.first_iteration() == 4
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
def test_an_aim_waits_for_its_part_of_the_training(progress, first, run, tmp_path, monkeypatch):
    """Iterations 4 to 9 are to come; a look at the folder lets one of them pass."""
    run.text = "Starting training from iteration 4\n"
    observer = Observer(run, tmp_path, sweeps=False)
    done = iter(range(2, 20))
    struck = []
    monkeypatch.setattr(observer, "last_iteration", lambda: struck.append(next(done)) or struck[-1])
    monkeypatch.setattr("time.sleep", lambda _: None)
    durations = Durations({}, {TRAINING: 0.0})
    assert Aim(TRAINING, progress, 0.5).wait(observer, durations, max_iter=10)
    assert struck[-1] + 1 == first


def test_an_aim_at_the_training_waits_for_a_checkpoint_to_be_written(run, tmp_path, monkeypatch):
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
    durations = Durations({}, {TRAINING: 0.0})
    assert Aim(TRAINING, 0.0, 0.5).wait(observer, durations, max_iter=10)
    assert len(sleeps) == 3


def test_an_aim_gives_up_when_the_run_ends(run, tmp_path):
    run.status = 0
    observer = Observer(run, tmp_path, sweeps=False)
    assert not Aim(CHECKPOINT, 0.0, 0.0).wait(observer, Durations({}, {CHECKPOINT: 0.0}), 10)
