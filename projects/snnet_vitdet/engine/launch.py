"""Starts the processes of a run: this one alone, several of this machine, or those of torchrun."""

import argparse
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing.queues import SimpleQueue
from types import FrameType

import torch
import torch.distributed as dist
from detectron2.engine import launch
from detectron2.utils import comm
from torch.distributed import TCPStore
from torch.distributed.rendezvous import rendezvous
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from snnet_vitdet.errors import InputError

__all__ = [
    "AUTO",
    "handling_stop_signals",
    "launch_here",
    "passing_on_to_children",
    "run_in_processes",
    "store_of_attempt",
]

logger = logging.getLogger(__name__)

AUTO = "auto"
"""The ``--dist-url`` for one machine: detectron2 takes a free port."""

# The variables that torchrun sets in the processes that it starts.
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# How long a process waits for the others; detectron2's default.
_TIMEOUT = timedelta(minutes=30)
_POLL_SECONDS = 0.2


def run_in_processes(
    prepare: Callable[[int], tuple], main: Callable[..., None], args: argparse.Namespace
) -> None:
    """Runs ``main(args, *prepare(number of processes))`` in every process of a run.

    Args:
        prepare: Checks the run before anything starts, once on each machine. Its result must be
            picklable.
        main: The work of a process; a module-level function.
        args: detectron2's arguments. ``resume`` is set when torchrun restarts the processes.

    Raises:
        InputError: If ``prepare``, or ``main`` in any process, raises it.
        SystemExit: If a process ends with a non-zero exit status, with the same status. Status 2
            in all processes but the first if the first raises an InputError for all of them.
    """
    if all(name in os.environ for name in _TORCHRUN):
        _join_torchrun(prepare, main, args)
        return
    if args.num_machines > 1 and args.dist_url == AUTO:
        raise InputError(
            f"--num-machines {args.num_machines} needs --dist-url tcp://HOST:PORT, the same on all "
            "of them: the address of the first machine, and a port that is free there"
        )
    num_processes = args.num_gpus * args.num_machines
    prepared = prepare(num_processes)
    if num_processes == 1:
        main(args, *prepared)
    else:
        _start_processes(main, args, prepared)


def _start_processes(main: Callable[..., None], args: argparse.Namespace, prepared: tuple) -> None:
    input_errors = multiprocessing.get_context("spawn").SimpleQueue()
    with passing_on_to_children() as received:
        try:
            launch(
                _child,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(input_errors, main, args, *prepared),
                timeout=_TIMEOUT,
            )
        except (ProcessExitedException, ProcessRaisedException) as error:
            # The input error comes first: the other processes fail because they lost this one, and
            # some of them fail sooner.
            if not input_errors.empty():
                raise InputError(input_errors.get()) from error
            if isinstance(error, ProcessRaisedException):
                raise
            if received:
                sys.exit(128 + received[0])
            if error.signal_name is None:
                sys.exit(error.exit_code)  # it has printed the reason
            logger.error(
                "Process %d was killed (%s), by the system if the memory of the machine ran out. "
                "--resume goes on from the last checkpoint.",
                error.error_index,
                error.signal_name,
            )
            sys.exit(128 + signal.Signals[error.signal_name])


def _child(input_errors: SimpleQueue, main: Callable[..., None], *args: object) -> None:
    _end_with_parent()
    try:
        _run_and_leave(main, *args)
    except InputError as error:
        input_errors.put(str(error))
        sys.exit(2)


