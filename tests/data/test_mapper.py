import pytest
import torch
from bad_images import BASE, REFUSED, save
from detectron2.config import instantiate
from detectron2.data import DatasetMapper, build_detection_test_loader
from torch.utils.data import get_worker_info

from snnet_vitdet.data import (
    CheckedMapper,
    EvaluationLoader,
    build_evaluation_loader,
    build_train_loader,
    coco_dicts,
)
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation.one_pass import batches_from


@pytest.fixture
def nodes(tiny_config):
    """Nodes of the mappers of training and test."""
    loaders = tiny_config().dataloader
    return loaders.train.mapper, loaders.test.mapper


@pytest.fixture
def records(tiny_scenes):
    return coco_dicts(tiny_scenes.train_json, tiny_scenes.train_images, filter_empty=False)


def of_detectron2(node):
    return DatasetMapper(**{key: instantiate(node[key]) for key in node if key != "_target_"})


def one_sample(record, mapper):
    return next(build_train_loader([record], mapper, total_batch_size=1, num_workers=0).__iter__())[
        0
    ]


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert torch.equal(first["image"], second["image"])
    if "instances" in first:
        a, b = first["instances"].get_fields(), second["instances"].get_fields()
        assert a.keys() == b.keys()
        for name in a:
            tensors = (
                value if torch.is_tensor(value) else value.tensor for value in (a[name], b[name])
            )
            assert torch.equal(*tensors), name


def test_samples_are_those_of_detectron2s_mapper(nodes, records):
    mappers = [instantiate(node) for node in nodes]
    assert [type(mapper) for mapper in mappers] == [CheckedMapper] * 2
    for record in records:
        # Under the same random state, by the loader of training.
        assert_same(one_sample(record, mappers[0]), one_sample(record, of_detectron2(nodes[0])))
        assert_same(mappers[1](record), of_detectron2(nodes[1])(record))


def test_attributes_are_those_of_detectron2s_mapper(nodes):
    for node in nodes:
        own, other = vars(instantiate(node)), vars(of_detectron2(node))
        assert own.keys() == other.keys()
        assert own["image_format"] == "RGB"
        for name in own.keys() - {"augmentations"}:
            assert own[name] == other[name], name


def test_an_error_that_is_not_the_files_is_left_as_it_is(nodes, records):
    mapper = instantiate(nodes[0])
    broken = {**records[0], "annotations": [{"bbox": "no box", "bbox_mode": 0}]}
    with pytest.raises(Exception, match=".") as error:
        mapper(broken)
    assert not isinstance(error.value, InputError)


def test_a_size_that_no_annotation_gives_is_not_compared(nodes, tmp_path):
    save()(tmp_path / "some.png")
    sample = instantiate(nodes[1])({"file_name": str(tmp_path / "some.png")})
    assert (sample["height"], sample["width"]) == BASE.shape[:2]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_evaluation_are_those_of_detectron2s_loader(workers, nodes, records):
    mapper = instantiate(nodes[1])
    own = build_evaluation_loader(records, mapper, batch_size=3, num_workers=workers)
    other = build_detection_test_loader(records, mapper=mapper, batch_size=3)
    assert len(own) == len(other) == 3 and len(own.dataset) == len(records)
    for first, second in zip(own, other, strict=True):
        assert len(first) == len(second)
        for a, b in zip(first, second, strict=True):
            assert_same(a, b)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_part_of_a_loader_tells_of_bad_images_as_the_whole_does(
    workers, nodes, records, tmp_path
):
    REFUSED["truncated PNG"].make(tmp_path / "cut.png")
    records[5] = {"file_name": str(tmp_path / "cut.png"), "image_id": 6}
    loader = build_evaluation_loader(records, instantiate(nodes[1]), num_workers=workers)
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


def test_a_fault_of_the_program_keeps_its_traceback(records):
    loader = build_evaluation_loader(records, raise_in_worker, num_workers=1)
    with pytest.raises(RuntimeError, match="a fault of the program"):
        list(loader)
