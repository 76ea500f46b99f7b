"""Workers outlive the SIGTERM of others, and none of their parent."""

import multiprocessing
import signal
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader

from snnet_vitdet.data.loader import leave_sigterm_to_parent, worker_context

pytestmark = pytest.mark.skipif(
    not hasattr(signal, "sigwaitinfo"), reason="this system does not tell who sent a signal"
)


def work(connection):
    leave_sigterm_to_parent()
    connection.send("ready")
    while True:
        connection.send(connection.recv())


@pytest.fixture
def worker():
    """A process and the connection over which it answers."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=work, args=(there,), daemon=True)
    process.start()
    assert here.recv() == "ready"
    yield process, here
    process.kill()
    process.join()


def test_a_signal_of_somebody_else_is_ignored(worker):
    process, connection = worker
    for number in range(3):
        kill = f"import os; os.kill({process.pid}, {int(signal.SIGTERM)})"
        subprocess.run([sys.executable, "-c", kill], check=True)
        connection.send(number)
        assert connection.recv() == number
    assert process.is_alive()


def test_the_parents_signal_ends_it_as_a_success(worker):
    process, _ = worker
    process.terminate()
    process.join(60)
    assert process.exitcode == 0


def test_a_loader_that_is_left_alone_does_not_keep_its_process_from_ending():
    """Its iterator lives to the end; Python then sends SIGTERM to the workers and waits."""
    program = """
import torch
from torch.utils.data import DataLoader
from snnet_vitdet.data.loader import leave_sigterm_to_parent

loader = DataLoader(range(1000), num_workers=2, worker_init_fn=leave_sigterm_to_parent)
iterator = iter(loader)
assert next(iterator).item() == 0
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=100, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_a_loader_goes_on_while_its_workers_get_the_signal():
    loader = DataLoader(range(40), num_workers=2, worker_init_fn=leave_sigterm_to_parent)
    iterator = iter(loader)
    # One of each worker, which is then deaf to it.
    first = [next(iterator), next(iterator)]
    kill = "import os, sys; [os.kill(int(pid), 15) for pid in sys.argv[1:]]"
    pids = [str(worker.pid) for worker in iterator._workers]
    subprocess.run([sys.executable, "-c", kill, *pids], check=True)
    assert torch.cat([*first, *iterator]).tolist() == list(range(40))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are not copies")
def test_workers_of_a_process_that_is_no_copy_are_copies():
    """They do not import anything again; a started process would start its own in its own way."""
    program = """
import multiprocessing, os
from torch.utils.data import DataLoader, Dataset
from snnet_vitdet.data.loader import worker_context

class Parents(Dataset):
    copied = os.getpid()
    def __len__(self):
        return 2
    def __getitem__(self, index):
        return self.copied

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    loader = DataLoader(Parents(), num_workers=1, multiprocessing_context=worker_context(1))
    assert [int(pid) for pid in loader] == 2 * [os.getpid()]
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=100, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert worker_context(0) is None