def _end_with_parent() -> None:
    """Ends this process as soon as its parent is gone.

    Otherwise it would go on training into a folder in which the training is resumed.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _join_torchrun(
    prepare: Callable[[int], tuple], main: Callable[..., None], args: argparse.Namespace
) -> None:
    rank, world, local_rank, local_world = (int(os.environ[name]) for name in _TORCHRUN[:4])
    if args.num_gpus != 1 or args.num_machines != 1:
        raise InputError(
            f"torchrun has started {world} processes: leave out --num-gpus and --num-machines, "
            "which are for starting them without it"
        )
    if world % local_world:
        raise InputError(
            f"torchrun has started {world} processes, {local_world} of them on this machine: start "
            "as many on each"
        )
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
        if rank == 0:
            logger.warning("torchrun starts the processes again: the run is resumed.")
        args.resume = True
    _end_with_parent()
    if world == 1:
        main(args, *prepare(world))
        return
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        if local_world > torch.cuda.device_count():
            raise InputError(
                f"torchrun has started {local_world} processes on a machine with "
                f"{torch.cuda.device_count()} GPUs: start one for each (--nproc-per-node)"
            )
        torch.cuda.set_device(local_rank)
    shared, _, _ = next(rendezvous("env://", timeout=_TIMEOUT))
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=store_of_attempt(shared, os.environ["MASTER_ADDR"], rank, _TIMEOUT),
        rank=rank,
        world_size=world,
        timeout=_TIMEOUT,
    )
    comm.create_local_process_group(local_world)
    comm.synchronize()
    prepared = None
    if local_rank == 0:
        try:
            prepared = prepare(world)
        except InputError as error:
            prepared = error
    # An input error on one machine ends all, so that none waits for it.
    results = comm.all_gather(prepared)
    errors = [result for result in results if isinstance(result, InputError)]
    if errors and rank == 0:
        raise errors[0]
    if errors:
        sys.exit(2)
    _run_and_leave(main, args, *results[rank - local_rank])


def store_of_attempt(shared: dist.Store, host: str, rank: int, timeout: timedelta) -> dist.TCPStore:
    """A new store of process 0 for the processes that run now.

    When torchrun restarts its processes, it hands them the store of the attempt before, with the
    addresses of processes that are gone (https://github.com/pytorch/pytorch/issues/135712). So
    process 0 opens a store on a free port and publishes the port. The port of an earlier attempt
    may still be published: nobody listens there, and the reader tries again.

    Args:
        shared: torchrun's store, which all processes share.
        host: Address of the machine of process 0.
        rank: Rank of this process.
        timeout: How long to wait for process 0.

    Raises:
        TimeoutError: If process 0 does not come.
    """
    if rank == 0:
        store = TCPStore(host, 0, is_master=True, timeout=timeout, wait_for_workers=False)
        shared.set("port_of_attempt", str(store.port))
        return store
    deadline = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < deadline:
        # TCPStore prints a stack trace for a port at which nobody listens; a socket does not.
        with suppress(OSError):
            if shared.check(["port_of_attempt"]):
                port = int(shared.get("port_of_attempt"))
                socket.create_connection((host, port), timeout=2).close()
                return TCPStore(host, port, is_master=False, timeout=timeout)
        time.sleep(_POLL_SECONDS)
    raise TimeoutError(f"process 0 of torchrun has not opened a store within {timeout}")


def launch_here(main: Callable[..., None], num_processes: int, *args: object) -> None:
    """Runs ``main(*args)`` in several processes of this machine, as detectron2's ``launch`` does.

    In contrast to ``launch``, each process leaves its process groups before it ends.
    """
    launch(_run_and_leave, num_processes, dist_url=AUTO, args=(main, *args))


def _run_and_leave(main: Callable[..., None], *args: object) -> None:
    """Runs ``main``, then leaves all process groups and ends their threads.

    A thread of gloo that frees a tensor while the interpreter shuts down aborts the process. The
    threads live as long as their groups, and detectron2 keeps two groups for itself.
    """
    end = None
    try:
        main(*args)
    except SystemExit as error:
        end = error
    # Not after other errors: a process that lost the others could wait for them forever.
    dist.destroy_process_group()
    comm._LOCAL_PROCESS_GROUP = None
    comm._get_global_gloo_group.cache_clear()
    if end is not None:
        raise end


@contextmanager
def passing_on_to_children() -> Iterator[list[int]]:
    """Passes signals that ask to stop on to the child processes, and keeps waiting for them.

    At SIGTERM or Ctrl-C the children get SIGTERM; at a second Ctrl-C they are killed.

    Yields:
        The signals received so far.
    """
    received: list[int] = []

    def pass_on(signum: int, _frame: FrameType | None) -> None:
        kill = signum == signal.SIGINT and signum in received
        received.append(signum)
        for child in multiprocessing.active_children():
            child.kill() if kill else child.terminate()

    with handling_stop_signals(pass_on):
        yield received


@contextmanager
def handling_stop_signals(
    handler: Callable[[int, FrameType | None], None],
) -> Iterator[dict[int, object]]:
    """Installs a handler for SIGTERM and SIGINT; yields the handlers from before.

    SIGINT stays ignored where it is ignored, as in a background job.
    """
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    signals = [signal.SIGTERM] if ignored else [signal.SIGTERM, signal.SIGINT]
    before = {each: signal.signal(each, handler) for each in signals}
    try:
        yield before
    finally:
        for each, own in before.items():
            signal.signal(each, own)
