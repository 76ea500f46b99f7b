"""What a sweep depends on: the same elsewhere is the same, anything else is named."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from in_process import run_main
from PIL import Image, ImageOps

from snnet_vitdet.data.fingerprint import difference
from snnet_vitdet.engine import load_config, save_config
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation.provenance import provenance_of


@pytest.fixture
def data(tiny_scenes, tmp_path):
    """A folder with test data and weights of its own."""
    folder = tmp_path / "data"
    shutil.copytree(Path(tiny_scenes.test_json).parent, folder)
    (folder / "weights.pth").write_bytes(b"weights")
    return folder


@pytest.fixture
def provenance(tiny_config):
    def provenance(data, *overrides, checkpoint=True):
        config = tiny_config(
            *(f"data.{part}_json={data / part}.json" for part in ("train", "test")),
            *(f"data.{part}_images={data / part}" for part in ("train", "test")),
            *overrides,
        )
        found = provenance_of(config, str(data / "weights.pth") if checkpoint else None)
        return json.loads(json.dumps(found))

    return provenance


def test_a_copy_elsewhere_that_keeps_its_times_is_the_same(data, provenance, tmp_path):
    before = provenance(data)
    data.rename(tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", tmp_path / "copy")
    assert difference(before, provenance(tmp_path / "copy", "train.output_dir=x")) == ""


def test_the_config_that_a_run_has_saved_is_the_same(tiny_config, tiny_scenes, tmp_path):
    config, path = tiny_config(), str(tmp_path / "config.yaml")
    save_config(config, path)
    before, now = (
        json.loads(json.dumps(provenance_of(each, tiny_scenes.test_json)))
        for each in (config, load_config(path))
    )
    assert difference(before, now) == ""


def replaced_image(data):
    path = data / "test/000001.jpg"
    with Image.open(path) as image:
        ImageOps.invert(image).save(path)


def changed_annotations(data):
    path = data / "test.json"
    path.write_text(path.read_text().replace('"iscrowd": 0', '"iscrowd": 1', 1))


def other_weights(data):
    (data / "weights.pth").write_bytes(b"WEIGHTS")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (replaced_image, r"test_image\.000001\.jpg: \d+ bytes of 20.* then, \d+ bytes of 20.* now"),
        (lambda d: os.utime(d / "test/000001.jpg", (9, 9)), "of 1970-01-01 00:00:09 UTC now"),
        (changed_annotations, "test_json_sha256: .* then, .* now"),
        (other_weights, "^checkpoint_sha256: .* then, [^,]* now$"),
    ],
)
def test_what_has_changed_is_named(change, says, data, provenance):
    before = provenance(data)
    change(data)
    assert re.search(says, difference(before, provenance(data)))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "model.roi_heads.box_predictor.test_score_thresh=0.1",
            "settings.model.roi_heads.box_predictor.test_score_thresh: 0.05 then, 0.1 now",
        ),
        ("sweep.precision=bfloat16", "precision: float32 then, bfloat16 now"),
        ("dataloader.evaluator.max_dets_per_image=7", "max_dets_per_image: not set then, 7 now"),
        ("data.image_size=128", "and .* more"),
        ("dataloader.test.dataset.json_file=x.json", r"json_file: not set then, x\.json now"),
        ("dataloader.test.dataset.filter_empty=True", "filter_empty: not set then, True now"),
        ("sweep.padding=tight", "padding: not set then, tight now"),
    ],
)
def test_settings_that_have_changed_are_named(override, says, data, provenance):
    assert re.search(says, difference(provenance(data), provenance(data, override)))


def test_before_a_training_what_it_starts_from_counts(data, provenance):
    before = provenance(data, checkpoint=False)
    now = provenance(data, "train.seed=3", "init.num_images=7", checkpoint=False)
    assert difference(before, now) == (
        "settings.init.num_images: 100 then, 7 now, settings.train.seed: 0 then, 3 now"
    )
    assert difference(provenance(data), provenance(data, "train.seed=3")) == ""


@pytest.mark.slow
def test_rows_of_other_images_are_not_mixed_with_the_old_ones(
    data, trained_tiny, tmp_path, restored_logging
):
    def run(stitch, *flags):
        here = (f"data.test_json={data / 'test.json'}", f"data.test_images={data / 'test'}")
        run_main(trained_tiny(tmp_path / "out", *here, f"sweep.stitch_ids=[{stitch}]"), *flags)

    run("S", "--eval-only")
    rows = (tmp_path / "out/sweep/stitches.json").read_bytes()
    replaced_image(data)
    with pytest.raises(InputError, match=r"other weights, data or settings .*000001\.jpg"):
        run("L", "--eval-only", "--resume")
    assert (tmp_path / "out/sweep/stitches.json").read_bytes() == rows
