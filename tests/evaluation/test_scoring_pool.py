import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from snnet_vitdet.evaluation import scoring_pool
from snnet_vitdet.evaluation.scoring_pool import available_workers

PROGRAM = str(Path(__file__).with_name("scoring_program.py"))
ROWS = ["0 0 0", "1 34 1", "2 66 2", "3 100 3"]


def start(folder, case, workers):
    command = [sys.executable, PROGRAM, str(folder), case, str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def pids(folder):
    return {int(path.stem) for path in folder.glob("*.pid")}


@pytest.mark.parametrize("workers", [1, 3])
def test_points_are_scored_in_their_order_in_any_number_of_processes(workers, tmp_path):
    program = start(tmp_path, "sound", workers)
    printed, _ = program.communicate()
    assert printed.splitlines() == ROWS
    # In processes of their own, or in this one.
    assert (program.pid in pids(tmp_path)) == (workers == 1)


def test_an_error_in_a_process_is_raised_after_the_points_before(tmp_path):
    printed, _ = start(tmp_path, "error", 2).communicate()
    assert printed.splitlines() == [*ROWS[:2], "the disk is full"]


def test_a_process_that_is_killed_is_told_of(tmp_path):
    printed, _ = start(tmp_path, "killed", 2).communicate()
    *rows, error = printed.splitlines()
    assert rows == ROWS[: len(rows)] and len(rows) <= 2
    assert error.startswith("a process that scores detections was killed, by the system if the")


def test_processes_end_with_a_program_that_is_killed(tmp_path):
    program = start(tmp_path, "waiting", 2)
    while len(pids(tmp_path)) < 2:
        time.sleep(0.1)
    program.kill()
    # The processes have its standard output, which ends with the last of them.
    program.communicate(timeout=60)


@pytest.mark.parametrize(
    ("cores", "processes", "expected"), [(2, 1, 2), (64, 1, 8), (8, 2, 4), (2, 8, 1)]
)
def test_cores_are_shared_by_the_processes_of_the_machine(cores, processes, expected, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
    monkeypatch.setattr(scoring_pool.comm, "get_local_size", lambda: processes)
    assert available_workers() == expected
