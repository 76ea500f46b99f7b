"""The files of a training's metrics, which a killed and resumed training goes on with."""

import contextlib
import json
import math
import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.utils.events import JSONWriter, TensorboardXWriter, get_event_storage

from snnet_vitdet.errors import cannot_write

__all__ = ["MetricsFile", "TensorBoardFile", "WriteMetrics"]


# What detectron2's printer works out while it prints, after the line is written.
_OF_THE_MOMENT = ("eta_seconds",)


class _MayFail:
    """A writer whose first failure ends the training in a sentence; it then writes no more.

    What follows at the end of a training, a last write and the closing, would hide the sentence.
    """

    _failed = False

    @contextlib.contextmanager
    def _writing(self, path: object) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._failed:
                self._failed = True
                raise cannot_write(path, error) from error


class MetricsFile(_MayFail, JSONWriter):
    """detectron2's ``metrics.json``, for a training that may be killed at any moment.

    It can be written before a checkpoint, which no line may be behind, and again after an
    evaluation in the same iteration: what is new is told by its name, not by its iteration. A loss
    is the median of the iterations since the line before, not of the last twenty: those a resumed
    training does not have. What is NaN, such as the AP of sizes that no object has, or infinite is
    null, so that every line is JSON to the letter.
    """

    def __init__(self, path: str | os.PathLike[str], period: int) -> None:
        """
        Args:
            path: The file; what is in it stays.
            period: Iterations between two lines.
        """
        self._path = Path(path)
        with self._writing(path):
            _end_last_line(self._path)
            super().__init__(str(path), window_size=period)
        self._written: dict[str, int] = {}

    def write(self) -> None:
        """Adds a line for each iteration that has anything new.

        Raises:
            InputError: If it cannot be written, the first time.
        """
        if self._failed:
            return
        lines = defaultdict(dict)
        latest = get_event_storage().latest_with_smoothing_hint(self._window_size)
        for name, (value, iteration) in latest.items():
            if name not in _OF_THE_MOMENT and iteration > self._written.get(name, -1):
                lines[iteration][name] = value if math.isfinite(value) else None
                self._written[name] = iteration
        with self._writing(self._path):
            for iteration, values in sorted(lines.items()):
                values["iteration"] = iteration
                text = json.dumps(values, sort_keys=True, allow_nan=False)
                self._file_handle.write(f"{text}\n")
            self._file_handle.flush()
            os.fsync(self._file_handle.fileno())

    def close(self) -> None:
        """Called at the end of a training, of whatever kind."""
        with self._writing(self._path):
            super().close()


class TensorBoardFile(_MayFail, TensorboardXWriter):
    """detectron2's events for TensorBoard."""

    def __init__(self, folder: str) -> None:
        """
        Args:
            folder: Where they are written.
        """
        super().__init__(folder)
        self._folder = folder

    def write(self) -> None:
        """Adds what is new.

        Raises:
            InputError: If it cannot be written, the first time.
        """
        if not self._failed:
            with self._writing(f"the events of TensorBoard in {self._folder}"):
                super().write()

    def close(self) -> None:
        """Called at the end of a training, of whatever kind."""
        with self._writing(f"the events of TensorBoard in {self._folder}"):
            super().close()


def _all_but_tensorboard(args: threading.ExceptHookArgs, before=threading.excepthook) -> None:
    # Its thread fails where the disk is full; what it has raised, the next write raises again.
    if not (
        isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboa")
    ):
        before(args)


threading.excepthook = _all_but_tensorboard


class WriteMetrics(HookBase):
    """Writes the file every so many iterations and after the last; to be before what saves them."""

    def __init__(self, file: MetricsFile, period: int) -> None:
        """
        Args:
            file: The file, which detectron2's PeriodicWriter closes.
            period: Iterations between two lines.
        """
        self._file = file
        self._period = period

    def after_step(self) -> None:
        """Writes, if it is time."""
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            self._file.write()


def _end_last_line(path: Path) -> None:
    """Ends a line that a loss of power has cut, so that it takes no other with it."""
    if path.is_file() and path.stat().st_size:
        with open(path, "r+b") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
