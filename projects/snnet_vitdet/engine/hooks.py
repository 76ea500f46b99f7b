"""Hooks of a training: stopping on a signal, freezing the anchors, writing metrics."""

import contextlib
import json
import logging
import math
import os
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import JSONWriter, TensorboardXWriter, get_event_storage
from torch import nn

from snnet_vitdet.errors import cannot_write

from .checkpointer import StrictCheckpointer
from .initialise import anchors_of
from .launch import handling_stop_signals

__all__ = [
    "STOPPED",
    "FreezeAnchors",
    "MetricsFile",
    "StopOnSignal",
    "TensorBoardFile",
    "WriteMetrics",
]

logger = logging.getLogger(__name__)

STOPPED = 128 + signal.SIGTERM
"""Exit status of a process that stopped when asked to, in the shell's convention."""


class StopOnSignal(HookBase):
    """At SIGTERM, ends the training with a checkpoint after the current iteration.

    So does Ctrl-C (SIGINT); pressed again, it ends the process at once.

    One of several processes getting the signal is enough. A training that resumes from the
    checkpoint goes on as if it had not stopped. Register this hook after hooks whose state is in
    the checkpoint and before hooks that take long; train inside :meth:`listening`.
    """

    def __init__(self, checkpointer: StrictCheckpointer) -> None:
        """
        Args:
            checkpointer: Saves the training; on all processes, of which the main one writes.
        """
        self._checkpointer = checkpointer
        self._asked: int | None = None
        self._at_once = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handles the signals inside a ``with`` block, in which the trainer trains."""
        with handling_stop_signals(self._ask) as self._before:
            yield

    def after_step(self) -> None:
        """Stops if any process was asked to.

        Raises:
            SystemExit: To stop, with status ``STOPPED``, or 130 for SIGINT.
        """
        # All processes have to stop after the same iteration.
        if any(comm.all_gather(self._asked)):
            self._stop()

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """For work between two iterations that changes nothing, such as an evaluation.

        Inside, a process that is asked to stop does so without waiting for the end of the work. The
        signal has to reach the main process, which writes the checkpoint.
        """
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _ask(self, signum: int, _frame: FrameType | None) -> None:
        self._asked = self._asked or signum
        # With several processes, the launcher asks again or kills.
        if signum == signal.SIGINT and comm.get_world_size() == 1:
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
            comm.synchronize()  # the first process to end takes the others with it
        sys.exit(128 + signum)


class FreezeAnchors(HookBase):
    """Freezes the parameters of the anchors until an iteration, and trains them from it on.

    Stitching layers, pyramid and heads train from the start. Whether the anchors are frozen depends
    on the iteration alone, so a resumed training goes on as if it had not stopped. Make the
    optimizer and the wrapper for several processes before: both take trainable parameters only. A
    frozen parameter has no gradient, so AdamW does not change it, weight decay included.
    """

    def __init__(self, model: nn.Module, iterations: int) -> None:
        """
        Args:
            model: The detector, not wrapped for several processes.
            iterations: The first iteration that trains the anchors; 0 freezes nothing.
        """
        # With parameter-efficient tuning, most of an anchor is never trained.
        self._parameters = [
            parameter
            for anchor in anchors_of(model).values()
            for parameter in anchor.parameters()
            if parameter.requires_grad
        ]
        self._iterations = iterations
        self._frozen = False

    def before_step(self) -> None:
        """Freezes or unfreezes as the iteration asks for."""
        frozen = self.trainer.iter < self._iterations
        if frozen != self._frozen:
            what = "are frozen until iteration %d" if frozen else "are trained from iteration %d on"
            logger.info(f"The anchors {what}.", self._iterations)
        self._set(frozen)

    def after_train(self) -> None:
        """Unfreezes, also if the training ends frozen or in an error."""
        self._set(False)

    def _set(self, frozen: bool) -> None:
        if frozen != self._frozen:
            for parameter in self._parameters:
                parameter.requires_grad_(not frozen)
            self._frozen = frozen


class _FailsOnce:
    """Mixin for writers: the first OSError becomes an InputError; then nothing is written.

    The end of a training writes again and closes its writers, which would hide the first error.
    """

    _path: object
    _failed = False

    def write(self) -> None:
        """Writes what is new.

        Raises:
            InputError: If it cannot be written, the first time.
        """
        if not self._failed:
            with self._reported():
                super().write()

    def close(self) -> None:
        """Called at the end of a training, also after an error."""
        with self._reported():
            super().close()

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._failed:
                self._failed = True
                raise cannot_write(self._path, error) from error


class TensorBoardFile(_FailsOnce, TensorboardXWriter):
    """detectron2's events for TensorBoard, with one sentence where the disk is full."""

    def __init__(self, folder: str) -> None:
        """
        Args:
            folder: Folder of the event files.
        """
        super().__init__(folder)
        self._path = f"the events of TensorBoard in {folder}"


class _Lines(JSONWriter):
    """detectron2's JSONWriter, by name of the metric instead of by iteration."""

    # detectron2's printer computes it while it prints, after the line is written.
    _LEFT_OUT = ("eta_seconds",)

    def write(self) -> None:
        lines = defaultdict(dict)
        latest = get_event_storage().latest_with_smoothing_hint(self._window_size)
        for name, (value, iteration) in latest.items():
            if name not in self._LEFT_OUT and iteration > self._written.get(name, -1):
                lines[iteration][name] = value if math.isfinite(value) else None
                self._written[name] = iteration
        for iteration, values in sorted(lines.items()):
            values["iteration"] = iteration
            self._file_handle.write(f"{json.dumps(values, sort_keys=True, allow_nan=False)}\n")
        self._file_handle.flush()
        os.fsync(self._file_handle.fileno())


class MetricsFile(_FailsOnce, _Lines):
    """detectron2's ``metrics.json``, for a training that may be killed at any moment.

    It can be written before a checkpoint, which must not be ahead of it, and again after an
    evaluation in the same iteration: a metric is new by its name, not by its iteration. A loss is
    the median of the iterations since the line before; detectron2 takes the last twenty, which a
    resumed training does not have. NaN (such as the AP of sizes that no object has) and infinite
    values are null, so that every line is valid JSON.
    """

    def __init__(self, path: str | os.PathLike[str], period: int) -> None:
        """
        Args:
            path: The file; its content stays.
            period: Iterations between two lines.
        """
        self._path = Path(path)
        self._written: dict[str, int] = {}
        with self._reported():
            _end_last_line(self._path)
            super().__init__(str(path), window_size=period)


def _end_last_line(path: Path) -> None:
    """Ends a line that a loss of power has cut, so that the next line stays readable."""
    if path.is_file() and path.stat().st_size:
        with open(path, "r+b") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


class WriteMetrics(HookBase):
    """Writes the metrics file periodically and at the end; register before checkpoints."""

    def __init__(self, file: MetricsFile, period: int) -> None:
        """
        Args:
            file: The file, which detectron2's PeriodicWriter closes.
            period: Iterations between two lines.
        """
        self._file = file
        self._period = period

    def after_step(self) -> None:
        """Writes if the iteration is one of the period, or the last."""
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            self._file.write()


def _all_but_tensorboard(args: threading.ExceptHookArgs, before=threading.excepthook) -> None:
    # TensorBoard's thread fails where the disk is full; the next write raises the same error.
    if not (
        isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboa")
    ):
        before(args)


threading.excepthook = _all_but_tensorboard
