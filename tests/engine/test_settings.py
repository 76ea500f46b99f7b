from typing import Literal, get_args, get_origin

import pytest
from omegaconf import OmegaConf

from snnet_vitdet.engine import (
    DataSettings,
    InitSettings,
    SweepSettings,
    TrainSettings,
    as_config,
    load_config,
    preflight,
    prepare_run,
)
from snnet_vitdet.engine.setting_checks import SETTINGS
from snnet_vitdet.engine.settings import GROUPS, LEFT_TO_USER, OWN_VALIDATORS, settings_of
from snnet_vitdet.errors import InputError
from snnet_vitdet.validators import written


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.image_size=0", "data.image_size=0 must be a whole number of at least 32"),
        ("data.image_size=1000000", "data.image_size=1000000 must be a whole number of at most 16"),
        ("data.train_json=null", "data.train_json=null must be a path"),
        ("data.test_images=5", "data.test_images=5 must be a path"),
        ("data.check=null", "data.check=null must be true or false"),
        ("data=5", "data=5 must be a group of settings"),
        ("init.weights=null", "init.weights=null must be a group of settings"),
        ("init.weights.small=5", "init.weights.small=5 must be a text, or null"),
        ("sampler=null", "sampler=null must be a group of settings"),
        ("train=null", "train=null must be a group of settings"),
        ("train.amp=null", "train.amp=null must be a group of settings"),
        ("train.tf32=abc", "train.tf32=abc must be true or false"),
        ("train.clip_grad_norm=-1", "clip_grad_norm=-1 must be a number above 0, or null"),
        ("train.eval_stitches=null", "train.eval_stitches=null must be ids, names or ranges"),
        ("train.ema_decay=1", "ema_decay=1 must be a number of at least 0 and below 1"),
        ("train.max_iter=100000000000000000000", "must be a whole number of at most 2147483647"),
        ("dataloader.train.num_workers=2000", "num_workers=2000 must be .* of at most 1024"),
        ("model.pixel_std=[0,0,0]", "pixel_std=.0, 0, 0. must be a list of 3, each a number above"),
        ("model.pixel_mean=[1]", "model.pixel_mean=.1. must be a list of 3, each a finite number"),
        ("sweep.precision=[5]", "sweep.precision=.5. must be one of"),
        ("train.seed='${nix}'", "train.seed refers to what is not there .*nix"),
        # Keys without a validator: the type of what they replace, and finite numbers.
        ("optimizer.weight_decay=abc", "optimizer.weight_decay=abc must be a number, as 0.1 is"),
        ("optimizer.betas=abc", "betas=abc must be a list of numbers, as .0.9, 0.999. is"),
        ("optimizer.params=5", "optimizer.params=5 must be a group of settings"),
        (
            "model.roi_heads.positive_fraction=nan",
            "fraction=nan must be a number of at least",
        ),
        ("dataloader.train.mapper.is_train=null", "train.mapper.is_train=null must be one of"),
        ("model.roi_heads.box_head.conv_norm=5", "conv_norm=5 must be a text, as LN is"),
        (
            "dataloader.train.mapper.use_instance_mask=abc",
            "mask=abc must be true or false",
        ),
        ("lr_multiplier.scheduler.values=[1.0,.inf,0.1]", "values=.* must be "),
    ],
)
def test_setting_that_cannot_be_is_refused_by_its_name(override, expected, tiny_config):
    with pytest.raises(InputError, match=expected):
        tiny_config(override)


@pytest.mark.parametrize(
    "override",
    [
        *("train.seed=-1", "train.seed=4294967296", "train.seed=1e3", "train.log_period=0"),
        *("train.eval_period=-1", "train.checkpointer.period=0", "train.max_iter=-1"),
        *("train.checkpointer.max_to_keep=0", "train.accumulation.steps=0"),
        *("train.accumulation.steps=2.0", "train.freeze_anchors=-1", "train.freeze_anchors=true"),
        *("train.ends.period=-1", "train.ends.first=-1", "train.distillation.weight=-1"),
        *("train.distillation.rpn_weight=nan", "train.distillation.every=0", "init.num_images=0"),
        *("train.amp.precision=half", "train.stitch_scope=rank", "train.accumulation.stitch=all"),
        *("init.stitching_layers=zero", "sweep.mode=both", "sweep.subset=-1", "sweep.subset=0.1"),
        "sweep.batch_size=0",
        *("dataloader.train.total_batch_size=0", "dataloader.train.num_workers=-1"),
        *("dataloader.test.num_workers=-1", "dataloader.test.batch_size=0", "data.masks=some"),
        *("optimizer.lr=0", "optimizer.lr=nan", "train.reference_batch_size=0"),
        *("model.roi_heads.batch_size_per_image=-1", "model.roi_heads.positive_fraction=2"),
    ],
)
def test_a_value_out_of_its_range_is_refused(override, tiny_config):
    with pytest.raises(InputError, match=f"{override.partition('=')[0]}=.* must be "):
        tiny_config(override)


