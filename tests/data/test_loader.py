import itertools
import math
import os
import random

import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from bad_images import REFUSED
from detectron2.data import DatasetMapper, build_detection_test_loader
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.utils import comm
from torch.utils.data import get_worker_info

from snnet_vitdet.data import (
    CheckedMapper,
    EvaluationLoader,
    build_evaluation_loader,
    build_train_loader,
    coco_dicts,
    generate_shapes,
)
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation.one_pass import batches_from


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return generate_shapes(str(tmp_path_factory.mktemp("data") / "scenes"), 7, 1, 96)


@pytest.fixture
def dataset(scenes):
    return coco_dicts(scenes.train_json, scenes.train_images, filter_empty=False)


@pytest.fixture
def mapper():
    """As training uses it, RLE and polygon masks mixed, with random scale, crop and flip."""
    return DatasetMapper(
        is_train=True,
        augmentations=[
            T.ResizeScale(min_scale=0.5, max_scale=2.0, target_height=64, target_width=64),
            T.FixedSizeCrop((64, 64)),
            T.RandomFlip(),
        ],
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="bitmask",
        recompute_boxes=True,
    )


def as_process(monkeypatch, rank, world):
    monkeypatch.setattr(comm, "get_rank", lambda: rank)
    monkeypatch.setattr(comm, "get_world_size", lambda: world)


def take(loader, count):
    return list(itertools.islice(loader, count))


def fit_samples(dataset, mapper, count, **options):
    loader = build_train_loader(dataset, mapper, total_batch_size=2, num_workers=0)
    return loader.fit_samples(count, **options)


def names(batch):
    return [os.path.basename(sample["file_name"]) for sample in batch]


