"""Runs a function in two real processes that talk over gloo."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import multiprocessing


def run_in_two_processes(function: Callable, folder: Path, *arguments) -> list:
    """What ``function(rank, *arguments)`` returned in process 0 and in process 1."""
    multiprocessing.spawn(_process, (function, folder, arguments), nprocs=2)
    return torch.load(folder / "results.pt")


def _process(rank: int, function: Callable, folder: Path, arguments: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    try:
        results = [None, None]
        dist.all_gather_object(results, function(rank, *arguments))
        if rank == 0:
            torch.save(results, folder / "results.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()
