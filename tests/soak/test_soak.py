"""Trainings and sweeps that are killed, damaged and resumed, as their users start them."""

import math
import signal
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from random import Random

import pytest
from faults import (
    DAMAGES,
    PHASES,
    SWEEP_DAMAGES,
    Attack,
    FullDisk,
    Strike,
    attacks_on_sweep,
    attacks_on_training,
    dealt,
)
from in_process import run_program
from observed_run import (
    CHECKPOINT,
    EVALUATION,
    INITIALISATION,
    SWEEP_FILES,
    SWEEP_SCORES,
    SWEEP_START,
    TRAINING,
)
from rounds import Setting
from soak import Soak

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
# Hits its phase unless the run is three times faster than the undisturbed one was.
EARLY = 0.3


def damage(name):
    """By its name."""
    return next(each for each in (*DAMAGES, *SWEEP_DAMAGES) if each.name == name)


@pytest.fixture(scope="module")
def soak(tmp_path_factory):
    """Plays rounds in a short training."""
    overrides = (f"train.max_iter={MAX_ITER}", "sweep.stitch_ids='S,L,FSF-1-2'")
    setting = Setting(str(ROOT / "tests/soak/snnet_soak.py"), overrides, MAX_ITER)
    return Soak(setting, tmp_path_factory.mktemp("soak"))


@pytest.mark.slow
def test_what_is_killed_or_stopped_in_any_phase_ends_as_if_nothing_had_happened(soak):
    training = (
        Attack(INITIALISATION, STOP_ALL, EARLY),
        Attack(TRAINING, KILL_ALL, EARLY),
        Attack(CHECKPOINT, STOP),
        Attack(EVALUATION, KILL),
    )
    sweep = (
        Attack(SWEEP_START, KILL, EARLY),
        Attack(SWEEP_SCORES, STOP),
        Attack(SWEEP_FILES, KILL_ALL),
    )
    assert soak.play_round(0, 1, training, sweep, Random(0), math.inf) == []
    assert (soak.rounds, soak.equal_rounds) == (1, 1)
    assert soak.survived == soak.attacks
    # Which of the later phases are hit is up to the machine: a faster run is struck late or ends.
    phases = {phase for _, phase, _ in soak.attacks}
    assert {INITIALISATION, SWEEP_START} <= phases
    assert phases & {TRAINING, CHECKPOINT, EVALUATION}
    assert not list(soak.folder.glob("round_*"))


@pytest.mark.slow
def test_damaged_files_a_dead_worker_and_a_full_disk_cost_nothing_but_time(soak):
    training = (
        Attack(TRAINING, KILL_WORKER),
        Attack(TRAINING, damage("last checkpoint truncated")),
        Attack(TRAINING, damage("file last_checkpoint removed")),
        Attack(CHECKPOINT, FullDisk()),
    )
    sweep = (Attack(SWEEP_SCORES, damage("stitches.csv truncated")),)
    assert soak.play_round(2, 1, training, sweep, Random(2), math.inf) == []


@pytest.mark.nightly
def test_a_soak_of_half_an_hour_loses_nothing(tmp_path):
    command = [sys.executable, "tests/soak/soak.py", "--minutes", "30", "--folder", str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT).returncode == 0


@pytest.mark.parametrize("number", [1, 2])
def test_every_attack_in_every_phase_comes_once_before_any_comes_again(number):
    phases = set()
    for attacks in (attacks_on_training(number), attacks_on_sweep(number)):
        assert len(set(attacks)) == len(attacks)
        phases |= {attack.phase for attack in attacks}
        num_hands = math.ceil(len(attacks) / 3)
        hands = list(islice(dealt(attacks, 3, Random(5)), num_hands))
        assert all(len(hand) == 3 for hand in hands)
        assert all(hand == sorted(hand, key=attacks.index) for hand in hands)
        counts = Counter(attack for hand in hands for attack in hand)
        assert counts.keys() == set(attacks)
        assert list(islice(dealt(attacks, 3, Random(5)), num_hands)) == hands
        assert list(islice(dealt(attacks, 3, Random(6)), num_hands)) != hands
    assert phases == set(PHASES)


def test_the_table_adds_up(tmp_path):
    soak = Soak(Setting("some.py", (), 1), tmp_path)
    kill, stop = "SIGKILL to all processes", "SIGTERM to the main process"
    first, second = (1, "training", kill), (1, "sweep, scores", stop)
    soak.attacks = Counter({first: 3, second: 1, (2, "initialisation", stop): 1})
    soak.survived = Counter({first: 1, second: 1, (2, "initialisation", stop): 1})
    soak.rounds, soak.equal_rounds, soak.repeated = 4, 3, 8
    table, _, totals = soak.table().partition("\n\n")
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()[2:]]
    assert rows == [
        ["1", "training", kill, "3", "1"],
        ["1", "sweep, scores", stop, "1", "1"],
        ["2", "initialisation", stop, "1", "1"],
        ["", "", "**all**", "**5**", "**3**"],
    ]
    assert totals.startswith("4 rounds with 5 faults: 3 ended with the weights")
    assert "8 iterations were done again" in totals


def test_a_soak_without_time_ends_with_an_empty_table(tmp_path):
    table = tmp_path / "table.md"
    arguments = ("--minutes", "0", "--folder", str(tmp_path), "--markdown", str(table))
    finished = run_program("tests/soak/soak.py", *arguments)
    assert finished.code == 0, finished.error
    assert "0 rounds with 0 faults" in table.read_text()
    assert table.read_text() in finished.printed
