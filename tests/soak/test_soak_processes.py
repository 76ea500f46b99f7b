"""A program of a few lines stands for a training."""

import signal
import sys
import time

import pytest

from snnet_vitdet.soak.processes import Run

PROGRAM = """
import os, sys, time
for _ in range(2):
    if os.fork() == 0:
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
    wait_for(lambda: "ready" in run.output())
    assert run.send(signal.SIGINT)
    assert run.wait(60) == -signal.SIGINT
    assert run.wait_until_gone(60) == []


def test_a_limit_of_a_file_stands_for_a_full_disk(start, tmp_path):
    path = tmp_path / "large"
    assert start("writes", path).wait(60) == 0
    run = start("writes", path, largest_file=1000)
    assert run.wait(60) == 1
    assert "File too large" in run.output()
