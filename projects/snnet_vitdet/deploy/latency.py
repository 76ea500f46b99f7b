"""Time and memory of operating points on a device, and of any functions."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from snnet_vitdet.memory import peak_of_live_storages
from snnet_vitdet.stitching import Cost, OperatingPoint

from .pictures import ImageLike
from .predictor import Predictor

__all__ = ["Measurement", "measure", "measure_points"]

_BYTES_OF_A_WEIGHT = 4


def measure_points(
    predictor: Predictor,
    points: Sequence[OperatingPoint],
    cost_of: Callable[[OperatingPoint], Cost],
    images: Sequence[ImageLike],
    repeats: int = 10,
    warmup: int = 2,
) -> list[dict[str, object]]:
    """Measures each operating point once per round, so that a slow spell affects all alike.

    The time is that of the model, from prepared images to detections, divided by the number of
    images. Masks are not pasted into the images: that happens when they are used. The memory is
    what the point alone would need: its stitch's own weights in float32 and the peak of all other
    memory. On a CPU, that peak counts the tensors of torch's operations.

    Args:
        predictor: The model on its device; its point stays in effect.
        points: The points to measure.
        cost_of: Returns the cost of a point.
        images: A batch of images.
        repeats: Number of rounds that count.
        warmup: Number of rounds before these.

    Returns:
        A row per point: ``stitch_id``, ``name``, ``latency_ms`` (median), ``latency_ms_p90`` and
        ``memory_mb``.
    """
    # An image is prepared alike for all points of an image size.
    prepared = {
        point.image_size: [predictor.prepare(image, point.name) for image in images]
        for point in points
    }
    calls = {
        point.name: partial(predictor.detect, prepared[point.image_size], point.name)
        for point in points
    }
    results = measure(calls, predictor.device, repeats, warmup)
    there = sum(p.untyped_storage().nbytes() for p in predictor.model.parameters())
    rows = []
    for point in points:
        measured, call = results[point.name], calls[point.name]
        milliseconds = [1e3 * s / len(images) for s in measured.seconds]
        peak = measured.peak_bytes
        beside = peak_of_live_storages(call) if peak is None else max(0, peak - there)
        memory = beside + _BYTES_OF_A_WEIGHT * cost_of(point).params
        rows.append(
            {
                "stitch_id": point.stitch.id,
                "name": point.name,
                "latency_ms": statistics.median(milliseconds),
                "latency_ms_p90": float(np.quantile(milliseconds, 0.9)),
                "memory_mb": memory / 2**20,
            }
        )
    return rows


@dataclass(frozen=True)
class Measurement:
    """Time and memory of one function.

    Attributes:
        seconds: Duration of each call that counts.
        peak_bytes: Highest memory use of the device during a call; None on a CPU.
    """

    seconds: tuple[float, ...]
    peak_bytes: int | None

    @property
    def median(self) -> float:
        """Median duration in seconds."""
        return statistics.median(self.seconds)


def measure(
    functions: Mapping[str, Callable[[], object]],
    device: torch.device,
    repeats: int = 5,
    warmup: int = 2,
) -> dict[str, Measurement]:
    """Calls each function once per round, so that a slow spell of the machine affects all alike.

    Args:
        functions: The functions by name.
        device: The device that they use. On a GPU, a call ends when its work is done.
        repeats: Number of rounds that count.
        warmup: Number of rounds before these.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    peaks: dict[str, int | None] = dict.fromkeys(functions)
    for turn in range(warmup + repeats):
        for name, function in functions.items():
            if device.type == "cuda":
                torch.cuda.synchronize(device)
                torch.cuda.reset_peak_memory_stats(device)
            start = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
                peak = torch.cuda.max_memory_allocated(device)
                peaks[name] = max(peaks[name] or 0, peak)
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: Measurement(tuple(seconds[name]), peaks[name]) for name in functions}
