"""Memory that functions take on any device, counted from the operations of torch that they run."""

from collections.abc import Callable, Sequence

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["bytes_kept_for_backward", "peak_of_live_storages"]


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
