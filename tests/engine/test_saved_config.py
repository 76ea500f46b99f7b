"""Saving config.yaml, and what a resumed training may change."""

import logging
import tempfile

import pytest
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from in_process import run_main
from omegaconf import OmegaConf

from snnet_vitdet.engine import load_config, save_config
from snnet_vitdet.engine.saved_config import check_resumed_settings, save_resumed_config
from snnet_vitdet.errors import InputError

# Each line stands for ten, or two, of the one before it.
MANY_ALIASES = b"a0: &a0 1\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (n, n, b",".join([b"*a%d" % (n - 1)] * 10)) for n in range(1, 12)
)
MANY_MERGES = b"a0: &a0 {x: 1}\n" + b"".join(
    b"a%d: &a%d {<<: [*a%d, *a%d]}\n" % (n, n, n - 1, n - 1) for n in range(1, 40)
)


@pytest.fixture
def folder(tiny_config, tmp_path):
    """The folder of a training, with what the checks read of it."""
    folder = tmp_path / "output"
    save_config(tiny_config(f"train.output_dir='{folder}'"), str(folder / "config.yaml"))
    (folder / "last_checkpoint").write_text("model_0000009.pth")
    return folder


@pytest.fixture
def resumed(tiny_config, folder):
    """The config of its resumed training, with further overrides."""
    return lambda *overrides: tiny_config(f"train.output_dir='{folder}'", *overrides)


def test_a_config_is_saved_as_a_whole_where_no_temporary_file_can_be(
    tiny_config, tmp_path, monkeypatch
):
    # What a full TMPDIR made of it was half a file, without a word.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not there"))
    config, path = tiny_config(), tmp_path / "config.yaml"
    save_config(config, str(path))
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]
    LazyConfig.save(config, str(tmp_path / "theirs.yaml"))
    assert path.read_bytes() == (tmp_path / "theirs.yaml").read_bytes()


