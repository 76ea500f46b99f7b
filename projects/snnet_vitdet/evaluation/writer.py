"""Writes detections in a process of its own, while the next images are detected in.

Encoding, packing and writing what 134 stitches detect in an image takes up to a tenth of a second.
The thread that launches the work of a GPU should not do it, and another thread would take Python's
lock from it.
"""

import multiprocessing
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from types import TracebackType

from snnet_vitdet.data.loader import worker_context

from .detections import Detections, DetectionStore
from .worker_processes import stay_with_parent, telling_of_a_kill

__all__ = ["DetectionWriter"]

# Bounds the memory. So many that writing a file does not stop the detection.
_BATCHES_WAITING = 4

_KILLED = ("writes the detections", "free memory")


class DetectionWriter:
    """Adds detections to a store in a process of its own, which starts with the first of them.

    An error there is raised by one of the next calls here, and nothing more is written: files
    without the images of the error would be taken for complete. Leaving the context waits for what
    was added, but does not write a file that is not full.
    """

    def __init__(self, store: DetectionStore) -> None:
        """
        Args:
            store: The store; it must have no detections in memory.
        """
        context = multiprocessing.get_context(worker_context(1))
        self._pool = ProcessPoolExecutor(1, context, _start, (store,))
        self._waiting: deque[Future] = deque()
        self._num_calls = 0

    def __enter__(self) -> "DetectionWriter":
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown()

    def add(self, batch: Sequence[Detections]) -> None:
        """Adds a batch, as :meth:`DetectionStore.add` does; waits while several are waiting.

        Raises:
            InputError: If a file cannot be written, or the process was killed.
        """
        self._call("add", batch)

    def flush(self) -> None:
        """Writes all that was added, and waits for it.

        Raises:
            InputError: As :meth:`add`.
        """
        self._call("flush")
        with telling_of_a_kill(*_KILLED):
            while self._waiting:
                self._waiting.popleft().result()

    def _call(self, method: str, *args: object) -> None:
        with telling_of_a_kill(*_KILLED):
            while self._waiting and (
                len(self._waiting) >= _BATCHES_WAITING or self._waiting[0].done()
            ):
                self._waiting.popleft().result()
            self._waiting.append(self._pool.submit(_run, self._num_calls, method, *args))
        self._num_calls += 1


# Of the other process: the store, and the number of calls that have succeeded.
_store: DetectionStore
_num_done = 0


def _start(store: DetectionStore) -> None:
    global _store
    _store = store
    stay_with_parent()


def _run(number: int, method: str, *args: object) -> None:
    global _num_done
    if number == _num_done:  # none before it has failed
        getattr(_store, method)(*args)
        _num_done += 1
