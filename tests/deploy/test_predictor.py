"""A trained tiny model as a function from images to detections."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from in_process import run_program
from PIL import Image

from snnet_vitdet import Predictor, StitchTable
from snnet_vitdet.deploy import draw_detections, image_files, to_rgb
from snnet_vitdet.engine import StrictCheckpointer
from snnet_vitdet.errors import InputError
from snnet_vitdet.stitching import LowRankLinear

# Training takes some seconds, whichever of these tests runs first.
pytestmark = pytest.mark.slow


@pytest.fixture
def make(swept):
    """Makes a predictor of the swept model."""
    return lambda **kwargs: Predictor(swept, swept.train.init_checkpoint, device="cpu", **kwargs)


@pytest.fixture
def files(swept):
    return image_files(swept.data.test_images)


def assert_same(one, other):
    assert len(one) == len(other) > 0
    assert torch.equal(one.pred_boxes.tensor, other.pred_boxes.tensor)
    assert torch.equal(one.scores, other.scores)
    assert torch.equal(one.pred_classes, other.pred_classes)
    assert torch.equal(one.pred_masks, other.pred_masks)


@torch.no_grad()
def test_detections_are_those_that_the_sweep_scores(swept, make):
    """Merging the low-rank updates changes them by rounding: boxes to 0.01 pixels."""
    model = instantiate(swept.model).eval()
    StrictCheckpointer(model).load(swept.train.init_checkpoint)
    samples = [sample for batch in instantiate(swept.dataloader.test) for sample in batch]
    predictor = make()
    counts = set()
    for stitch in predictor.stitches[::3]:
        predictor.set_stitch(stitch.name)
        model.backbone.net.set_stitch(stitch.id)
        for sample in samples[:3]:
            expected = model([sample])[0]["instances"]
            found = predictor(sample["file_name"])
            assert len(found) == len(expected)
            torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-4)
            boxes = found.pred_boxes.tensor
            torch.testing.assert_close(boxes, expected.pred_boxes.tensor, rtol=0, atol=1e-2)
            counts.add(len(found))
    assert len(counts) > 1


def test_low_rank_updates_are_merged_for_as_long_as_there_is_a_predictor(make):
    layers = [m for m in make().model.modules() if isinstance(m, LowRankLinear) and m.rank]
    # That predictor is gone.
    assert layers and all(layer._merged is None for layer in layers)
    predictor = make()
    layers = [m for m in predictor.model.modules() if isinstance(m, LowRankLinear) and m.rank]
    for layer in layers:
        assert torch.equal(layer._merged, layer.merged_weight())


def test_images_may_be_files_pictures_and_arrays(make, files, tmp_path):
    predictor = make(stitch="FS-2")
    expected = predictor(files[0])
    picture = Image.open(files[0])
    array = np.asarray(picture.convert("RGB"))
    for image in (Path(files[0]), picture, array):
        assert_same(predictor(image), expected)
    # Held upright by a camera that noted how it was turned.
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    assert_same(predictor(tmp_path / "turned.png"), expected)
    grey = array.mean(axis=2).astype(np.uint8)
    assert_same(predictor(grey), predictor(np.stack([grey] * 3, axis=2)))


def test_batches_and_streams_give_what_single_images_give(make, files):
    predictor = make(stitch=3)
    single = [predictor(file) for file in files[:5]]
    for batch_size in (1, 2, 5, 9):
        found = predictor(files[:5], batch_size=batch_size)
        assert [len(each) for each in found] == [len(each) for each in single]
        for one, other in zip(found, single, strict=True):
            torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=1e-4)
    with pytest.raises(InputError, match="batch_size must be 1 or more, got 0"):
        predictor(files, batch_size=0)


def test_a_switch_is_in_effect_at_once_and_an_unknown_one_is_refused(make, files):
    predictor = make(stitch="S")
    small = predictor(files[0])
    predictor.set_stitch("L")
    large = predictor(files[0])
    assert not torch.equal(small.scores[:1], large.scores[:1])
    for unknown in ("FS-99", 14, -1, "f"):
        with pytest.raises(InputError, match=r"no stitch .*: ids are 0 to 13, names .* S, L, FS-1"):
            predictor.set_stitch(unknown)
    assert predictor.stitch.name == "L"
    assert_same(predictor(files[0]), large)
    predictor.set_stitch(0)
    assert_same(predictor(files[0]), small)


def test_an_id_may_be_any_integer(make, files):
    predictor = make()
    expected = predictor(files[0], stitch=3)
    for stitch in (np.int64(3), torch.tensor(3), "3"):
        assert_same(predictor(files[0], stitch=stitch), expected)
        assert predictor.set_stitch(stitch).id == 3
    for stitch in ([3], 3.5, True):
        with pytest.raises(InputError, match="a stitch is chosen by its id or name, not by"):
            predictor(files[0], stitch=stitch)


def test_arguments_that_do_not_fit_are_told(swept, make):
    with pytest.raises(InputError, match="there is no device 'gpu': choose auto, cpu or cuda"):
        Predictor(swept, swept.train.init_checkpoint, device="gpu")
    model, names = instantiate(swept.model), make().class_names
    with pytest.raises(InputError, match="a mapper has augmentations and image_format"):
        Predictor.from_model(model, names, {}, device="cpu")
    with pytest.raises(InputError, match=r"the model has \d classes, and 1 class names are given"):
        Predictor.from_model(model, ["a"], swept.dataloader.test.mapper, device="cpu")
    with pytest.raises(InputError, match="no config file is given"):
        Predictor("")


def test_what_is_no_threshold_is_refused_with_or_without_a_sweep(swept, make):
    model, names = instantiate(swept.model), make().class_names
    without = Predictor.from_model(model, names, swept.dataloader.test.mapper, device="cpu")
    for predictor in (make(), without):
        for score in (None, [0.3], True, float("nan"), 1.5, "0.5", "F1"):
            with pytest.raises(InputError, match="a threshold is a score from 0 to 1, f1, or"):
                predictor.set_score_threshold(score)
        assert predictor.score_threshold == 0
        assert predictor.set_score_threshold(np.float32(0.5)) == 0.5


@pytest.mark.parametrize("size", [(1, 100000), (20000, 10), (2, 20000)])
def test_an_image_that_resizing_takes_a_side_from_is_refused(make, size):
    size_text = f"{size[1]} x {size[0]} pixels"
    with pytest.raises(InputError, match=f"{size_text} is too elongated"):
        make()(np.zeros((*size, 3), np.uint8))


def test_a_budget_chooses_the_tables_best(swept, make):
    table = StitchTable.read(swept.train.output_dir)
    limit = sorted(entry.gflops for entry in table)[5]
    best = table.best(max_gflops=limit)
    assert make(max_gflops=limit).stitch.name == best.name
    predictor = make()
    assert predictor.stitch.name == "L"
    assert predictor.choose(max_gflops=limit).name == best.name == predictor.stitch.name
    with pytest.raises(InputError, match="give a stitch or budgets, not both"):
        make(stitch="S", max_gflops=1)
    with pytest.raises(InputError, match="run tools/measure_latency.py first"):
        make(max_latency_ms=5)


def test_a_folder_stands_for_its_config_wherever_it_has_been_moved(swept, files, tmp_path, make):
    trained = Path(swept.train.init_checkpoint).parent
    moved = shutil.copytree(trained, tmp_path / "moved")
    other = StrictCheckpointer(instantiate(swept.model), str(moved))
    other.save("model_final", classes={"thing_classes": make().class_names})
    predictor = Predictor(moved, device="cpu")
    assert predictor.source == str(moved / "model_final.pth")
    # The weights are the moved folder's, which are others now.
    trained_scores = Predictor(trained / "config.yaml", device="cpu")(files[0]).scores
    assert not torch.equal(predictor(files[0]).scores, trained_scores)


def test_a_file_that_is_no_config_is_told_what_it_is():
    with pytest.raises(InputError, match="exported detector: load it by Predictor.from_file"):
        Predictor("FS-3.safetensors")
    with pytest.raises(InputError, match="holds weights: give the config first"):
        Predictor("model_final.pth")


def test_weights_that_are_not_trained_are_said_to_be_so(swept, caplog):
    folder = Path(swept.train.init_checkpoint).parent
    for name, warns in (("model_init", True), ("model_final", False)):
        caplog.clear()
        Predictor(folder, folder / f"{name}.pth", device="cpu")
        assert ("finds nothing yet" in caplog.text) == warns


def test_a_threshold_is_of_the_stitch_in_effect(swept, make, files):
    table = StitchTable.read(swept.train.output_dir)
    predictor = make(stitch="S", score_threshold="f1")
    thresholds = {}
    for stitch in predictor.stitches:
        predictor.set_stitch(stitch.id)
        thresholds[stitch.name] = predictor.score_threshold
        assert predictor.score_threshold == table.threshold(stitch.name, "f1")
        assert all((predictor(f).scores >= predictor.score_threshold).all() for f in files)
    assert len(set(thresholds.values())) > 1
    assert make(score_threshold="f1").score_threshold == thresholds["L"]
    with pytest.raises(InputError, match="a threshold is a score from 0 to 1, f1, or precision="):
        make(score_threshold="F2")
    predictor.set_stitch("S")
    assert predictor.set_score_threshold(0.25) == 0.25
    predictor.set_stitch("L")
    assert predictor.score_threshold == 0.25
    assert predictor.set_score_threshold("f1") == thresholds["L"]
    predictor.set_stitch("S")
    assert predictor.score_threshold == thresholds["S"]


def test_a_loaded_model_gives_what_its_checkpoint_gives(swept, make, files):
    model, names, mapper = (
        instantiate(swept.model),
        make().class_names,
        swept.dataloader.test.mapper,
    )
    StrictCheckpointer(model).load(swept.train.init_checkpoint)
    table = StitchTable.read(swept.train.output_dir)
    predictor = Predictor.from_model(
        model, names, mapper, table=table, max_gflops=1e9, device="cpu"
    )
    assert predictor.stitch.name == table.best().name
    assert_same(predictor(files[0]), make(stitch=table.best().name)(files[0]))
    without = Predictor.from_model(model, names, mapper, device="cpu")
    with pytest.raises(InputError, match="this model has no sweep, and budgets and"):
        without.choose(max_gflops=1)


def test_what_is_no_image_is_refused(make, tmp_path):
    predictor = make()
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(InputError, match=r"text.jpg cannot be read as an image"):
        predictor(tmp_path / "text.jpg")
    for array in (np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), "u1")):
        with pytest.raises(InputError, match=r"an array must be RGB of shape"):
            predictor(array)
    with pytest.raises(InputError, match="not int"):
        predictor(3)


def test_detections_are_drawn_at_the_size_of_the_image_or_larger(make, files):
    found = make()(files[0])
    image = to_rgb(files[0])
    drawn = draw_detections(image, found)
    assert drawn.shape == image.shape and (drawn != image).any()
    assert draw_detections(image, found[found.scores > 2], min_side=200).shape == (200, 200, 3)
    assert draw_detections(image, found, max_side=32).shape == (32, 32, 3)
    # A large picture is drawn at a bounded size, with its objects in their places.
    large = np.zeros((1500, 6000, 3), np.uint8)
    drawn = draw_detections(large, found[:0])
    assert drawn.shape == (512, 2048, 3) and not drawn.any()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_gives_detections_of_the_usual_types(precision, make, files):
    """Scores differ by the rounding of 8 or 11 bits through the whole model."""
    expected, found = make(stitch="S")(files[0]), make(stitch="S", precision=precision)(files[0])
    assert found.scores.dtype == found.pred_boxes.tensor.dtype == torch.float32
    assert 0 < (found.scores[0] - expected.scores[0]).abs() < 0.05
    image = to_rgb(files[0])
    assert (draw_detections(image, found) != image).any()
    assert instances_to_coco_json(found, 0)
    with pytest.raises(InputError, match="precision must be float32, float16 or bfloat16, got 'x'"):
        make(precision="x")


def test_times_and_memory_are_measured_and_used(swept, root, tmp_path, make):
    config_file = Path(swept.train.init_checkpoint).parent / "config.yaml"
    command = [sys.executable, "tools/measure_latency.py", "--config-file", str(config_file)]
    command += ["--repeats=1", "--warmup=0", "--batch=2", "--device=cpu"]
    command += [f"--output={tmp_path / 'latency.json'}"]
    # With detections, the memory of their masks would decide.
    command += ["model.roi_heads.box_predictor.test_score_thresh=1"]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    table = StitchTable.read(swept.train.output_dir, tmp_path / "latency.json")
    before = json.loads((tmp_path / "latency.json").read_text())["rows"]
    done = run_program(*command[1:], "--stitches=S,L")
    assert done.code == 0 and "have no measurement" not in done.printed
    after = json.loads((tmp_path / "latency.json").read_text())["rows"]
    assert [row["stitch_id"] for row in after] == list(range(14))
    assert [i for i in range(14) if after[i] != before[i]] == [0, 1] and after[2:] == before[2:]
    done = run_program(*command[1:], "--stitches=S,L", "--precision=bfloat16")
    assert "was measured in another way; its 14 rows are replaced" in done.printed
    assert "12 of 14 stitches have no measurement" in done.printed
    assert all(entry.latency_ms > 0 for entry in table)
    # The operations and images are the same: more weights take more memory.
    assert table["L"].memory_mb > table["S"].memory_mb > 0
    chosen = make(table=table, max_memory_mb=table["S"].memory_mb).stitch.name
    assert chosen == table.best(max_memory_mb=table["S"].memory_mb).name
