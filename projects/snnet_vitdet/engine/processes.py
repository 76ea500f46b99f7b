"""The processes of a run: this one alone, those that it starts, or those that torchrun started."""

import argparse
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.queues import SimpleQueue

import torch
import torch.distributed as dist
from detectron2.engine import launch
from detectron2.utils import comm
from torch.distributed.rendezvous import rendezvous
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from snnet_vitdet.errors import InputError

from .preemption import passing_on_to_children
from .rendezvous import store_of_attempt

__all__ = ["AUTO", "launch_here", "run_in_processes"]

logger = logging.getLogger(__name__)

AUTO = "auto"
"""The ``--dist-url`` for one machine: a free port."""

# What torchrun tells the processes that it starts.
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# How long a process waits for the others, as detectron2's own launcher has it.
_TIMEOUT = timedelta(minutes=30)
_SECONDS_BETWEEN_LOOKS = 0.2


def _started_by_torchrun() -> bool:
    """Whether torchrun (``python -m torch.distributed.run``) has started this process."""
    return all(name in os.environ for name in _TORCHRUN)


def run_in_processes(
    prepare: Callable[[int], tuple], main: Callable[..., None], args: argparse.Namespace
) -> None:
    """Runs ``main(args, *prepare(number of processes))`` in every process of a run.

    Args:
        prepare: Finds out what may be wrong, before anything starts, once on each machine. What it
            returns must be possible to pickle.
        main: What a process does; a function of a module.
        args: detectron2's arguments. Under torchrun ``resume`` is set when it starts the processes
            again.

    Raises:
        InputError: If ``prepare`` or ``main`` of any process raises it.
        SystemExit: If a process ends with an exit status other than 0, with the same; with 2 on
            other processes than the first, which raises an InputError that concerns them all.
    """
    if _started_by_torchrun():
        _join_torchrun(prepare, main, args)
        return
    num_processes = args.num_gpus * args.num_machines
    if args.num_machines > 1 and args.dist_url == AUTO:
        raise InputError(
            f"--num-machines {args.num_machines} needs --dist-url tcp://HOST:PORT, the same on all "
            "of them: the address of the first machine, and a port that is free there"
        )
    prepared = prepare(num_processes)
    if num_processes == 1:
        main(args, *prepared)
        return
    mistakes = multiprocessing.get_context("spawn").SimpleQueue()
    with passing_on_to_children() as passed_on:
        try:
            launch(
                _child,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(mistakes, main, args, *prepared),
                timeout=_TIMEOUT,
            )
        except (ProcessExitedException, ProcessRaisedException) as error:
            # First of all the reason: the others end, some of them sooner, for having lost one.
            if not mistakes.empty():
                raise InputError(mistakes.get()) from error
            if isinstance(error, ProcessRaisedException):
                raise
            if passed_on:
                sys.exit(128 + passed_on[0])
            if error.signal_name is None:
                # It has said why.
                sys.exit(error.exit_code)
            logger.error(
                "Process %d was killed (%s), by the system if the memory of the machine ran out. "
                "--resume goes on from the last checkpoint.",
                error.error_index,
                error.signal_name,
            )
            sys.exit(128 + signal.Signals[error.signal_name])


def _child(mistakes: SimpleQueue, main: Callable[..., None], *args: object) -> None:
    _end_with_parent()
    try:
        _run(main, *args)
    except InputError as error:
        mistakes.put(str(error))
        sys.exit(2)


def _end_with_parent() -> None:
    """Ends this process as soon as the one that has started it is gone.

    Left alone, it would train on into a folder in which the training is resumed.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
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
    store, _, _ = next(rendezvous("env://", timeout=_TIMEOUT))
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=store_of_attempt(store, rank, world, _TIMEOUT),
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
    # One machine's mistake ends all, instead of leaving them to wait for it.
    of_all = comm.all_gather(prepared)
    mistakes = [each for each in of_all if isinstance(each, InputError)]
    if mistakes and rank == 0:
        raise mistakes[0]
    if mistakes:
        sys.exit(2)
    _run(main, args, *of_all[rank - local_rank])


def launch_here(main: Callable[..., None], num_processes: int, *args: object) -> None:
    """Runs ``main(*args)`` in so many processes of this machine, as detectron2's ``launch`` does.

    In contrast to there, a process leaves the others before it ends (see :func:`_leave`).
    """
    launch(_run, num_processes, dist_url=AUTO, args=(main, *args))


def _run(main: Callable[..., None], *args: object) -> None:
    """Runs it and leaves the others."""
    try:
        main(*args)
    except SystemExit:
        _leave()
        raise
    # Not after other errors: who has lost the others may wait for them forever.
    _leave()


def _leave() -> None:
    """Leaves all groups and ends their threads.

    A thread of gloo that lets go of a tensor while the interpreter ends aborts the process. The
    threads live as long as their groups, and two of these detectron2 keeps for itself.
    """
    dist.destroy_process_group()
    comm._LOCAL_PROCESS_GROUP = None
    comm._get_global_gloo_group.cache_clear()
