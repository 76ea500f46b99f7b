"""What the processes of a pool share: they end with their parent, and a killed one is told of."""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from snnet_vitdet.data.loader import leave_sigterm_to_parent
from snnet_vitdet.errors import InputError

__all__ = ["stay_with_parent", "telling_of_a_kill"]


def stay_with_parent() -> None:
    """Lets this process of a pool end when its parent does, and be ended by its parent alone.

    Without this, it would wait for work forever if the parent is killed.
    """
    leave_sigterm_to_parent()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


@contextmanager
def telling_of_a_kill(process: str, remedy: str) -> Iterator[None]:
    """Raises an InputError if a process of a pool was killed.

    Args:
        process: What the process does, such as "writes the detections".
        remedy: What to do before the sweep is resumed.
    """
    try:
        yield
    except BrokenProcessPool as error:
        raise InputError(
            f"a process that {process} was killed, by the system if the memory of the machine ran "
            f"out: {remedy}, then go on with --resume"
        ) from error
