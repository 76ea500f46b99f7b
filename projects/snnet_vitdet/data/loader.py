"""Loaders of training and of evaluation, which name the image that cannot be used.

A training sample is a pure function of (seed, position), so that a training resumes exactly.
"""

import contextlib
import hashlib
import logging
import math
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from detectron2.data.build import trivial_batch_collator
from detectron2.data.common import DatasetFromList
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from detectron2.utils.serialize import PicklableWrapper
from torch.utils.data import DataLoader, Dataset, Sampler

from snnet_vitdet.errors import InputError

from .mapper import DATA_ERRORS, Failure, failure_of, raise_failures

__all__ = [
    "EvaluationLoader",
    "TrainLoader",
    "build_evaluation_loader",
    "build_train_loader",
    "leave_sigterm_to_parent",
    "worker_context",
]

logger = logging.getLogger(__name__)

_MAX_TRIES = 10

Mapper = Callable[[dict], dict | None]


def build_train_loader(
    dataset: list[dict], mapper: Mapper, *, total_batch_size: int, num_workers: int, seed: int = 0
) -> "TrainLoader":
    """Builds the training loader of this process.

    Args:
        dataset: detectron2 dataset dicts, the same list in every process.
        mapper: Turns a dataset dict into a model input, such as :class:`.CheckedMapper`, or returns
            None to have another sample drawn in its place.
        total_batch_size: Images per iteration over all processes, a multiple of their number.
        num_workers: Worker processes of this process; 0 maps in the process itself.
        seed: Fixes the order of the images and all random choices of the mapper.

    Raises:
        InputError: The data set is empty, the batch cannot be divided, or the mapper cannot take
            the masks of the data.
    """
    if not dataset:
        raise InputError("The training set is empty: give it at least one annotated image.")
    world = comm.get_world_size()
    if total_batch_size < 1 or total_batch_size % world:
        raise InputError(
            f"The total batch size is {total_batch_size}, but must be a multiple of the number of "
            f"processes, {world}: change dataloader.train.total_batch_size or the number of GPUs."
        )
    _check_mask_format(dataset, mapper)
    return TrainLoader(dataset, mapper, seed, total_batch_size, num_workers, comm.get_rank(), world)


def build_evaluation_loader(
    dataset: list[dict],
    mapper: Mapper,
    sampler: Sampler | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable[[list], object] | None = None,
) -> "EvaluationLoader":
    """Builds a loader as detectron2's ``build_detection_test_loader`` does.

    Args:
        dataset: detectron2 dataset dicts, the same list in every process.
        mapper: Turns a dataset dict into a model input, such as :class:`.CheckedMapper`.
        sampler: Indices of this process; an equal share of all by default.
        batch_size: Images per batch of this process.
        num_workers: Worker processes of this process; 0 maps in the process itself.
        collate_fn: Makes a batch of a list of samples; the list itself by default.
    """
    samples = _EvaluationSamples(dataset, mapper)
    return EvaluationLoader(
        samples,
        batch_size=batch_size,
        sampler=InferenceSampler(len(samples)) if sampler is None else sampler,
        num_workers=num_workers,
        multiprocessing_context=worker_context(num_workers),
        collate_fn=collate_fn or trivial_batch_collator,
    )


class EvaluationLoader(DataLoader):
    """A DataLoader that raises an InputError at an image that cannot be used, workers or not."""

    def __iter__(self) -> Iterator[list[dict]]:
        for batch in super().__iter__():
            raise_failures(batch)
            yield batch


