"""The loader of images to be scored: detectron2's, which names an image that cannot be used."""

from collections.abc import Callable, Iterator

from detectron2.data.build import trivial_batch_collator
from detectron2.data.common import DatasetFromList
from detectron2.data.samplers import InferenceSampler
from detectron2.utils.serialize import PicklableWrapper
from torch.utils.data import DataLoader, Dataset, Sampler

from .failures import DATA_ERRORS, Failure, failure_of, raise_failures
from .workers import worker_context

__all__ = ["EvaluationLoader", "build_evaluation_loader"]


def build_evaluation_loader(
    dataset: list[dict],
    mapper: Callable[[dict], dict],
    sampler: Sampler | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Callable[[list], object] | None = None,
) -> "EvaluationLoader":
    """Builds a loader as detectron2's ``build_detection_test_loader`` does.

    Args:
        dataset: detectron2 dataset dicts, the same list in every process.
        mapper: turns a dataset dict into a model input, such as ``CheckedMapper``.
        sampler: of the indexes of this process; by default an equal share of all.
        batch_size: images at once, of this process.
        num_workers: worker processes of this process; 0 maps in the process itself.
        collate_fn: makes a batch of a list of samples; by default, the list.
    """
    samples = _Samples(dataset, mapper)
    return EvaluationLoader(
        samples,
        batch_size=batch_size,
        sampler=InferenceSampler(len(samples)) if sampler is None else sampler,
        num_workers=num_workers,
        multiprocessing_context=worker_context(num_workers),
        collate_fn=trivial_batch_collator if collate_fn is None else collate_fn,
    )


class EvaluationLoader(DataLoader):
    """A loader that raises an InputError at an image that cannot be used, workers or not."""

    def __iter__(self) -> Iterator[list[dict]]:
        for batch in super().__iter__():
            raise_failures(batch)
            yield batch


class _Samples(Dataset):
    def __init__(self, dataset: list[dict], mapper: Callable[[dict], dict]) -> None:
        # Serialised into one buffer, which workers share.
        self._dicts = DatasetFromList(dataset, copy=False)
        self._mapper = PicklableWrapper(mapper)

    def __len__(self) -> int:
        return len(self._dicts)

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
