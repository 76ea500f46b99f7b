"""Parts of a config that name the same data must agree."""

import json
import shutil
from pathlib import Path

import pytest
from detectron2.config import LazyCall as L
from detectron2.data import get_detection_dataset_dicts

from snnet_vitdet.data import dataset_name
from snnet_vitdet.engine import preflight
from snnet_vitdet.engine.run_data import check_data_nodes
from snnet_vitdet.errors import InputError


@pytest.fixture
def other(tiny_scenes, tmp_path):
    """The test annotations in another order, whose images get each other's numbers."""
    content = json.loads(Path(tiny_scenes.test_json).read_text())
    ids = [image["id"] for image in content["images"]]
    for entry, key in [(i, "id") for i in content["images"]] + [
        (a, "image_id") for a in content["annotations"]
    ]:
        entry[key] = ids[-1 - ids.index(entry[key])]
    path = tmp_path / "other.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("key", "own"),
    [
        ("dataloader.test.dataset.json_file", "data.test_json"),
        ("dataloader.evaluator.dataset_name.json_file", "data.test_json"),
        ("dataloader.train.dataset.json_file", "data.train_json"),
        ("dataloader.test.dataset.image_root", "data.test_images"),
        ("dataloader.evaluator.dataset_name.image_root", "data.test_images"),
        ("dataloader.train.dataset.image_root", "data.train_images"),
    ],
)
def test_other_data_in_one_part_are_refused_by_name(key, own, tiny_config, other, tmp_path):
    value = other if key.endswith("json_file") else tmp_path
    config = tiny_config(f"{key}='{value}'", f"train.output_dir='{tmp_path / 'output'}'")
    with pytest.raises(InputError, match=rf"{key.rpartition('.')[0]} has .* but {own} is .*: set"):
        preflight(config, evaluation=False, resume=False, num_processes=1)


def test_a_copy_or_a_link_of_the_same_content_is_the_same(tiny_config, tiny_scenes, tmp_path):
    copy, link = tmp_path / "copy.json", tmp_path / "images"
    shutil.copy(tiny_scenes.test_json, copy)
    link.symlink_to(tiny_scenes.test_images)
    node = "dataloader.test.dataset"
    check_data_nodes(
        tiny_config(f"{node}.json_file='{copy}'", f"{node}.image_root='{link}'"), training=True
    )


def test_training_data_of_a_sweep_are_not_looked_at(tiny_config, other):
    config = tiny_config(f"dataloader.train.dataset.json_file='{other}'")
    check_data_nodes(config, training=False)


def test_data_by_name_are_compared_by_name(tiny_config, tiny_scenes):
    config = tiny_config("dataloader.evaluator.dataset_name=coco_2017_val")
    with pytest.raises(InputError, match=r"test.json \(.*\), but the scores of coco_2017_val"):
        check_data_nodes(config, training=True)
    config.dataloader.test.dataset = L(get_detection_dataset_dicts)(names=["coco_2017_val"])
    check_data_nodes(config, training=True)
    config.dataloader.evaluator.dataset_name = L(dataset_name)(
        json_file=tiny_scenes.test_json, image_root=tiny_scenes.test_images
    )
    with pytest.raises(InputError, match=r"coco_2017_val \(.*\), but the scores of .*test\.json"):
        check_data_nodes(config, training=True)
    config.dataloader.test.dataset.names = [config.dataloader.evaluator.dataset_name]
    check_data_nodes(config, training=True)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("dataloader.test.mapper.image_format=BGR", "another: model.input_format=RGB, .*=BGR"),
        ("dataloader.train.mapper.image_format=BGR", "another: model.input_format=RGB, .*=BGR"),
        ("dataloader.test.dataset.filter_empty=True", "filter_empty=True leaves images without"),
    ],
)
def test_what_would_change_scores_without_a_word_is_refused(override, says, tiny_config):
    with pytest.raises(InputError, match=says):
        check_data_nodes(tiny_config(override), training=True)