class TrainLoader:
    """Endless batches, each a list of mapped dicts.

    The samples of all processes are one sequence of positions 0, 1, 2, …; every ``len(dataset)``
    positions are a permutation of the data set. Iteration i covers positions i·B … (i+1)·B-1, of
    which each process takes its contiguous share. A sample depends on the seed and its position
    alone, not on the number of workers or processes, nor on where a run was resumed.

    Attributes:
        start_iteration: The iteration of the first batch; set it before iterating to resume.
    """

    def __init__(
        self,
        dataset: list[dict],
        mapper: Mapper,
        seed: int,
        total_batch_size: int,
        num_workers: int,
        rank: int = 0,
        world: int = 1,
    ):
        self.start_iteration = 0
        self._image_sizes: list[int] = []
        self._samples = _TrainSamples(dataset, mapper, seed)
        self._total_batch_size = total_batch_size
        self._num_workers = num_workers
        self._rank = rank
        self._world = world

    @property
    def num_images(self) -> int:
        """Number of images of the data set, which is an epoch."""
        return len(self._samples)

    def vary_image_size(self, sizes: Sequence[int], mappers: Mapping[int, Mapper]) -> None:
        """Draws an image size for each iteration, and maps its images to this size.

        Args:
            sizes: The image sizes. One that is there twice is drawn twice as often.
            mappers: The mapper of each image size, in place of the loader's own.
        """
        self._image_sizes = list(sizes)
        self._samples.mappers = {size: PicklableWrapper(each) for size, each in mappers.items()}

    def image_size_at(self, iteration: int) -> int | None:
        """The image size of an iteration, the same in all processes; None if it does not vary."""
        sizes = self._image_sizes
        if not sizes:
            return None
        return sizes[_hash64(self._samples.seed, "image_size", iteration) % len(sizes)]

    def __iter__(self) -> Iterator[list[dict]]:
        loader = DataLoader(
            self._samples,
            batch_sampler=self._keys(self.start_iteration),
            num_workers=self._num_workers,
            collate_fn=trivial_batch_collator,
            worker_init_fn=leave_sigterm_to_parent,
            multiprocessing_context=worker_context(self._num_workers),
            # Its own generator: by default DataLoader draws from the global one, which is the
            # trainer's.
            generator=torch.Generator().manual_seed(self._samples.seed),
        )
        for batch in loader:
            raise_failures(batch)
            yield batch

    def _keys(self, iteration: int) -> Iterator[list[tuple[int, int, int | None]]]:
        """Position, index into the data set and image size of the samples of each batch."""
        share = self._total_batch_size // self._world
        order, epoch = None, -1
        while True:
            start = iteration * self._total_batch_size + self._rank * share
            size, keys = self.image_size_at(iteration), []
            for position in range(start, start + share):
                position_epoch, place = divmod(position, len(self._samples))
                if position_epoch != epoch:
                    epoch = position_epoch
                    order = _permutation(len(self._samples), self._samples.seed, "epoch", epoch)
                keys.append((position, int(order[place]), size))
            yield keys
            iteration += 1

    def fit_samples(
        self, num_samples: int, mapper: Mapper | None = None, *, held_out: bool = False
    ) -> Iterator[dict]:
        """Maps a random choice of the data once, for the least-squares initialisation.

        Args:
            num_samples: Images over all processes, at most those of the data set.
            mapper: Used in place of the loader's own, such as one without augmentations.
            held_out: Map other samples than those of the choice, a tenth as many, to judge the
                fit. If the data set has no others, they are its images again, in other crops if
                the mapper draws crops.

        Yields:
            The mapped dicts of this process: every ``world``-th of the choice, from ``rank`` on.

        Raises:
            InputError: An image cannot be used.
        """
        start, stop = 0, min(num_samples, len(self._samples))
        if held_out:
            start, stop = stop, stop + math.ceil(stop / 10)
        elif num_samples > stop:
            logger.info("There are %d images, fewer than %d.", stop, num_samples)
        order = _permutation(len(self._samples), self._samples.seed, "fit", 0)
        for position in range(start + self._rank, stop, self._world):
            index = int(order[position % len(order)])
            sample = self._samples.map(position, index, purpose="fit", mapper=mapper)
            raise_failures([sample])
            yield sample


class _Samples(Dataset):
    """Dataset dicts and their mapper."""

    def __init__(self, dataset: list[dict], mapper: Mapper) -> None:
        # Serialised into one buffer, which workers share: reading Python objects would copy them
        # into every worker by their reference counts.
        self._dicts = DatasetFromList(dataset, copy=False, serialize=True)
        self._mapper = PicklableWrapper(mapper)

    def __len__(self) -> int:
        return len(self._dicts)


class _EvaluationSamples(_Samples):
    """Maps an index to its sample."""

    def __getitem__(self, index: int) -> dict | Failure:
        record = self._dicts[index]
        try:
            sample = self._mapper(record)
        except DATA_ERRORS as error:
            return failure_of(record, error, "test")
        if sample is None:
            # detectron2's loader would score another image in its place.
            return Failure(
                f"The mapper of the test data gives None for {record.get('file_name')}, but every "
                "image has to be scored: make it give a sample."
            )
        return sample


