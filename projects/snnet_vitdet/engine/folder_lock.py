"""One run at a time in a folder."""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from snnet_vitdet.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["alone_in"]

logger = logging.getLogger(__name__)

# A run that was killed, perhaps on another machine, may take a moment to be gone.
_PATIENCE_SECONDS = 60.0
_SECONDS_BETWEEN_TRIES = 0.5


@contextlib.contextmanager
def alone_in(folder: str, patience: float = _PATIENCE_SECONDS) -> Iterator[None]:
    """Keeps other runs out of a folder: two that write their checkpoints to it destroy each other.

    The lock is the system's and ends with the process, however that ends; the file ``.lock`` stays.
    Where the file system has no locks, there is none.

    Args:
        folder: It is made if need be.
        patience: Seconds to wait for another run to end.

    Raises:
        InputError: If another run is still there.
    """
    path = Path(folder, ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror}): choose another train.output_dir"
        ) from error
    # Closing it gives the lock back.
    with file:
        if fcntl is not None:
            _lock(file, folder, patience)
        yield


def _lock(file, folder: str, patience: float) -> None:
    deadline = time.monotonic() + patience
    waiting = False
    while True:
        try:
            # Unlike flock, not shared with the workers of the data, which may outlive a killed run.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip() or "unknown"
            if time.monotonic() > deadline:
                raise InputError(
                    f"another run ({holder}) is at work in {folder}: wait for its end, stop it, or "
                    "choose another train.output_dir"
                ) from None
            if not waiting:
                logger.warning("Another run (%s) is in %s; waiting for its end.", holder, folder)
                waiting = True
            time.sleep(_SECONDS_BETWEEN_TRIES)
        except OSError as error:
            logger.warning("%s cannot be locked (%s): start no other run in it.", folder, error)
            return
        else:
            # For others to read; on a full disk the lock holds without it.
            with contextlib.suppress(OSError):
                os.truncate(file.fileno(), 0)
                text = f"process {os.getpid()} on {socket.gethostname()}\n"
                os.write(file.fileno(), text.encode())
            return
