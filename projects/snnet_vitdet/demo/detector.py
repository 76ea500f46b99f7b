"""One model for all visitors of a page, each at the stitch of their own."""

import threading
import time
from dataclasses import dataclass

import numpy as np

from snnet_vitdet.deploy import Predictor, draw_detections

from .exported import ExportedStitches
from .pictures import MAX_SIDE

__all__ = ["Detected", "SharedDetector"]

# A picture of fewer pixels is enlarged, or names would not fit into it.
_MIN_SIDE = 448


@dataclass(frozen=True)
class Detected:
    """What was found in a picture.

    Attributes:
        picture: (H, W, 3), RGB, uint8, with boxes, masks, names and scores drawn in.
        objects: Class and score of each object, the surest first.
        milliseconds: Time from the decoded picture to the objects.
    """

    picture: np.ndarray
    objects: tuple[tuple[str, float], ...]
    milliseconds: float


class SharedDetector:
    """Detects for one visitor at a time: the stitch in effect is a state of the model."""

    def __init__(self, predictor: Predictor | ExportedStitches) -> None:
        """
        Args:
            predictor: It is taken over: only this object may use it from now on.
        """
        predictor.set_score_threshold(0.0)
        self._predictor = predictor
        self._lock = threading.Lock()

    def warm_up(self, stitch_id: int) -> None:
        """Runs a stitch once: the first run of a process is slower than all that follow."""
        self.detect(np.full((64, 64, 3), 128, dtype=np.uint8), stitch_id, 1.0)

    def detect(self, image: np.ndarray, stitch_id: int, min_score: float) -> Detected:
        """Detects with a stitch, whatever other threads ask for meanwhile.

        Args:
            image: (H, W, 3), RGB, uint8.
            stitch_id: Which stitch.
            min_score: Objects of lower scores are left out.
        """
        short, long = sorted(image.shape[:2])
        min_side = min(_MIN_SIDE, MAX_SIDE * short // long)
        with self._lock:
            self._predictor.set_stitch(stitch_id)
            start = time.perf_counter()
            found = self._predictor(image)
            milliseconds = 1e3 * (time.perf_counter() - start)
            found = found[found.scores >= min_score]
            # matplotlib, which draws, is not made for several threads either.
            picture = draw_detections(image, found, min_side=min_side)
        pairs = zip(found.class_names.tolist(), found.scores.tolist(), strict=True)
        objects = tuple(sorted(pairs, key=lambda pair: -pair[1]))
        return Detected(picture, objects, milliseconds)
