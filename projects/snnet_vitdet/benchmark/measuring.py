"""Times of several functions, taken in turn so that all of them see the same machine."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

__all__ = ["Measurement", "bytes_kept_for_backward", "measure"]


@dataclass(frozen=True)
class Measurement:
    """What one function takes.

    Attributes:
        seconds: Of each repetition.
        peak_bytes: Highest memory of the device during a call; None on a CPU.
    """

    seconds: tuple[float, ...]
    peak_bytes: int | None

    @property
    def median(self) -> float:
        """Median of the repetitions in seconds."""
        return statistics.median(self.seconds)


def measure(
    functions: Mapping[str, Callable[[], object]],
    device: torch.device,
    repeats: int = 5,
    warmup: int = 2,
) -> dict[str, Measurement]:
    """Calls every function once in each round, so that a slow spell of the machine hits all alike.

    Args:
        functions: By name.
        device: Where they compute; on a GPU a call ends when its work is done.
        repeats: Rounds that count.
        warmup: Rounds before these.
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


def bytes_kept_for_backward(
    forward: Callable[[], object], parameters: Sequence[torch.Tensor] = ()
) -> int:
    """Memory that a forward pass keeps until the backward pass, on any device.

    Args:
        forward: Runs the forward pass.
        parameters: Tensors that are there anyhow.
    """
    there = {p.untyped_storage().data_ptr() for p in parameters}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = forward()  # alive, so that no storage is used twice
    total = sum(kept.values())
    del output
    return total
