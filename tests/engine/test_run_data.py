"""The data of a run: parts of a config that agree, masks, and data that change."""

import copy
import json
import logging
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.data import get_detection_dataset_dicts
from detectron2.modeling.roi_heads import CascadeROIHeads
from in_process import run_main

from snnet_vitdet.data import dataset_name
from snnet_vitdet.engine import load_config, preflight, prepare_run, save_config
from snnet_vitdet.engine.checkpointer import StrictCheckpointer
from snnet_vitdet.engine.memory_probe import probe_memory
from snnet_vitdet.engine.run_data import check_data_nodes, note_training_data
from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import stitch_costs
from snnet_vitdet.modeling.cost import build_on_meta

# -------------------------------------------------------------------------- the parts of one config


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
    with pytest.raises(InputError, match=r"test.json \(.*\), but they are .* coco_2017_val"):
        check_data_nodes(config, training=True)
    config.dataloader.test.dataset = L(get_detection_dataset_dicts)(names=["coco_2017_val"])
    check_data_nodes(config, training=True)
    config.dataloader.evaluator.dataset_name = L(dataset_name)(
        json_file=tiny_scenes.test_json, image_root=tiny_scenes.test_images
    )
    with pytest.raises(InputError, match=r"coco_2017_val \(.*\), but they are .*test\.json"):
        check_data_nodes(config, training=True)
    config.dataloader.test.dataset.names = [config.dataloader.evaluator.dataset_name]
    check_data_nodes(config, training=True)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("dataloader.test.mapper.image_format=BGR", "another: model.input_format=RGB, .*=BGR"),
        ("dataloader.train.mapper.image_format=BGR", "another: model.input_format=RGB, .*=BGR"),
        ("dataloader.test.dataset.filter_empty=True", "filter_empty=True leaves out images"),
    ],
)
def test_what_would_change_scores_without_a_word_is_refused(override, says, tiny_config):
    with pytest.raises(InputError, match=says):
        check_data_nodes(tiny_config(override), training=True)


# -------------------------------------------------------------------------------------------- masks


@pytest.fixture
def data(tiny_scenes, tmp_path):
    """Overrides of the tiny scenes with what a function makes of their annotations."""

    def data(change=lambda annotations: None, **changes):
        overrides = []
        for part in ("train", "test"):
            coco = json.loads(Path(getattr(tiny_scenes, f"{part}_json")).read_text("utf-8"))
            changes.get(part, change)(coco["annotations"])
            path = tmp_path / f"{part}.json"
            path.write_text(json.dumps(coco), encoding="utf-8")
            overrides.append(f"data.{part}_json={path}")
        return [*overrides, f"train.output_dir={tmp_path / 'output'}"]

    return data


def without_masks(annotations):
    for annotation in annotations:
        del annotation["segmentation"]


def one_mask(annotations):
    for annotation in annotations[1:]:
        annotation["segmentation"] = []


def check(config, evaluation=False):
    preflight(config, evaluation=evaluation, resume=False, num_processes=1)
    prepare_run(config, evaluation=evaluation, resume=False)


def test_auto_is_whether_the_training_data_have_a_mask(tiny_config, data):
    assert tiny_config(*data()).data.masks is True
    assert tiny_config(*data(one_mask)).data.masks is True
    assert tiny_config(*data(without_masks)).data.masks is False
    assert tiny_config(*data(test=without_masks)).data.masks is True
    assert tiny_config(*data(train=without_masks)).data.masks is False


def test_masks_of_crowds_alone_are_none_to_learn(tiny_config, data):
    def crowds(annotations):
        for annotation in annotations[1:]:
            annotation["iscrowd"] = 1
        annotations[0]["segmentation"] = []

    assert tiny_config(*data(crowds)).data.masks is False


def test_without_data_auto_waits_and_costs_are_those_with_masks(tiny_config, tmp_path):
    config = tiny_config(f"data.prepare.root={tmp_path}/later")
    assert config.data.masks == "auto"
    assert build_on_meta(config.model).roi_heads.mask_on
    check(config)
    assert config.data.masks is True


@pytest.mark.parametrize("masks", ["auto", "false"])
def test_without_masks_a_faster_rcnn_learns_boxes(masks, tiny_config, data, tmp_path):
    change = without_masks if masks == "auto" else one_mask
    config = tiny_config(*data(change), f"data.masks={masks}")
    check(config)
    assert config.data.masks is False
    assert not build_on_meta(config.model).roi_heads.mask_on
    sample = instantiate(config.dataloader.train.mapper)(
        instantiate(config.dataloader.train.dataset)[0]
    )
    assert set(sample["instances"].get_fields()) == {"gt_boxes", "gt_classes"}
    # A saved config says so, and is as it is.
    first, second = tmp_path / "config.yaml", tmp_path / "again.yaml"
    save_config(config, str(first))
    saved = load_config(str(first))
    check(saved)
    save_config(saved, str(second))
    assert first.read_text() == second.read_text()


def test_the_memory_probe_of_boxes_alone_has_no_masks(tiny_config, data):
    config = tiny_config(*data(without_masks))
    model, batches = instantiate(config.model), []
    model.register_forward_pre_hook(lambda model, given: batches.extend(given))
    optimizer = torch.optim.AdamW(model.parameters())
    probe_memory(config, model, optimizer, stitch_costs(config.model))
    ((sample, _),) = batches
    assert not sample["instances"].has("gt_masks") and len(sample["instances"])


def test_a_cascade_loses_its_mask_head_too():
    path = "configs/COCO/cascade_mask_rcnn_snnet_deit3_s_l_100ep.py"
    heads = build_on_meta(load_config(path, ["data.masks=false"]).model).roi_heads
    assert isinstance(heads, CascadeROIHeads) and not heads.mask_on


