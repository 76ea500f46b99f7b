"""data.masks=auto, and what follows from it."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from detectron2.modeling.roi_heads import CascadeROIHeads

from snnet_vitdet.engine import load_config, preflight, prepare_run, save_config
from snnet_vitdet.engine.checkpointer import StrictCheckpointer
from snnet_vitdet.engine.memory_probe import probe_memory
from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import stitch_costs
from snnet_vitdet.modeling.cost import build_on_meta


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


def test_another_value_is_named(tiny_config):
    with pytest.raises(InputError, match="data.masks=some must be one of"):
        check(tiny_config("data.masks=some"))


def test_a_config_of_an_earlier_version_has_masks(tiny_config, tmp_path):
    config = tiny_config()
    del config.data["masks"]
    save_config(config, str(tmp_path / "config.yaml"))
    assert load_config(str(tmp_path / "config.yaml")).data.masks is True


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


def test_masks_that_the_mapper_leaves_out_are_named(tiny_config, tmp_path):
    config = tiny_config(
        "dataloader.train.mapper.use_instance_mask=false", f"train.output_dir={tmp_path}"
    )
    with pytest.raises(InputError, match="has a mask head: set data.masks=false"):
        check(config)


def test_mixed_precision_that_is_off_needs_no_more(tiny_config, tmp_path):
    config = tiny_config()
    config.train.amp = dict(enabled=False)
    save_config(config, str(tmp_path / "config.yaml"))
    assert load_config(str(tmp_path / "config.yaml")).train.amp == dict(
        enabled=False, precision="auto"
    )


def test_a_detector_without_masks_is_told_of(tiny_config, data, tmp_path, caplog):
    with caplog.at_level("WARNING"):
        check(tiny_config(*data(lambda annotations: None), f"train.output_dir={tmp_path}"))
        assert "boxes alone" not in caplog.text
        check(tiny_config(*data(without_masks), f"train.output_dir={tmp_path}"))
    assert "The detector has no masks" in caplog.text