@pytest.mark.parametrize(
    "override",
    [
        "model.backbone.net.small.layer_scale_init=null",
        "model.backbone.net.small.use_rel_pos=global",
        "model.backbone.net.small.global_block_indexes=null",
        "model.roi_heads.num_classes=6",
        "dataloader.test.mapper.augmentations.0.short_edge_length=[32,64]",
        "sampler.step=1",
        "train.clip_grad_norm=1",
        "train.checkpointer.max_to_keep=null",
        "train.eval_stitches='S,L'",
        "sweep.stitch_ids=[0,SF]",
        "sweep.stitch_ids=3",
        "init.weights.small=some.pth",
        "train.ends=null",
        "optimizer.fused=true",
        "optimizer._target_=torch.optim.SGD",
        "model.pixel_mean=['${optimizer.lr}',1,2]",
    ],
)
def test_other_types_that_mean_something_are_taken(override, tiny_config):
    tiny_config(override)


def test_all_keys_with_a_validator_are_those_of_a_config(tiny_config):
    config = tiny_config()
    exact = {key for key in SETTINGS if "*" not in key} - {"dataloader.test.batch_size"}
    absent = object()
    assert all(OmegaConf.select(config, key, default=absent) is not absent for key in exact)


def as_code(value):
    """A value as the pages show it; nothing of one that the user gives."""
    if value in ("", LEFT_TO_USER):
        return ""
    return f"`{written(value).lower() if isinstance(value, bool) else written(value)}`"


def table_of(group):
    """The table of a group's keys for docs/train.md or docs/sweep.md."""
    rows = ["| key | default | allowed | meaning |", "| --- | --- | --- | --- |"]
    for key, item in settings_of(group):
        default = "" if item.metadata["optional"] else as_code(item.default)
        allowed = "a group"
        if get_origin(item.type) is Literal:
            allowed = ", ".join(map(as_code, get_args(item.type)))
        elif key in OWN_VALIDATORS:
            allowed = OWN_VALIDATORS[key](object())
        rows.append(f"| `{key}` | {default} | {allowed} | {item.metadata['meaning']} |")
    return "\n".join(rows)


@pytest.mark.parametrize("group", GROUPS)
def test_the_page_of_keys_has_the_table_of_every_group(group, root):
    page = "docs/sweep.md" if group is SweepSettings else "docs/train.md"
    table = table_of(group)
    assert table in (root / page).read_text(encoding="utf-8"), f"copy this into {page}:\n{table}"


@pytest.mark.parametrize("group", GROUPS)
def test_every_setting_has_a_meaning_in_a_line_and_a_default_that_is_allowed(group):
    group()  # checks itself
    for key, item in settings_of(group):
        assert item.metadata["meaning"] and "\n" not in item.metadata["meaning"], key


def test_a_group_checks_itself_when_it_is_made():
    assert as_config(TrainSettings(max_iter=7)).max_iter == 7
    with pytest.raises(InputError, match="train.max_iter=-1 must be a whole number of at least 0"):
        TrainSettings(max_iter=-1)
    with pytest.raises(InputError, match="data.masks=some must be one of"):
        DataSettings(masks="some")


