import logging
from collections import Counter

import pytest
from detectron2.config import LazyConfig, instantiate
from omegaconf import OmegaConf

from snnet_vitdet.engine import load_config, save_config
from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling.cost import build_on_meta
from snnet_vitdet.stitching import UniformSampler

NANO = "configs/shapes/mask_rcnn_snnet_nano.py"


@pytest.fixture(autouse=True)
def from_the_root(root, monkeypatch):
    """Config files are named as from the repository, where the programs run."""
    monkeypatch.chdir(root)


def test_a_saved_config_is_named_before_what_it_names_is_run(tmp_path, caplog, monkeypatch):
    """load_config warns, so that every program does: once for a file."""
    monkeypatch.setattr("detectron2.utils.logger._LOG_COUNTER", Counter())
    config, marker = tmp_path / "config.yaml", tmp_path / "it ran"
    config.write_text(f"a: !!python/object/apply:os.mkdir [{str(marker)!r}]\n")
    warned_before = []
    logging.getLogger("snnet_vitdet.engine.config").addFilter(
        watch := lambda record: warned_before.append(not marker.exists()) or True
    )
    try:
        with pytest.raises(InputError, match="no config that a run has saved"):
            load_config(str(config))
    finally:
        logging.getLogger("snnet_vitdet.engine.config").removeFilter(watch)
    assert marker.exists() and warned_before == [True]
    assert str(config) in caplog.text and "runs nothing" in caplog.text
    with pytest.raises(InputError, match="no config that a run has saved"):
        load_config(str(config))
    assert caplog.text.count("runs nothing") == 1


def test_missing_file_error_names_the_nearest_files_that_exist():
    with pytest.raises(InputError, match=r"mask_rcnn_snnet_nan\.py does not exist.*_nano\.py"):
        load_config("configs/shapes/mask_rcnn_snnet_nan.py")


def test_missing_file_error_lists_all_configs_if_none_is_near():
    with pytest.raises(InputError) as error:
        load_config("zzz")
    assert "configs/COCO/mask_rcnn_snnet_deit3_s_l_100ep.py" in str(error.value)
    assert NANO in str(error.value)


def test_no_file_at_all_says_which_option_to_add():
    with pytest.raises(InputError, match="add --config-file"):
        load_config("")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.max_itr=4", r"train has no key 'max_itr' \(did you mean 'max_iter'\?\); it has \["),
        ("trian.max_iter=4", r"the config has no key 'trian' \(did you mean 'train'\?\)"),
        ("train.amp.enable=False", "train.amp has no key 'enable'.*'precision'"),
        ("model.backbone.net.small.dept=3", "model.backbone.net.small has no key 'dept'.*'depth'"),
        ("model.backbone.nett.small.depth=3", "model.backbone has no key 'nett'"),
        ("train.max_iter.x=3", "train.max_iter is a value, it has no key 'x'"),
        (
            "dataloader.train.mapper.augmentations.7.min_scale=1",
            r"augmentations has no key '7'; it has \['0', '1', '2'\]",
        ),
        ("++foo.bar=3", "the config has no key 'foo'"),
    ],
)
def test_override_of_an_unknown_key_says_which_there_are(override, expected):
    with pytest.raises(InputError, match=expected):
        load_config(NANO, [override])


@pytest.mark.parametrize("override", ["train.max_iter", "train.max_iter=[1", "a=b=c"])
def test_override_that_cannot_be_read_says_how_to_write_it(override):
    with pytest.raises(InputError, match="cannot be read: write key=value"):
        load_config(NANO, [override])


def test_option_behind_the_overrides_is_told_where_it_belongs():
    with pytest.raises(InputError, match="option '--eval-only' comes after an override"):
        load_config(NANO, ["train.max_iter=3", "--eval-only"])


def test_override_with_bare_commas_says_how_to_quote_it():
    with pytest.raises(InputError) as error:
        load_config(NANO, ["sweep.stitch_ids=0-3,7"])
    assert "sweep.stitch_ids='0-3,7'" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("override", ["sweep.stitch_ids='0-3,7'", "sweep.stitch_ids=[0-3,7]"])
