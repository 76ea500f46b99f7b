"""Workers of data loaders: how they start, what they hand over, and how they end."""

import os
import pickle
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from snnet_vitdet.errors import InputError

__all__ = [
    "DATA_ERRORS",
    "Failure",
    "failure_of",
    "leave_sigterm_to_parent",
    "raise_failures",
    "worker_context",
]

DATA_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What reading and mapping raise for wrong data; Pillow raises SyntaxError for damaged files."""


@dataclass(frozen=True)
class Failure:
    """What a worker hands over in place of a sample.

    An exception that a worker raises would arrive as the text of its traceback, without its cause.

    Attributes:
        message: What is wrong, for an InputError.
        cause: What was raised.
    """

    message: str
    cause: BaseException | None = None


def failure_of(record: dict, error: Exception, purpose: str) -> Failure:
    """The failure of a sample.

    Args:
        record: Its dataset dict.
        error: What the mapper has raised.
        purpose: ``training`` or ``test``.
    """
    if isinstance(error, InputError):
        return Failure(str(error), _portable(error.__cause__))
    portable = _portable(error)
    return Failure(
        f"The {purpose} image {record.get('file_name')} cannot be used "
        f"({portable}): replace the file, or take it out of the annotations.",
        portable,
    )


def raise_failures(batch: Sequence) -> None:
    """Raises the first failure of a batch.

    Raises:
        InputError: There is one.
    """
    for sample in batch:
        if isinstance(sample, Failure):
            raise InputError(sample.message) from sample.cause


def worker_context(num_workers: int) -> str | None:
    """How a loader starts its workers, for torch's ``multiprocessing_context``.

    They are forked where that is usual (Linux). The processes of a training are spawned, and by
    default their workers would be, too: each would import torch and detectron2 again, which takes
    longer than many evaluations.
    """
    return "fork" if num_workers and sys.platform == "linux" else None


def leave_sigterm_to_parent(_worker: int = 0) -> None:
    """Lets SIGTERM end this process only if its parent sends it, and SIGINT not at all.

    Schedulers send SIGTERM to all processes of a job, and terminals SIGINT. A worker that ended at
    once would end the training in the middle of an iteration, before it has saved; the trainer ends
    its workers itself. For ``worker_init_fn`` of torch's DataLoader. Without effect where the
    system does not tell who sent a signal (macOS).
    """
    if not hasattr(signal, "sigwaitinfo"):
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Blocked in all threads, it waits for the thread that asks who sent it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    while True:
        if signal.sigwaitinfo({signal.SIGTERM}).si_pid == os.getppid():
            os._exit(0)  # as torch's own handler, which is not reached


def _portable(error: BaseException | None) -> BaseException | None:
    """The error, or its text if it cannot leave the worker."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # any failure means that it cannot
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
