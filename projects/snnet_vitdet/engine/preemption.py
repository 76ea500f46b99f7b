"""Trainings that are asked to stop: by a scheduler that needs the machine, by kill, by timeout."""

import logging
import multiprocessing
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import HookBase
from detectron2.utils import comm

__all__ = ["STOPPED", "StopOnSignal", "passing_on_to_children"]

logger = logging.getLogger(__name__)

STOPPED = 128 + signal.SIGTERM
"""Exit status of a process that was asked to stop and did, as shells give it."""


class StopOnSignal(HookBase):
    """Ends the training with a checkpoint at SIGTERM, after the iteration that is under way.

    It is enough if one of several processes gets the signal. The checkpoint is one like any other,
    so a training that is resumed goes on as if it had not stopped. Register this hook behind those
    whose state is in the checkpoint, and before what takes long.
    """

    def __init__(self, checkpointer: DetectionCheckpointer) -> None:
        """
        Args:
            checkpointer: Saves the training; on all processes, of which the main one writes.
        """
        self._checkpointer = checkpointer
        self._asked = self._at_once = False

    def before_train(self) -> None:
        """Takes the signal over."""
        self._before = signal.signal(signal.SIGTERM, self._ask)

    def after_step(self) -> None:
        """Stops if any process was asked to.

        Raises:
            SystemExit: To stop, with status ``STOPPED``.
        """
        # All processes have to agree on the iteration; between two of them each may have it.
        if any(comm.all_gather(self._asked)):
            self._stop()

    def after_train(self) -> None:
        """Gives the signal back."""
        signal.signal(signal.SIGTERM, self._before)

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

    def _ask(self, _signum: int, _frame: FrameType | None) -> None:
        self._asked = True
        if self._at_once:
            self._at_once = False
            self._stop(alone=True)

    def _stop(self, alone: bool = False) -> None:
        iteration = self.trainer.iter
        # Named as detectron2's periodic checkpoints are.
        self._checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        logger.warning(
            "Asked to stop (SIGTERM): saved after iteration %d; --resume goes on from there.",
            iteration,
        )
        if not alone:
            # The first process to end takes the others with it.
            comm.synchronize()
        sys.exit(STOPPED)


@contextmanager
def passing_on_to_children() -> Iterator[None]:
    """Hands SIGTERM on to the processes that this one has started, and waits for them as before."""

    def pass_on(_signum: int, _frame: FrameType | None) -> None:
        for child in multiprocessing.active_children():
            child.terminate()

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