def test_costs_have_no_mask_head(tiny_config, data):
    with_masks, without = (
        stitch_costs(tiny_config(*data(change)).model, num_detections=10)[0]
        for change in (lambda annotations: None, without_masks)
    )
    assert without.flops < with_masks.flops and without.params < with_masks.params


def test_masks_that_are_not_wanted_are_not_looked_at(tiny_config, data):
    def damaged(annotations):
        annotations[0]["segmentation"] = {"size": "x"}

    check(tiny_config(*data(damaged), "data.masks=false"))
    with pytest.raises(InputError, match="RLE mask that is not of the image's size"):
        check(tiny_config(*data(damaged), "data.masks=true"))


def test_masks_that_are_wanted_and_not_there_are_an_error_with_the_remedy(tiny_config, data):
    with pytest.raises(InputError, match="have no segmentation .*: .*data.masks=false"):
        check(tiny_config(*data(without_masks), "data.masks=true"))


def test_a_model_saved_without_a_mask_head_gets_none_back(tiny_config, data, tmp_path):
    save_config(tiny_config(*data(without_masks)), str(tmp_path / "config.yaml"))
    config = load_config(str(tmp_path / "config.yaml"), [*data(), "data.masks=true"])
    with pytest.raises(InputError, match="has no mask head.*data.masks=false"):
        check(config)


@pytest.mark.parametrize("learnt", [True, False])
def test_a_checkpoint_with_or_without_masks_says_what_to_set(learnt, tiny_config, data, tmp_path):
    configs = [
        tiny_config(*data(lambda annotations: None), f"data.masks={m}") for m in (True, False)
    ]
    trained, other = configs if learnt else configs[::-1]
    path = str(tmp_path / "model_final.pth")
    torch.save({"model": instantiate(trained.model).state_dict()}, path)
    with pytest.raises(InputError, match=f"set data.masks={str(learnt).lower()}$"):
        StrictCheckpointer(instantiate(other.model)).load(path)


def test_a_detector_without_masks_is_told_of(tiny_config, data, tmp_path, caplog):
    with caplog.at_level("WARNING"):
        check(tiny_config(*data(lambda annotations: None), f"train.output_dir={tmp_path}"))
        assert "boxes alone" not in caplog.text
        check(tiny_config(*data(without_masks), f"train.output_dir={tmp_path}"))
    assert "The detector has no masks" in caplog.text


# --------------------------------------------------------------------------------- at a later start


@pytest.fixture
def config(tiny_config, tiny_scenes, tmp_path):
    """The config of a training with data and a folder of its own."""
    data = tmp_path / "data"
    shutil.copytree(Path(tiny_scenes.train_json).parent, data)
    return tiny_config(
        f"data.train_json='{data / 'train.json'}'",
        f"data.train_images='{data / 'train'}'",
        f"train.output_dir='{tmp_path / 'output'}'",
    )


def other_category(config):
    path = Path(config.data.train_json)
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 2
    path.write_text(json.dumps(content))


def other_time(config):
    os.utime(Path(config.data.train_images, "000003.jpg"), (9, 9))


def fewer_bytes(config):
    path = Path(config.data.train_images, "000003.jpg")
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (other_category, r"before \(train_json_sha256: \w+ then, \w+ now\)"),
        (other_time, r"before \(train_image.000003.jpg: .* then, .*1970-01-01 00:00:09 UTC now\)"),
        (fewer_bytes, r"before \(train_image.000003.jpg: .* then, 100 bytes of .* now\)"),
    ],
)
def test_what_has_changed_is_named_and_what_was_stays(change, says, config, caplog):
    note_training_data(config, 0, resume=False)
    path = Path(config.train.output_dir, "training_data.json")
    was = path.read_bytes()
    change(config)
    for _ in range(2):
        note_training_data(config, 10, resume=True)
    # Once: the second time, nothing has changed.
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "From iteration 10 on, other training data than before" in record.getMessage()
    assert re.search(says, record.getMessage())
    assert path.with_name("training_data_until_0000010.json").read_bytes() == was
    assert path.read_bytes() != was


def test_the_same_data_elsewhere_are_resumed_without_a_word(config, tmp_path, caplog):
    note_training_data(config, 0, resume=False)
    (tmp_path / "data").rename(tmp_path / "moved")
    config.data.train_json = str(tmp_path / "moved/train.json")
    config.data.train_images = str(tmp_path / "moved/train")
    note_training_data(config, 10, resume=True)
    assert not caplog.records


def test_a_training_of_an_earlier_version_is_resumed_without_a_word(config, caplog):
    note_training_data(config, 10, resume=True)
    assert not caplog.records
    assert Path(config.train.output_dir, "training_data.json").is_file()


@pytest.mark.parametrize("content", [b"", b"[1]", b"[" * 100_000, b"\xff"])
def test_a_broken_file_is_a_warning_and_made_anew(content, config, caplog):
    path = Path(config.train.output_dir, "training_data.json")
    path.parent.mkdir()
    path.write_bytes(content)
    note_training_data(config, 10, resume=True)
    assert "it is not known whether the training data have changed" in caplog.text
    assert json.loads(path.read_bytes())["train_image"].keys() == {
        f"{number:06d}.jpg" for number in range(1, 9)
    }


@pytest.mark.slow
def test_a_training_says_that_its_annotations_have_changed(config, restored_logging):
    config.train.eval_period, config.init.num_images = 0, 1
    output = Path(config.train.output_dir)
    for iterations, change in ((2, None), (4, other_category)):
        config.train.max_iter = iterations
        if change:
            change(config)
        run_main(copy.deepcopy(config), *(["--resume"] if change else []))
    assert "From iteration 2 on, other training data" in (output / "log.txt").read_text()