def test_what_yaml_cannot_hold_is_pickled_beside_it(tiny_config, tmp_path):
    config = tiny_config()
    config.train.extra = L(print)(end=lambda: 3)
    save_config(config, str(tmp_path / "config.yaml"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml", "config.yaml.pkl"]


def test_the_same_settings_are_resumed_without_a_word(folder, resumed, caplog):
    before = (folder / "config.yaml").read_bytes()
    with caplog.at_level(logging.WARNING):
        check_resumed_settings(resumed())
        save_resumed_config(resumed(), 10)
    assert not caplog.records
    assert (folder / "config.yaml").read_bytes() == before
    assert not list(folder.glob("config_until_*"))


@pytest.mark.parametrize(
    ("override", "before", "now"),
    [
        ("optimizer.lr=1e-3", "optimizer.lr=0.0005", "optimizer.lr=0.001"),
        ("optimizer.weight_decay=0", "optimizer.weight_decay=0.1", "optimizer.weight_decay=0"),
        ("data.masks=false", "data.masks=True", "data.masks=False"),
        (
            "optimizer.params.lr_factor_func.rates.small=0.5",
            "optimizer.params.lr_factor_func.rates.small=1.0",
            "optimizer.params.lr_factor_func.rates.small=0.5",
        ),
        (
            "dataloader.train.total_batch_size=4",
            "dataloader.train.total_batch_size=2",
            "dataloader.train.total_batch_size=4",
        ),
    ],
)
def test_what_the_checkpoint_overrides_is_refused_by_name(resumed, override, before, now):
    with pytest.raises(InputError) as error:
        check_resumed_settings(resumed(override))
    assert f"has {before}, which its checkpoint goes on with" in str(error.value)
    assert f"the config now has {now}: resume it with {before}, or" in str(error.value)


@pytest.mark.parametrize(
    ("override", "before"),
    [
        ("sampler.step=0.005", "sampler.step=0.002"),
        ("train.seed=7", "train.seed=0"),
        ("train.max_iter=77", "train.max_iter=1200"),
        ("train.ends.period=4", "train.ends.period=0"),
        ("lr_multiplier.warmup_length=0.2", "lr_multiplier.warmup_length=0.05"),
        ("data.train_json=other.json", "data.train_json=${data.prepare.root}/train.json"),
        (
            "dataloader.train.mapper.augmentations.0.horizontal=False",
            "dataloader.train.mapper.augmentations.0.horizontal=True",
        ),
        ("model.backbone.net.small.drop_path_rate=0.3", "backbone.net.small.drop_path_rate=0.0"),
    ],
)
def test_what_changes_from_now_on_is_a_warning_and_the_config_of_before_stays(
    folder, resumed, caplog, override, before
):
    was = (folder / "config.yaml").read_bytes()
    config = resumed(override)
    check_resumed_settings(config)
    with caplog.at_level(logging.WARNING):
        save_resumed_config(config, 10)
    (record,) = caplog.records
    assert "From iteration 10 on, other settings than before" in record.getMessage()
    assert override in record.getMessage() and before in record.getMessage()
    assert (folder / "config_until_0000010.yaml").read_bytes() == was
    key, _, value = override.partition("=")
    assert str(OmegaConf.select(LazyConfig.load(str(folder / "config.yaml")), key)) == value
    # Killed before it has trained, and started with yet others: those of before are still told.
    save_resumed_config(resumed("train.max_iter=78"), 10)
    assert (folder / "config_until_0000010.yaml").read_bytes() == was


@pytest.mark.parametrize(
    "override",
    [
        "train.eval_period=7",
        "train.checkpointer.period=7",
        "sweep.stitch_ids=[0]",
        "dataloader.train.num_workers=1",
    ],
)
def test_what_changes_nothing_of_the_training_may_differ(folder, resumed, caplog, override):
    with caplog.at_level(logging.WARNING):
        check_resumed_settings(resumed(override))
        save_resumed_config(resumed(override), 10)
    assert not caplog.records and not list(folder.glob("config_until_*"))


def test_what_a_training_was_started_from_stays_on_record(folder, resumed, caplog):
    config = LazyConfig.load(str(folder / "config.yaml"))
    config.train.init_checkpoint = "first.pth"
    save_config(config, str(folder / "config.yaml"))
    for override, warned in (("", False), ("first.pth", False), ("other.pth", True)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            save_resumed_config(resumed(f"train.init_checkpoint='{override}'"), 10)
        assert ("other.pth has no effect" in caplog.text) == warned == bool(caplog.records)
        saved = LazyConfig.load(str(folder / "config.yaml"))
        assert saved.train.init_checkpoint == "first.pth"


def test_another_start_has_no_effect_which_is_said(folder, resumed, caplog):
    was = LazyConfig.load(str(folder / "config.yaml")).init
    config = resumed("init.num_images=3", "init.stitching_layers=random")
    check_resumed_settings(config)
    with caplog.at_level(logging.WARNING):
        save_resumed_config(config, 10)
    (record,) = caplog.records
    said = "init.num_images=3, init.stitching_layers=random have no effect: the training goes on"
    assert said in record.getMessage()
    # How it was started stays on record.
    assert LazyConfig.load(str(folder / "config.yaml")).init == was
    assert not list(folder.glob("config_until_*"))


def test_a_config_of_an_earlier_version_has_the_values_of_then(folder, resumed, caplog):
    config = LazyConfig.load(str(folder / "config.yaml"))
    del config.train.ends, config.train.ema_decay
    save_config(config, str(folder / "config.yaml"))
    with caplog.at_level(logging.WARNING):
        save_resumed_config(resumed(), 10)
    assert not caplog.records


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"train: {", b"\xff\xfe\0", b"- 1\n- 2\n", b"a: b: c", b"\0" * 99),
        *(b"a: " + b"[" * 100_000, b"a: &a [*a]", b"a: &a {b: *a}", b"#" * 2_000_000),
        *(b"a: !!timestamp x", b"? []\n: 1", b"a: !!float x", b"a: !!int ''", b"train: 3"),
        MANY_ALIASES,
        MANY_MERGES,
    ],
)
def test_a_broken_config_is_a_sentence_to_resume_by_and_to_load(folder, resumed, content):
    path = folder / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"config\.yaml cannot be read .*: restore it, or remove"):
        check_resumed_settings(resumed())
    with pytest.raises(InputError, match=r"config file .*config\.yaml cannot be read .*: it is da"):
        load_config(str(path))
    path.unlink()
    check_resumed_settings(resumed())


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.8, 0.99])
def test_a_config_that_was_cut_off_is_told_as_such(folder, resumed, kept):
    path = folder / "config.yaml"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: int(kept * len(lines))]))
    with pytest.raises(InputError, match=r"config\.yaml cannot be read \(it is incomplete\), so "):
        check_resumed_settings(resumed())