def test_a_config_of_plain_dicts_gets_defaults_and_is_checked(tmp_path):
    """As detectron2's own configs are written: every group a dict, with keys of its own in it."""
    path = tmp_path / "own.py"
    path.write_text(
        "train = dict(max_iter=5, amp=dict(enabled=False), ends=None, own=1)\n"
        "data = dict(train_json='a', train_images='b', test_json='c', test_images='d')\n"
        "model = dict(backbone=dict(net=dict(exit_norm=None)))\n"
        "init, sweep = dict(), dict()\n"
    )
    config = load_config(str(path), ["train.log_period=3"])
    train = {"max_iter": 5, "log_period": 3, "own": 1}
    expected = as_config(TrainSettings())
    expected.merge_with({**train, "amp": {"enabled": False}})
    assert config.train == expected
    assert config.sweep == as_config(SweepSettings())
    assert config.init == as_config(InitSettings()) and "weights" not in config.init
    assert config.data.image_size == 1024 and config.data.masks is True
    path.write_text("train = dict(max_iter=-5)\ndata, init, sweep = dict(), dict(), dict()\n")
    with pytest.raises(InputError, match="train.max_iter=-5 must be a whole number of at least 0"):
        load_config(str(path))
    with pytest.raises(InputError, match=r"no key 'max_itr' \(did you mean 'max_iter'"):
        load_config(str(path), ["train.max_itr=5"])


def test_what_the_user_must_give_is_not_replaced_by_a_default(tmp_path):
    path = tmp_path / "own.py"
    path.write_text("train = dict(output_dir='???')\ndata, init, sweep = dict(), dict(), dict()\n")
    config = load_config(str(path))
    assert OmegaConf.is_missing(config.train, "output_dir")
    assert OmegaConf.is_missing(config.data, "train_json")


def leaves(node, path=""):
    """Dotted names of all values of a config."""
    if isinstance(node, dict):
        children = node.items()
    elif isinstance(node, list) and any(isinstance(child, dict) for child in node):
        children = enumerate(node)
    else:
        yield path
        return
    for name, child in children:
        yield from leaves(child, f"{path}.{name}" if path else str(name))


@pytest.mark.slow
@pytest.mark.parametrize(("first", "value"), [(0, "null"), (1, "abc")])
def test_every_other_key_set_to_nothing_or_a_word_passes_or_is_named(
    first, value, tiny_config, tmp_path
):
    config = OmegaConf.to_container(tiny_config(), resolve=False)
    # A path may be called so; and folders of that name are not made here.
    keys = [key for key in leaves(config) if not key.endswith(("root", "output_dir", "checkpoint"))]
    assert len(keys) > 200
    for key in keys[first::2]:
        try:
            changed = tiny_config(f"train.output_dir='{tmp_path}'", f"{key}={value}")
            preflight(changed, evaluation=False, resume=False, num_processes=1)
            prepare_run(changed, evaluation=False, resume=False)
        except InputError as error:
            path, name = key.rpartition(".")[::2]
            parts = path.split(".")
            # The key, or the part that could not be made of it.
            names = {name, *(".".join(parts[:length]) for length in range(1, len(parts) + 1))}
            named = [each for each in names if each in str(error)]
            assert named or value in str(error), (key, str(error))


GIVEN = {"train": "dict(max_iter=3)", "data": "dict()", "init": "dict()", "sweep": "dict()"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"train": "dict(max_itr=3)"},
            r"train.max_itr is not a setting: did you mean train.max_iter",
        ),
        ({"train": "dict(amp=dict(enable=False))"}, "did you mean train.amp.enabled"),
        ({"init": "dict(weight=dict(small=None))"}, "did you mean init.weights"),
        (
            {"train": "TrainSettings(max_iter=3)"},
            r"has no group train: .* as_config\(TrainSettings",
        ),
        ({"sweep": "SweepSettings(mode='separate')"}, "has no group sweep"),
        ({"train": "[1]"}, "has no group train"),
        ({"train": "None"}, "has no group train"),
    ],
)
def test_a_setting_is_never_replaced_by_its_default_in_silence(given, says, tmp_path):
    path = tmp_path / "own.py"
    lines = [f"{key} = {value}" for key, value in (GIVEN | given).items()]
    start = "from snnet_vitdet.engine import SweepSettings, TrainSettings"
    path.write_text("\n".join([start, *lines]))
    with pytest.raises(InputError, match=says):
        load_config(str(path))


def test_a_misspelt_setting_in_a_group_override_is_refused(tiny_config):
    with pytest.raises(InputError, match="did you mean train.amp.enabled"):
        tiny_config("train.amp={enable: false}")
    with pytest.raises(InputError, match="did you mean train.seed"):
        tiny_config("+train.seeed=1")
