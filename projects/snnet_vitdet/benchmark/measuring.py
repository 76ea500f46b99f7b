"""Times of several functions, taken in turn so that all of them see the same machine; memory."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Measurement", "bytes_kept_for_backward", "measure", "peak_of_live_storages"]


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


def bytes_kept_for_backward(forward: Callable[[], torch.Tensor]) -> int:
    """Memory that a forward pass leaves behind for the backward pass, on any device.

    Args:
        forward: Runs the forward pass. Neither what it returns nor what was there before counts.
    """
    with _NewStorages() as new:
        output = forward()  # alive, so that the backward pass could follow
    kept = {
        key: size for key, (storage, size) in new.seen.items() if size and not storage.expired()
    }
    kept.pop(StorageWeakRef(output.untyped_storage()).cdata, None)
    return sum(kept.values())


def peak_of_live_storages(function: Callable[[], object]) -> int:
    """Most bytes that are alive at a time of what the operations of a function make, any device.

    What was there before does not count, nor what an operation needs inside itself.
    """
    with _NewStorages(watch=True) as new:
        function()
    return new.peak


class _NewStorages(TorchDispatchMode):
    """Notes the storages that operations inside it make."""

    def __init__(self, watch: bool = False) -> None:
        """
        Args:
            watch: Whether to sum up after every operation what is alive, for ``peak``.
        """
        super().__init__()
        self.peak = 0
        self._watch = watch
        # By address, which is not used again while the weak reference lives; 0 bytes for one that
        # was there before.
        self.seen: dict[int, tuple[StorageWeakRef, int]] = {}

    def _note(self, values: object, made: bool) -> None:
        for tensor in tree_leaves(values):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                size = storage.nbytes() if made else 0
                self.seen.setdefault(reference.cdata, (reference, size))

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> object:
        kwargs = kwargs or {}
        self._note((args, kwargs), made=False)
        output = func(*args, **kwargs)
        self._note(output, made=True)
        if self._watch:
            # What has gone is dropped, or its address could not be used again.
            gone = [key for key, (storage, size) in self.seen.items() if storage.expired()]
            for key in gone:
                del self.seen[key]
            self.peak = max(self.peak, sum(size for _, size in self.seen.values()))
        return output
