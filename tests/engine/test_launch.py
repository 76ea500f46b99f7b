"""Processes that are started, by this program or by torchrun, and how they end together."""

import os
import signal
import threading
import time
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import launch_program
import pytest
import torch.distributed as dist
from launch_program import (
    death_of_one,
    death_once,
    failure_of_one,
    mistake_of_one,
    note,
    record,
    wait,
)
from runs import finish, start_program, wait_until
from torch.distributed import HashStore
from torch.multiprocessing import ProcessRaisedException

from snnet_vitdet.engine.launch import AUTO, run_in_processes, store_of_attempt
from snnet_vitdet.errors import InputError


def arguments(**changes):
    given = {"num_gpus": 1, "num_machines": 1, "machine_rank": 0, "dist_url": AUTO}
    return Namespace(**{**given, "resume": False, **changes})


# --------------------------------------------------------------------------- one process and two


def test_one_process_runs_in_this_one(tmp_path):
    run_in_processes(lambda number: (f"{tmp_path}", number), record, arguments())
    assert (tmp_path / "recorded").read_text() == f"{os.getpid()} 1"


def test_mistakes_are_found_before_anything_starts():
    def prepare(_number):
        raise InputError("no such config")

    with pytest.raises(InputError, match="no such config"):
        run_in_processes(prepare, wait, arguments(num_gpus=2))


def test_several_machines_need_an_address():
    with pytest.raises(InputError, match="--dist-url tcp://HOST:PORT"):
        run_in_processes(lambda _: (), wait, arguments(num_machines=2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("main", "raised", "message"),
    [
        (mistake_of_one, InputError, "^some.jpg cannot be used: replace the file$"),
        (failure_of_one, ProcessRaisedException, "no memory|onnection"),
        (death_of_one, SystemExit, f"^{128 + signal.SIGKILL}$"),
    ],
    ids=["mistake", "failure", "death"],
)
def test_what_befalls_one_process_ends_them_all(main, raised, message, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(raised, match=message):
        run_in_processes(lambda _: ("",), main, arguments(num_gpus=2))


def start(main, folder, *flags, **changes):
    """The program that runs a function in processes."""
    return start_program(launch_program.__file__, main.__name__, folder, *flags, **changes)


def is_there(pid):
    """Whether a process is alive; one that has ended may still wait to be asked for its status."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="the system does not list processes")
@pytest.mark.parametrize("launcher", ["itself", "torchrun"])
def test_processes_do_not_outlive_a_killed_launcher(launcher, tmp_path):
    """Nor where Ctrl-C is ignored, as in what runs in the background."""
    with_torchrun = launcher == "torchrun"
    process = start(
        wait,
        tmp_path,
        *([] if with_torchrun else ["--num-gpus", "2"]),
        launcher=TORCHRUN if with_torchrun else (),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    files = [tmp_path / f"pid{rank}" for rank in (0, 1)]
    wait_until(lambda: all(file.exists() and file.read_text() for file in files), process)
    process.kill()
    process.communicate()
    wait_until(lambda: not any(is_there(int(file.read_text())) for file in files))


# ------------------------------------------------------------------------------------- torchrun

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.mark.slow
def test_processes_of_torchrun_are_taken_as_they_are(tmp_path):
    code, printed, error = finish(start(note, tmp_path, launcher=TORCHRUN))
    assert code == 0, error
    assert (tmp_path / "rank0").read_text() == "0 0 2 False\n"
    assert (tmp_path / "rank1").read_text() == "1 1 2 False\n"
    # What is found out before the start is found out once.
    assert printed.count("prepared for 2") == 1
    # A thread of gloo that is still there when the interpreter ends aborts it now and then.
    assert printed.count("threads left:") == 2
    assert "gloo" not in printed


@pytest.mark.slow
def test_a_mistake_under_torchrun_is_one_sentence(tmp_path):
    code, _, error = finish(start(note, tmp_path, "--wrong", launcher=TORCHRUN))
    assert code != 0
    assert error.count("error: no such config") == 1
    assert "InputError" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_torchrun_starts_again_is_resumed(tmp_path):
    again = (*TORCHRUN, "--max-restarts", "1")
    code, _, error = finish(start(death_once, tmp_path, launcher=again))
    assert code == 0, error
    assert (tmp_path / "rank0").read_text() == "0 0 2 False\n0 0 2 True\n"


@pytest.mark.parametrize(
    ("variables", "arguments_", "message"),
    [
        ({"WORLD_SIZE": "4"}, {"num_gpus": 4}, "leave out --num-gpus"),
        ({"WORLD_SIZE": "3"}, {}, "start as many on each"),
    ],
)
def test_what_contradicts_torchrun_is_refused(variables, arguments_, message, monkeypatch):
    given = {"RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    for name, value in {**given, "MASTER_PORT": "1", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        run_in_processes(lambda _: (), wait, arguments(**arguments_))
    assert not dist.is_initialized()


# ------------------------------------------------------------------- the store of an attempt


def attempt(shared, name, delays):
    """What each process finds in the store of an attempt, where each writes its rank."""
    ready, done = threading.Barrier(len(delays)), []

    def process(rank):
        time.sleep(delays[rank])
        store = store_of_attempt(shared, "localhost", rank, timedelta(minutes=1))
        store.set(f"address/{rank}", f"{name} {rank}")
        done.append({other: store.get(f"address/{other}").decode() for other in range(len(delays))})
        ready.wait()  # the first process has the server

    with ThreadPoolExecutor(len(delays)) as pool:
        list(pool.map(process, range(len(delays))))
    return done


def test_all_processes_of_an_attempt_meet_and_none_of_an_earlier_one():
    shared = HashStore()
    # The first process comes last, first and in between: its port of before may still be noted.
    for name, delays in (("first", [0.3, 0, 0]), ("second", [0, 0.2, 0]), ("third", [0.4, 0, 0.6])):
        expected = {rank: f"{name} {rank}" for rank in range(3)}
        assert attempt(shared, name, delays) == [expected] * 3


def test_a_first_process_that_does_not_come_is_not_waited_for_forever():
    with pytest.raises(TimeoutError, match="process 0 of torchrun has not opened a store within"):
        store_of_attempt(HashStore(), "localhost", 1, timedelta(seconds=0.1))