def test_override_with_commas_is_taken_as_that_error_says(override):
    ids = load_config(NANO, [override]).sweep.stitch_ids
    assert ids == "0-3,7" or list(ids) == ["0-3", 7]


def test_deleting_a_key_is_refused_as_input():
    with pytest.raises(InputError, match="cannot be applied"):
        load_config(NANO, ["~train.max_iter"])


def test_overrides_reach_nested_keys_and_list_items():
    config = load_config(
        NANO,
        [
            "train.max_iter=7",
            "model.backbone.net.small.depth=5",
            "dataloader.train.mapper.augmentations.1.min_scale=0.25",
        ],
    )
    assert config.train.max_iter == 7
    assert config.model.backbone.net.small.depth == 5
    augmentations = config.dataloader.train.mapper.augmentations
    assert [a.get("min_scale") for a in augmentations] == [None, 0.25, None]


def test_parameter_that_the_config_does_not_list_is_taken_and_arrives():
    assert "mlp_ratio" not in load_config(NANO).model.backbone.net.small
    config = load_config(
        NANO,
        ["model.backbone.net.small.mlp_ratio=3", "model.backbone.net.small.drop_path_rate=0.3"],
    )
    config.model.roi_heads.num_classes = 2
    small = build_on_meta(config.model).backbone.net.small
    assert small.blocks[0].mlp.fc1.out_features == 3 * small.embed_dim
    assert small.blocks[-1].drop_path.drop_prob == pytest.approx(0.3)


def test_the_class_of_a_node_can_be_exchanged():
    config = load_config(NANO, ["sampler._target_=snnet_vitdet.stitching.UniformSampler"])
    config.sampler.gflops = [1.0, 2.0, 2.0]
    sampler = instantiate(config.sampler)
    assert isinstance(sampler, UniformSampler)
    assert sampler.probabilities() == (1 / 3,) * 3


def test_plus_adds_a_key_that_is_not_there():
    config = load_config(NANO, ["+notes.author=me", "train.max_iter=3"])
    assert config.notes.author == "me"
    assert config.train.max_iter == 3


def test_one_load_does_not_change_the_next():
    load_config(NANO, ["train.max_iter=3", "model.backbone.net.lora_rank=1"])
    config = load_config(NANO)
    assert (config.train.max_iter, config.model.backbone.net.lora_rank) == (1200, 16)


def test_saved_config_loads_again_with_its_overrides_and_takes_new_ones(tmp_path, tiny_config):
    saved = tmp_path / "config.yaml"
    config = tiny_config("train.max_iter=3")
    LazyConfig.save(config, str(saved))
    again = load_config(str(saved), ["train.seed=5"])
    assert (again.train.max_iter, again.train.seed) == (3, 5)
    assert OmegaConf.to_container(again.train, resolve=True) == {
        **OmegaConf.to_container(config.train, resolve=True),
        "seed": 5,
    }
    names = [
        [(name, tuple(p.shape)) for name, p in build_on_meta(c.model).named_parameters()]
        for c in (config, again)
    ]
    assert names[0] == names[1]
    assert instantiate(again.lr_multiplier)(0.5) == 1.0
    with pytest.raises(InputError, match="max_itr"):
        load_config(str(saved), ["train.max_itr=4"])


def test_saved_config_of_an_earlier_version_gets_the_keys_it_lacks(tiny_config, tmp_path):
    config, path = tiny_config(), str(tmp_path / "config.yaml")
    defaults = OmegaConf.to_container(OmegaConf.masked_copy(config, ["train", "sweep"]))
    del config["sweep"]
    for key in ("ends", "distillation", "ema_decay", "clip_grad_norm", "tf32"):
        del config.train[key]
    LazyConfig.save(config, path)
    loaded = load_config(path)
    assert OmegaConf.to_container(OmegaConf.masked_copy(loaded, ["train", "sweep"])) == defaults
    changed = load_config(path, ["sweep.subset=500", "train.ends.period=4"])
    assert (changed.sweep.subset, changed.sweep.mode) == (500, "one_pass")
    assert changed.train.ends == {**defaults["train"]["ends"], "period": 4}


