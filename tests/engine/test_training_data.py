"""Training data that change between two runs of a training are noticed."""

import copy
import json
import logging
import os
import re
import shutil
from pathlib import Path

import pytest
from in_process import run_main

from snnet_vitdet.engine.run_data import note_training_data


@pytest.fixture
def config(tiny_config, tiny_scenes, tmp_path):
    """Of a training with data and a folder of its own."""
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
    assert "whether the training data are those of before is not known" in caplog.text
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