class _TrainSamples(_Samples):
    """Maps (position, index, image size) to samples, each under a random state of its own.

    Attributes:
        mappers: The mapper of each image size; none if the size does not vary.
    """

    def __init__(self, dataset: list[dict], mapper: Mapper, seed: int) -> None:
        super().__init__(dataset, mapper)
        self.seed = seed
        self.mappers: dict[int, Mapper] = {}

    def __getitem__(self, key: tuple[int, int, int | None]) -> dict | Failure:
        position, index, size = key
        return self.map(position, index, "train", self.mappers.get(size))

    def map(
        self, position: int, index: int, purpose: str, mapper: Mapper | None = None
    ) -> dict | Failure:
        """The sample at a position of the named sequence of random states."""
        mapper = mapper or self._mapper
        for attempt in range(_MAX_TRIES):
            random_seed = _hash64(self.seed, purpose, position, attempt)
            if attempt > 0:
                index = random_seed % len(self._dicts)
            record = self._dicts[index]
            try:
                with _random_state(random_seed):
                    sample = mapper(record)
            except DATA_ERRORS as error:
                return failure_of(record, error, "training")
            if sample is not None:
                return sample
        return Failure(
            f"The mapper of the training data rejected {_MAX_TRIES} samples in a row, the last one "
            f"{record.get('file_name')}: check what it returns None for."
        )


@contextlib.contextmanager
def _random_state(seed: int) -> Iterator[None]:
    """Seeds the global generators that augmentations draw from, and restores them."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    # Not torch.manual_seed, which would seed the GPUs as well.
    torch_state = torch.default_generator.get_state()
    try:
        np.random.seed([seed & 0xFFFFFFFF, seed >> 32])  # noqa: NPY002 - detectron2 draws from it
        random.seed(seed)
        torch.default_generator.manual_seed(seed >> 1)
        yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
        torch.default_generator.set_state(torch_state)


def _permutation(size: int, seed: int, purpose: str, number: int) -> np.ndarray:
    return np.random.default_rng(_hash64(seed, purpose, number)).permutation(size)


def _hash64(*parts: int | str) -> int:
    """A 64-bit hash that is the same in every process and version of Python."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _check_mask_format(dataset: list[dict], mapper: Mapper) -> None:
    """Refuses RLE masks with a mapper that takes polygons, which would fail at a random sample."""
    if not getattr(mapper, "use_instance_mask", False):
        return
    if getattr(mapper, "instance_mask_format", None) != "polygon":
        return
    for record in dataset:
        for annotation in record.get("annotations", ()):
            if isinstance(annotation.get("segmentation"), dict) and not annotation.get("iscrowd"):
                raise InputError(
                    f"The training data have RLE masks (first in {record.get('file_name')}), but "
                    'the mapper takes polygons: set instance_mask_format="bitmask" in '
                    "dataloader.train.mapper."
                )


def worker_context(num_workers: int) -> str | None:
    """How a loader starts its workers, for torch's ``multiprocessing_context``.

    They are forked where that is usual (Linux). The processes of a training are spawned, and by
    default their workers would be, too: each would import torch and detectron2 again, which takes
    longer than many evaluations.
    """
    return "fork" if num_workers and sys.platform == "linux" else None


def leave_sigterm_to_parent(_worker: int = 0) -> None:
    """Lets SIGTERM end this process only if its parent sends it, and SIGINT not at all.

    Schedulers send SIGTERM to all processes of a job, and terminals SIGINT. A worker that ended at
    once would end the training in the middle of an iteration, before it has saved; the trainer ends
    its workers itself. For ``worker_init_fn`` of torch's DataLoader. Without effect where the
    system does not tell who sent a signal (macOS).
    """
    if not hasattr(signal, "sigwaitinfo"):
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Blocked in all threads, it waits for the thread that asks who sent it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    while True:
        if signal.sigwaitinfo({signal.SIGTERM}).si_pid == os.getppid():
            os._exit(0)  # as torch's own handler, which is not reached
