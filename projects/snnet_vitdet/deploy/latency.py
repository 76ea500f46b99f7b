"""Time and memory of operating points on a device, and of any functions."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from snnet_vitdet.stitching import Cost, OperatingPoint

from .pictures import ImageLike
from .predictor import Predictor

__all__ = [
    "Measurement",
    "bytes_kept_for_backward",
    "measure",
    "measure_points",
    "peak_of_live_storages",
]

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


def bytes_kept_for_backward(forward: Callable[[], torch.Tensor]) -> int:
    """Memory that a forward pass keeps for the backward pass, on any device.

    Args:
        forward: Runs the forward pass. Its result and tensors from before do not count.
    """
    with _NewStorages() as new:
        output = forward()  # kept alive, as a backward pass would need it
    kept = {
        key: size for key, (storage, size) in new.seen.items() if size and not storage.expired()
    }
    kept.pop(StorageWeakRef(output.untyped_storage()).cdata, None)
    return sum(kept.values())


def peak_of_live_storages(function: Callable[[], object]) -> int:
    """Most bytes that results of a function's operations occupy at one time, on any device.

    Tensors from before do not count, nor does memory that an operation uses internally.
    """
    with _NewStorages(track_peak=True) as new:
        function()
    return new.peak


class _NewStorages(TorchDispatchMode):
    """Records the storages that are created by the operations inside it."""

    def __init__(self, track_peak: bool = False) -> None:
        """
        Args:
            track_peak: Whether to update ``peak`` after each operation.
        """
        super().__init__()
        self.peak = 0
        self._track_peak = track_peak
        # By address, which cannot be reused while the weak reference exists. A storage from before
        # has size 0.
        self.seen: dict[int, tuple[StorageWeakRef, int]] = {}

    def _record(self, values: object, created: bool) -> None:
        for tensor in tree_leaves(values):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                size = storage.nbytes() if created else 0
                self.seen.setdefault(reference.cdata, (reference, size))

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> object:
        kwargs = kwargs or {}
        self._record((args, kwargs), created=False)
        output = func(*args, **kwargs)
        self._record(output, created=True)
        if self._track_peak:
            # Without this, the addresses of freed storages could not be reused.
            freed = [key for key, (storage, _) in self.seen.items() if storage.expired()]
            for key in freed:
                del self.seen[key]
            self.peak = max(self.peak, sum(size for _, size in self.seen.values()))
        return output
