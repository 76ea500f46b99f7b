"""Finding the other processes of one attempt of torchrun."""

import json
import time
import uuid
from datetime import timedelta

from torch.distributed import PrefixStore, Store

__all__ = ["store_of_attempt"]

_SECONDS_BETWEEN_LOOKS = 0.02


def store_of_attempt(store: Store, rank: int, num_processes: int, timeout: timedelta) -> Store:
    """The part of a store in which the processes that run now meet, and nobody before them.

    When torchrun starts its processes again, their store is the one from before, with the addresses
    of those that are gone: some connect to them and fail, or wait for half an hour
    (https://github.com/pytorch/pytorch/issues/135712). What torchrun counts does not help, as every
    machine counts for itself. So each process says hello with a number that is new, and takes the
    name of the attempt only from an answer that has this number in it.

    Args:
        store: What all processes share.
        rank: Of this process.
        num_processes: How many there are.
        timeout: How long to wait for the others.

    Raises:
        TimeoutError: If they do not come.
    """
    deadline = time.monotonic() + timeout.total_seconds()
    name = _invite(store, num_processes, deadline) if rank == 0 else _join(store, rank, deadline)
    return PrefixStore(name, store)


def _invite(store: Store, num_processes: int, deadline: float) -> str:
    name, others = uuid.uuid4().hex, range(1, num_processes)
    while not store.check([_accepted(name, rank) for rank in others]):
        # Again and again: what stands there may be from before, until its process has replaced it.
        here = {rank: store.get(_hello(rank)).decode() for rank in others if _is_in(store, rank)}
        store.set("invitation", json.dumps({"name": name, "guests": list(here.items())}))
        _wait(deadline)
    return name


def _join(store: Store, rank: int, deadline: float) -> str:
    own = uuid.uuid4().hex
    store.set(_hello(rank), own)
    while True:
        if store.check(["invitation"]):
            invitation = json.loads(store.get("invitation"))
            if [rank, own] in invitation["guests"]:
                store.set(_accepted(invitation["name"], rank), "")
                return invitation["name"]
        _wait(deadline)


def _hello(rank: int) -> str:
    return f"hello/{rank}"


def _accepted(name: str, rank: int) -> str:
    return f"accepted/{name}/{rank}"


def _is_in(store: Store, rank: int) -> bool:
    return store.check([_hello(rank)])


def _wait(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise TimeoutError("not all processes that torchrun has started have come")
    time.sleep(_SECONDS_BETWEEN_LOOKS)