def test_the_remedy_of_a_key_that_has_come_or_gone_is_an_override_that_works(folder, resumed):
    with pytest.raises(InputError) as error:
        check_resumed_settings(resumed("+optimizer.eps=1e-6"))
    assert "has no optimizer.eps, which its" in str(error.value)
    assert "now has optimizer.eps=1e-06: resume it without optimizer.eps, or" in str(error.value)
    save_config(resumed("+optimizer.eps=1e-6"), str(folder / "config.yaml"))
    with pytest.raises(InputError) as error:
        check_resumed_settings(resumed("optimizer.lr=1"))
    remedy = "resume it with +optimizer.eps=1e-06, optimizer.lr=0.0005, or"
    assert "now has no optimizer.eps, optimizer.lr=1" in str(error.value)
    assert remedy in str(error.value)
    check_resumed_settings(resumed("+optimizer.eps=1e-06", "optimizer.lr=0.0005"))


@pytest.mark.parametrize("override", ["+optimizer.fused=False", "+optimizer.foreach=True"])
def test_the_kernels_of_the_optimizer_may_change(folder, resumed, override):
    check_resumed_settings(resumed(override))
    save_config(resumed(override), str(folder / "config.yaml"))
    check_resumed_settings(resumed())


def test_what_a_config_of_the_folder_names_is_not_called(folder, resumed, tmp_path):
    with open(folder / "config.yaml", "a") as file:
        file.write(f"extra: !!python/object/apply:os.mkdir ['{tmp_path / 'sprung'}']\n")
    check_resumed_settings(resumed())
    save_resumed_config(resumed(), 10)
    assert not (tmp_path / "sprung").exists()
    assert (folder / "config_until_0000010.yaml").exists()


@pytest.mark.slow
def test_a_training_goes_on_with_other_settings_and_its_files_say_so(
    tiny_config, tmp_path, restored_logging
):
    output = tmp_path / "output"
    own = [f"train.output_dir='{output}'", "train.eval_period=0", "init.num_images=1"]
    run_main(tiny_config(*own, "train.max_iter=2"))
    was = (output / "config.yaml").read_bytes()
    # What is trained already stays as it ran.
    run_main(tiny_config(*own, "train.max_iter=1"), "--resume")
    assert (output / "config.yaml").read_bytes() == was
    run_main(tiny_config(*own, "train.max_iter=4", "sampler.step=0.003"), "--resume")
    assert (output / "config_until_0000002.yaml").read_bytes() == was
    config = LazyConfig.load(str(output / "config.yaml"))
    assert config.sampler.step == 0.003 and config.train.max_iter == 4
    said = "sampler.step=0.003, train.max_iter=4 instead of sampler.step=0.002, train.max_iter=2"
    assert said in (output / "log.txt").read_text()


@pytest.mark.slow
def test_an_edited_config_does_not_hide_the_learning_rate_of_the_checkpoint(
    tiny_config, tmp_path, restored_logging
):
    output = tmp_path / "output"
    own = [f"train.output_dir='{output}'", "train.eval_period=0", "init.num_images=1"]
    run_main(tiny_config(*own, "train.max_iter=2", "train.checkpointer.period=1"))
    path = output / "config.yaml"
    saved = path.read_text()
    for old, new, named in (
        ("lr: 0.0005", "lr: 0.001", "lr=0.0005 where the config has lr=0.001"),
        ("weight_decay: 0.1", "weight_decay: 0.2", "weight_decay=0.1 where the config has"),
    ):
        assert old in saved
        path.write_text(saved.replace(old, new))
        config = load_config(str(path), ["train.max_iter=3"])
        check_resumed_settings(config)
        with pytest.raises(InputError, match=f"the optimizer of the checkpoint has {named}"):
            run_main(config, "--resume")
    path.write_text(saved)
    run_main(load_config(str(path), ["train.max_iter=3"]), "--resume")
