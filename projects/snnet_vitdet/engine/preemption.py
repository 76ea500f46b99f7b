"""Trainings that are asked to stop: by a scheduler that needs the machine, by kill, by timeout."""

import logging
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from detectron2.engine import HookBase
from detectron2.utils import comm

from .checkpoint import StrictCheckpointer

__all__ = ["STOPPED", "StopOnSignal", "passing_on_to_children"]

logger = logging.getLogger(__name__)

STOPPED = 128 + signal.SIGTERM
"""Exit status of a process that was asked to stop and did, as shells give it."""


class StopOnSignal(HookBase):
    """Ends the training with a checkpoint at SIGTERM, after the iteration that is under way.

    So does Ctrl-C (SIGINT); pressed again, it ends at once.

    It is enough if one of several processes gets the signal. The checkpoint is one like any other,
    so a training that is resumed goes on as if it had not stopped. Register this hook behind those
    whose state is in the checkpoint, and before what takes long; train while it is ``listening``.
    """

    def __init__(self, checkpointer: StrictCheckpointer) -> None:
        """
        Args:
            checkpointer: Saves the training; on all processes, of which the main one writes.
        """
        self._checkpointer = checkpointer
        self._asked: int | None = None
        self._at_once = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals over for a while, in which the trainer trains and evaluates."""
        with _handled_by(self._ask) as self._before:
            yield

    def after_step(self) -> None:
        """Stops if any process was asked to.

        Raises:
            SystemExit: To stop, with status ``STOPPED``, or 130 for SIGINT.
        """
        # All processes have to agree on the iteration; between two of them each may have it.
        if any(comm.all_gather(self._asked)):
            self._stop()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """For what lies between two iterations and changes nothing, such as an evaluation.

        Asked to stop in the meantime, each process does so without waiting for the end of it. The
        signal has to reach the main process, which writes the checkpoint.
        """
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _ask(self, signum: int, _frame: FrameType | None) -> None:
        self._asked = self._asked or signum
        # Of several processes, their launcher is the one to ask them again or to kill them.
        if signum == signal.SIGINT and comm.get_world_size() == 1:
            # Whoever is in a hurry presses it again.
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])
            logger.warning("Stopping after this iteration; Ctrl-C again ends at once.")
        if self._at_once:
            self._at_once = False
            self._stop(alone=True)

    def _stop(self, alone: bool = False) -> None:
        iteration, signum = self.trainer.iter, self._asked or signal.SIGTERM
        if iteration < self.trainer.max_iter:
            self._checkpointer.save_iteration(iteration)
            what = f"saved after iteration {iteration}; --resume goes on from there"
        else:
            what = "the training is finished and saved, its evaluation is not"
        logger.warning("Asked to stop (%s): %s.", signal.Signals(signum).name, what)
        if not alone:
            # The first process to end takes the others with it.
            comm.synchronize()
        sys.exit(128 + signum)


@contextmanager
def passing_on_to_children() -> Iterator[list[int]]:
    """Asks the processes that this one has started to stop when it is asked, and waits as before.

    At SIGTERM or Ctrl-C they get SIGTERM; at a second Ctrl-C they are killed.

    Yields:
        The signals that have come so far.
    """
    received: list[int] = []

    def pass_on(signum: int, _frame: FrameType | None) -> None:
        in_a_hurry = signum == signal.SIGINT and signum in received
        received.append(signum)
        for child in multiprocessing.active_children():
            child.kill() if in_a_hurry else child.terminate()

    with _handled_by(pass_on):
        yield received


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[dict]:
    """Hands the signals that ask to stop to a function for a while; yields who had them before.

    What runs in the background ignores SIGINT, and goes on doing so.
    """
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    signals = [signal.SIGTERM] if ignored else [signal.SIGTERM, signal.SIGINT]
    before = {each: signal.signal(each, handler) for each in signals}
    try:
        yield before
    finally:
        for each, own in before.items():
            signal.signal(each, own)