def test_saved_config_with_removed_features_that_were_off_loads(tiny_config, tmp_path):
    config = tiny_config()
    plain = OmegaConf.to_container(config.model.backbone.net)
    config.model.backbone.net.update(exit_rank=None, exit_norm=None)
    LazyConfig.save(config, str(tmp_path / "config.yaml"))
    loaded = load_config(str(tmp_path / "config.yaml"))
    assert loaded.model.backbone.net.keys() == plain.keys()
    build_on_meta(loaded.model)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.backbone.net.exit_norm", "kind"),
        ("model.backbone.net.exit_rank", 0),
        ("model._target_", "snnet_vitdet.modeling.ExitAwareRCNN"),
        ("model.roi_heads.box_head._target_", "snnet_vitdet.modeling.ExitAdapterBoxHead"),
    ],
)
def test_saved_config_with_a_removed_feature_is_refused(key, value, tiny_config, tmp_path):
    config = tiny_config()
    OmegaConf.update(config, key, value, force_add=True)
    LazyConfig.save(config, str(tmp_path / "config.yaml"))
    with pytest.raises(InputError, match=f"{key}={value} cannot be used: this feature was removed"):
        load_config(str(tmp_path / "config.yaml"))


def test_a_trainings_own_config_means_its_folder_and_what_it_has_trained(tmp_path):
    given = ("train.output_dir=elsewhere", "train.init_checkpoint=start.pth")
    path = str(tmp_path / "config.yaml")
    LazyConfig.save(load_config(NANO, given), path)
    # In a folder without a checkpoint, it is a config like any other.
    train = load_config(path).train
    assert (train.output_dir, train.init_checkpoint) == ("elsewhere", "start.pth")
    (tmp_path / "model_0000003.pth").touch()
    train = load_config(path).train
    assert (train.output_dir, train.init_checkpoint) == (str(tmp_path), "")
    train = load_config(path, given).train
    assert (train.output_dir, train.init_checkpoint) == ("elsewhere", "start.pth")


def test_a_saved_config_without_a_grouping_goes_on_with_rounded_groups(tiny_config, tmp_path):
    config = tiny_config()
    assert config.sampler.pop("grouping") == "gap"
    path = str(tmp_path / "config.yaml")
    LazyConfig.save(config, path)
    assert load_config(path).sampler.grouping == "round"
    assert load_config(path, ["sampler.grouping=gap"]).sampler.grouping == "gap"
    config.sampler = {"_target_": "snnet_vitdet.stitching.UniformSampler", "seed": 0}
    LazyConfig.save(config, path)
    assert "grouping" not in load_config(path).sampler


@pytest.mark.parametrize("group", ["ends", "distillation"])
def test_a_group_that_is_set_to_null_is_off(group, tiny_config):
    assert tiny_config(f"train.{group}=null") == tiny_config()


@pytest.mark.parametrize("group", ["sampler", "train.amp"])
def test_another_group_that_is_null_in_an_edited_config_is_named(group, tiny_config, tmp_path):
    config, path = tiny_config(), str(tmp_path / "config.yaml")
    OmegaConf.update(config, group, None)
    LazyConfig.save(config, path)
    with pytest.raises(InputError, match=f"{group}=null must be a group of settings"):
        load_config(path)


def test_a_group_that_is_there_twice_is_refused(tiny_config, tmp_path):
    """YAML takes the last one, and all other settings of it would be defaults."""
    path = tmp_path / "config.yaml"
    save_config(tiny_config(), str(path))
    path.write_text(path.read_text() + "train: {max_iter: 3}\n")
    with pytest.raises(InputError, match="it has train twice"):
        load_config(str(path))


def test_numbers_of_numpy_become_those_of_python(root, tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "import numpy as np\nfrom detectron2.config import LazyConfig\n"
        f"globals().update(LazyConfig.load({str(root / NANO)!r}))\n"
        "train.max_iter, train.eval_stitches = np.int64(3), [np.int64(0)]\n"
        "optimizer.lr = np.float64(1e-4) * 2\n"
    )
    config = load_config(str(path))
    assert type(config.train.max_iter) is type(config.train.eval_stitches[0]) is int
    assert type(config.optimizer.lr) is float and config.optimizer.lr == 2e-4
