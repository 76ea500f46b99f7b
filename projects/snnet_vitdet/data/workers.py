"""Workers of a data loader: how they start, and what they do while their job is asked to stop."""

import os
import signal
import sys
import threading

__all__ = ["leave_sigterm_to_parent", "worker_context"]


def worker_context(num_workers: int) -> str | None:
    """How a loader starts its workers, for torch's ``multiprocessing_context``.

    As copies of their process where that is usual (Linux). The processes of a training are not
    started as copies, and their workers would not be either: each would import torch and
    detectron2 again, which takes longer than many an evaluation.
    """
    return "fork" if num_workers and sys.platform == "linux" else None


def leave_sigterm_to_parent(_worker: int = 0) -> None:
    """Lets SIGTERM end this process only if it comes from its parent, and SIGINT not at all.

    Schedulers send SIGTERM to all processes of a job, and terminals SIGINT. A worker that ended at
    once would end the training in the middle of an iteration, before it has saved; the trainer ends
    its workers itself. For ``worker_init_fn`` of torch's DataLoader. Without effect where the
    system does not tell who sent a signal (macOS).
    """
    if not hasattr(signal, "sigwaitinfo"):
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Blocked in all threads, it waits to be taken by the one that asks who sent it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    while True:
        if signal.sigwaitinfo({signal.SIGTERM}).si_pid == os.getppid():
            # As torch's own handler, which is not reached.
            os._exit(0)
