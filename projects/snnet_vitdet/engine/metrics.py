"""The file of a training's metrics, which a killed and resumed training goes on with."""

import json
import os
from collections import defaultdict
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.utils.events import JSONWriter, get_event_storage

__all__ = ["MetricsFile", "WriteMetrics"]


# What detectron2's printer works out while it prints, after the line is written.
_OF_THE_MOMENT = ("eta_seconds",)


class MetricsFile(JSONWriter):
    """detectron2's ``metrics.json``, for a training that may be killed at any moment.

    It can be written before a checkpoint, which no line may be behind, and again after an
    evaluation in the same iteration: what is new is told by its name, not by its iteration. A loss
    is the median of the iterations since the line before, not of the last twenty: those a resumed
    training does not have.
    """

    def __init__(self, path: str | os.PathLike[str], period: int) -> None:
        """
        Args:
            path: The file; what is in it stays.
            period: Iterations between two lines.
        """
        _end_last_line(Path(path))
        super().__init__(str(path), window_size=period)
        self._written: dict[str, int] = {}

    def write(self) -> None:
        """Adds a line for each iteration that has anything new."""
        lines = defaultdict(dict)
        latest = get_event_storage().latest_with_smoothing_hint(self._window_size)
        for name, (value, iteration) in latest.items():
            if name not in _OF_THE_MOMENT and iteration > self._written.get(name, -1):
                lines[iteration][name] = value
                self._written[name] = iteration
        for iteration, values in sorted(lines.items()):
            text = json.dumps({**values, "iteration": iteration}, sort_keys=True)
            self._file_handle.write(f"{text}\n")
        self._file_handle.flush()
        os.fsync(self._file_handle.fileno())


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
