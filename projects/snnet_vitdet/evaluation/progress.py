"""How far a pass over images is, and what its time is spent on."""

import datetime
import time
from collections import defaultdict

__all__ = ["Progress"]


class Progress:
    """Counts images, and the time that this process spends on each part of the work.

    Reads the clock alone: it does not wait for a GPU. The part that waits for it has that time.

    Attributes:
        count: Number of images that are done since the start.
    """

    def __init__(self, total: int, before: int = 0) -> None:
        """
        Args:
            total: Number of all images.
            before: Number of images that were done before the start.
        """
        self.count = 0
        self._total, self._before = total, before
        self._seconds: dict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """Counts the time since the last lap, or the start, as time of a part."""
        now = time.perf_counter()
        self._seconds[part] += now - self._last
        self._last = now

    def __str__(self) -> str:
        """One line; at least one image must be done."""
        seconds, done = sum(self._seconds.values()), self._before + self.count
        per_image = seconds / self.count
        eta = datetime.timedelta(seconds=round(per_image * (self._total - done)))
        parts = sorted(self._seconds.items(), key=lambda item: -item[1])
        shares = ", ".join(f"{part} {100 * spent / seconds:.0f} %" for part, spent in parts)
        done = f"{done} of {self._total} images"
        return f"{done}, {per_image:.2f} s an image for all, ETA {eta}; {shares}"
