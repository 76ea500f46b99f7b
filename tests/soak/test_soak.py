"""Trainings and sweeps killed at random moments, as their users start them."""

import math
import signal
from pathlib import Path
from random import Random

import pytest
from in_process import run_program

from snnet_vitdet.soak import Plan, Setting, Soak
from snnet_vitdet.soak.damages import DAMAGES, SWEEP_DAMAGES
from snnet_vitdet.soak.faults import Blow, FullDisk, Strike
from snnet_vitdet.soak.phases import (
    CHECKPOINT,
    EVALUATION,
    INITIALISATION,
    SWEEP_FILES,
    SWEEP_SCORES,
    SWEEP_START,
    TRAINING,
)

ROOT = Path(__file__).parent.parent.parent
MAX_ITER = 16
KILL, KILL_ALL, KILL_WORKER, STOP, STOP_ALL = (
    Strike(signum, target)
    for signum, target in (
        (signal.SIGKILL, "main"),
        (signal.SIGKILL, "all"),
        (signal.SIGKILL, "worker"),
        (signal.SIGTERM, "main"),
        (signal.SIGTERM, "all"),
    )
)


def damage(name):
    """By its name."""
    return next(each for each in (*DAMAGES, *SWEEP_DAMAGES) if each.name == name)


# Hits its phase unless the run is three times faster than the undisturbed one was.
EARLY = 0.3
PLAN = Plan(
    1,
    (
        Blow(INITIALISATION, STOP_ALL, EARLY),
        Blow(TRAINING, KILL_ALL, EARLY),
        Blow(CHECKPOINT, STOP),
        Blow(EVALUATION, KILL),
    ),
    (Blow(SWEEP_START, KILL, EARLY), Blow(SWEEP_SCORES, STOP), Blow(SWEEP_FILES, KILL_ALL)),
)


@pytest.fixture(scope="module")
def soak(tmp_path_factory):
    """Plays rounds in a short training, and notes what it says."""
    overrides = (f"train.max_iter={MAX_ITER}", "sweep.stitch_ids='S,L,FSF-1-2'")
    setting = Setting(ROOT / "train_net.py", "configs/shapes/snnet_soak.py", overrides, MAX_ITER)
    said = []
    soak = Soak(setting, tmp_path_factory.mktemp("soak"), said.append)
    soak.said = said
    return soak


@pytest.mark.slow
def test_what_is_killed_or_stopped_in_any_phase_ends_as_if_nothing_had_happened(soak, monkeypatch):
    monkeypatch.chdir(ROOT)
    lost = soak.play_round(0, PLAN, Random(0), math.inf)
    assert lost == [], "\n".join(soak.said)
    tally = soak.tally
    assert (tally.rounds, tally.equal_rounds) == (1, 1)
    assert tally.num_survived == tally.num_faults
    # Whether the others are hit is up to the machine: a run that is faster than the undisturbed
    # one was is struck late, or ends before.
    assert {INITIALISATION, TRAINING, SWEEP_START} <= tally.phases(), "\n".join(soak.said)
    assert not list(soak.folder.glob("round_*"))


@pytest.mark.slow
def test_damaged_files_a_dead_worker_and_a_full_disk_cost_nothing_but_time(soak, monkeypatch):
    monkeypatch.chdir(ROOT)
    plan = Plan(
        1,
        (
            Blow(TRAINING, KILL_WORKER),
            Blow(TRAINING, damage("last checkpoint truncated")),
            Blow(TRAINING, damage("file last_checkpoint removed")),
            Blow(CHECKPOINT, FullDisk()),
        ),
        (Blow(SWEEP_SCORES, damage("stitches.csv truncated")),),
    )
    lost = soak.play_round(2, plan, Random(2), math.inf)
    assert lost == [], "\n".join(soak.said)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.log_period=20", "train.log_period=20, but the losses of every iteration"),
        ("train.checkpointer.period=900", "is not below train.max_iter=30"),
        ("dataloader.test.num_workers=0", "dataloader.test.num_workers must be above 0"),
        ("train.max_itr=3", "did you mean 'max_iter'"),
    ],
)
def test_what_cannot_be_soaked_is_refused(override, expected, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    finished = run_program("tools/soak.py", "--folder", str(tmp_path), override)
    assert finished.code == 2
    assert expected in finished.error


def test_a_soak_without_time_ends_with_an_empty_table(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    table = tmp_path / "table.md"
    arguments = ("--minutes", "0", "--folder", str(tmp_path), "--markdown", str(table))
    finished = run_program("tools/soak.py", *arguments)
    assert finished.code == 0, finished.error
    assert "0 rounds with 0 faults" in table.read_text()
    assert table.read_text() in finished.printed