def assert_same_samples(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a["file_name"] == b["file_name"]
        torch.testing.assert_close(a["image"], b["image"], rtol=0, atol=0)
        assert len(a["instances"]) == len(b["instances"])
        if len(a["instances"]) == 0:
            continue
        torch.testing.assert_close(
            a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor, rtol=0, atol=0
        )
        assert torch.equal(a["instances"].gt_masks.tensor, b["instances"].gt_masks.tensor)
        assert torch.equal(a["instances"].gt_classes, b["instances"].gt_classes)


def assert_same_batches(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert_same_samples(a, b)


def random_mapper(record):
    """Draws from every generator that an augmentation may draw from."""
    return {
        "file_name": record["file_name"],
        "drawn": (np.random.random(), random.random(), torch.rand(()).item()),  # noqa: NPY002
    }


def reject_all(record):
    return None


def reject_first_image(record):
    return None if record["file_name"].endswith("000001.jpg") else random_mapper(record)


def raise_unpicklable(record):
    class LocalError(ValueError):
        pass

    raise LocalError("odd")


def test_batches_are_the_same_for_no_and_two_workers(dataset, mapper):
    alone = build_train_loader(dataset, mapper, total_batch_size=3, num_workers=0)
    helped = build_train_loader(dataset, mapper, total_batch_size=3, num_workers=2)
    assert_same_batches(take(alone, 5), take(helped, 5))


def test_two_processes_share_the_samples_of_one(dataset, mapper, monkeypatch):
    whole = take(build_train_loader(dataset, mapper, total_batch_size=4, num_workers=0), 4)
    shares = []
    for rank in (0, 1):
        as_process(monkeypatch, rank, 2)
        loader = build_train_loader(dataset, mapper, total_batch_size=4, num_workers=0)
        shares.append(take(loader, 4))
    assert_same_batches([a + b for a, b in zip(*shares, strict=True)], whole)


def test_a_resumed_loader_continues_exactly(dataset, mapper):
    whole = take(build_train_loader(dataset, mapper, total_batch_size=3, num_workers=0), 7)
    resumed = build_train_loader(dataset, mapper, total_batch_size=3, num_workers=0)
    resumed.start_iteration = 4
    assert_same_batches(take(resumed, 3), whole[4:])


def test_each_iteration_has_an_image_size_of_its_own(dataset, mapper, monkeypatch):
    """The same in every process, with workers or without, and after a resume."""
    mappers = {
        size: DatasetMapper(
            is_train=True,
            augmentations=[T.Resize((size, size))],
            image_format="RGB",
            use_instance_mask=True,
            instance_mask_format="bitmask",
        )
        for size in (32, 48, 64)
    }

    def sizes_of(rank, world, start=0, num_workers=0):
        as_process(monkeypatch, rank, world)
        loader = build_train_loader(
            dataset, mapper, total_batch_size=4, num_workers=num_workers, seed=3
        )
        loader.vary_image_size(list(mappers), mappers)
        loader.start_iteration = start
        found = []
        for iteration, batch in enumerate(take(loader, 8), start=start):
            (shape,) = {tuple(sample["image"].shape[1:]) for sample in batch}
            assert shape == (loader.image_size_at(iteration),) * 2
            found.append(shape[0])
        return found

    sizes = sizes_of(0, 1)
    assert len(set(sizes)) > 1
    assert sizes_of(0, 2) == sizes_of(1, 2) == sizes_of(0, 1, num_workers=2) == sizes
    assert sizes_of(1, 2, start=3)[:5] == sizes[3:]
    loader = build_train_loader(dataset, mapper, total_batch_size=2, num_workers=0, seed=3)
    assert loader.image_size_at(0) is None
    loader.vary_image_size(list(mappers), mappers)
    draws = [loader.image_size_at(i) for i in range(3000)]
    assert all(900 < draws.count(size) < 1100 for size in mappers)
    # A size that is there twice is drawn twice as often.
    loader.vary_image_size([32, 48, 64, 64], mappers)
    draws = [loader.image_size_at(i) for i in range(4000)]
    assert 900 < draws.count(32) < 1100 and 1900 < draws.count(64) < 2100
    as_process(monkeypatch, 0, 1)
    loader = build_train_loader(dataset, mapper, total_batch_size=2, num_workers=0)
    loader.vary_image_size(list(mappers), mappers)
    # Samples for the fit keep the loader's own size.
    assert {s["image"].shape[1] for s in loader.fit_samples(2)} == {64}


def test_every_epoch_is_another_permutation_of_the_data(dataset):
    loader = build_train_loader(dataset, random_mapper, total_batch_size=2, num_workers=0)
    order = sum((names(batch) for batch in take(loader, 7)), [])
    everything = sorted(os.path.basename(record["file_name"]) for record in dataset)
    assert sorted(order[:7]) == sorted(order[7:]) == everything
    assert order[:7] != order[7:]


def test_another_seed_gives_another_order_and_other_draws(dataset):
    batches = [
        take(
            build_train_loader(dataset, random_mapper, total_batch_size=7, num_workers=0, seed=s), 1
        )
        for s in (0, 1)
    ]
    (first,), (second,) = batches
    assert names(first) != names(second)
    draws = [sample["drawn"] for sample in first + second]
    assert len(set(draws)) == 14


def test_the_global_generators_are_left_as_they_were(dataset):
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    torch.manual_seed(1)
    expected = (np.random.random(), random.random(), torch.rand(()).item())  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    torch.manual_seed(1)
    take(build_train_loader(dataset, random_mapper, total_batch_size=2, num_workers=0), 3)
    list(fit_samples(dataset, random_mapper, 3))
    assert (np.random.random(), random.random(), torch.rand(()).item()) == expected  # noqa: NPY002


def test_a_rejected_sample_is_replaced_by_the_same_one_everywhere(dataset):
    batches = [
        take(
            build_train_loader(
                dataset, reject_first_image, total_batch_size=7, num_workers=num_workers
            ),
            2,
        )
        for num_workers in (0, 2)
    ]
    assert batches[0] == batches[1]
    assert all(len(batch) == 7 and "000001.jpg" not in names(batch) for batch in batches[0])


def test_a_mapper_that_rejects_everything_is_an_error(dataset):
    loader = build_train_loader(dataset, reject_all, total_batch_size=2, num_workers=0)
    with pytest.raises(InputError, match=r"rejected 10 samples in a row, the last one .*\.jpg"):
        take(loader, 1)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_truncated_image_is_named_and_its_error_kept(dataset, mapper, tmp_path, num_workers):
    with open(dataset[2]["file_name"], "rb") as file:
        start = file.read(900)
    dataset[2]["file_name"] = str(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes(start)
    loader = build_train_loader(dataset, mapper, total_batch_size=7, num_workers=num_workers)
    with pytest.raises(InputError, match=r"^The training image .*cut\.jpg cannot be used") as info:
        take(loader, 1)
    assert isinstance(info.value.__cause__, OSError)


def test_no_image_a_missing_image_and_one_of_another_size_are_named(dataset, mapper, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    for change, cause in [
        ({"file_name": str(tmp_path / "text.jpg")}, OSError),
        ({"file_name": str(tmp_path / "gone.jpg")}, FileNotFoundError),
        ({"width": 97}, SizeMismatchError),
    ]:
        broken = dataset[0] | change
        loader = build_train_loader([broken], mapper, total_batch_size=1, num_workers=0)
        with pytest.raises(InputError, match=os.path.basename(broken["file_name"])) as info:
            take(loader, 1)
        assert isinstance(info.value.__cause__, cause)
        with pytest.raises(InputError, match=os.path.basename(broken["file_name"])):
            next(fit_samples([broken], mapper, 1))


def test_an_error_that_cannot_leave_the_worker_is_still_told(dataset):
    loader = build_train_loader(dataset, raise_unpicklable, total_batch_size=1, num_workers=1)
    with pytest.raises(InputError, match=r"\.jpg cannot be used \(LocalError: odd\)"):
        take(loader, 1)


def test_an_empty_set_and_an_indivisible_batch_are_errors(dataset, monkeypatch):
    with pytest.raises(InputError, match="training set is empty"):
        build_train_loader([], random_mapper, total_batch_size=1, num_workers=0)
    as_process(monkeypatch, 0, 2)
    with pytest.raises(InputError, match="batch size is 3, but must be a multiple of .* 2"):
        build_train_loader(dataset, random_mapper, total_batch_size=3, num_workers=0)
    with pytest.raises(InputError, match="batch size is 0"):
        build_train_loader(dataset, random_mapper, total_batch_size=0, num_workers=0)


def test_fit_samples_are_a_fixed_choice_shared_by_the_processes(dataset, mapper, monkeypatch):
    whole = list(fit_samples(dataset, mapper, 5))
    assert len({sample["file_name"] for sample in whole}) == 5
    assert_same_samples(whole, list(fit_samples(dataset, mapper, 5)))
    assert_same_samples(whole[:3], list(fit_samples(dataset, mapper, 3)))
    for rank in (0, 1):
        as_process(monkeypatch, rank, 2)
        assert_same_samples(list(fit_samples(dataset, mapper, 5)), whole[rank::2])


def test_samples_for_the_fit_can_be_mapped_as_images_are_in_the_end(dataset):
    undistorted = DatasetMapper(is_train=False, augmentations=[], image_format="RGB")
    loader = build_train_loader(dataset, random_mapper, total_batch_size=2, num_workers=0)
    chosen = names(loader.fit_samples(3))
    by_name = {os.path.basename(record["file_name"]): record for record in dataset}
    assert names(loader.fit_samples(3, undistorted)) == chosen
    for sample in (
        *loader.fit_samples(3, undistorted),
        *loader.fit_samples(3, undistorted, held_out=True),
    ):
        record = by_name[os.path.basename(sample["file_name"])]
        assert torch.equal(sample["image"], undistorted(record)["image"])


def test_held_out_samples_are_images_that_the_fit_has_not_seen(dataset, mapper, monkeypatch):
    fitted = names(fit_samples(dataset, mapper, len(dataset) - 2))
    whole = list(fit_samples(dataset, mapper, len(dataset) - 2, held_out=True))
    assert len(whole) == math.ceil((len(dataset) - 2) / 10)
    assert not set(names(whole)) & set(fitted)
    shares = []
    for rank in (0, 1):
        as_process(monkeypatch, rank, 2)
        shares += names(fit_samples(dataset, mapper, len(dataset) - 2, held_out=True))
    assert sorted(shares) == sorted(names(whole))


def test_held_out_samples_are_other_crops_where_all_images_are_fitted(dataset):
    fitted = list(fit_samples(dataset, random_mapper, 100))
    held_out = list(fit_samples(dataset, random_mapper, 100, held_out=True))
    assert len(held_out) == math.ceil(len(dataset) / 10)
    by_name = dict(zip(names(fitted), fitted, strict=True))
    for name, sample in zip(names(held_out), held_out, strict=True):
        assert sample != by_name[name]


@pytest.fixture
def as_it_is():
    """A mapper without augmentations."""
    return CheckedMapper(is_train=False, augmentations=[], image_format="RGB")


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_evaluation_are_those_of_detectron2s_loader(workers, as_it_is, dataset):
    own = build_evaluation_loader(dataset, as_it_is, batch_size=3, num_workers=workers)
    other = build_detection_test_loader(dataset, mapper=as_it_is, batch_size=3)
    assert len(own) == len(other) == 3 and len(own.dataset) == len(dataset)
    for first, second in zip(own, other, strict=True):
        assert names(first) == names(second)
        for a, b in zip(first, second, strict=True):
            assert a.keys() == b.keys() and torch.equal(a["image"], b["image"])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_part_of_a_loader_tells_of_bad_images_as_the_whole_does(
    workers, as_it_is, dataset, tmp_path
):
    REFUSED["truncated PNG"].make(tmp_path / "cut.png")
    dataset[5] = {"file_name": str(tmp_path / "cut.png"), "image_id": 6}
    loader = build_evaluation_loader(dataset, as_it_is, num_workers=workers)
    assert isinstance(loader, EvaluationLoader)
    assert len(list(batches_from(loader, [0, 1]))) == 2
    for each in (loader, batches_from(loader, [0, 5, 1])):
        with pytest.raises(InputError) as error:
            list(each)
        assert str(error.value).startswith(str(tmp_path / "cut.png"))
        assert "Traceback" not in str(error.value)
        assert isinstance(error.value.__cause__, OSError)


def raise_in_worker(record):
    raise RuntimeError("a fault of the program" if get_worker_info() else "not in a worker")


def test_a_fault_of_the_program_keeps_its_traceback(dataset):
    loader = build_evaluation_loader(dataset, raise_in_worker, num_workers=1)
    with pytest.raises(RuntimeError, match="a fault of the program"):
        list(loader)
