"""Operating points in use: predict, choose, measure, export, report, demo page."""

import json
import pickle

import cv2
import numpy as np
import pytest
import torch
import train_net
from detectron2.engine import default_argument_parser
from in_process import run_program

from snnet_vitdet import Predictor, StitchTable
from snnet_vitdet.demo.choices import Choices
from snnet_vitdet.deploy import export_stitch, load_exported, measure_points, read_export
from snnet_vitdet.engine import save_config
from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import point_of, stitch_costs
from snnet_vitdet.sweep_run import costs_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("restored_logging")]

LOW = "model.roi_heads.box_predictor.test_score_thresh=0.01"


@pytest.fixture(scope="module")
def config(trained_tiny, tmp_path_factory):
    """The config of a training with a sweep of points beside it."""
    config = trained_tiny(
        tmp_path_factory.mktemp("points"),
        *(LOW, "sweep.stitch_ids=[S,FS-2]", "sweep.image_sizes=[48,64]", "sweep.proposals=[5,20]"),
    )
    train_net.main(default_argument_parser().parse_args(["--eval-only"]), config)
    return config


@pytest.fixture
def make(config):
    """Makes a predictor of the training."""
    return lambda **options: Predictor(
        config, config.train.init_checkpoint, table=StitchTable.read(folder_of(config)), **options
    )


def folder_of(config):
    return config.train.output_dir


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)


def assert_same(found, expected):
    assert len(found) == len(expected) > 0
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_a_point_detects_what_a_model_of_this_size_and_number_detects(
    make, trained_tiny, tmp_path, image
):
    predictor = make()
    point = predictor.set_point("FS-2@48/5")
    assert (point.name, point.image_size, point.num_proposals) == ("FS-2@48/5", 48, 5)
    assert predictor.name == "FS-2@48/5"
    prepared = predictor.prepare(image)
    assert max(prepared["image"].shape) == 48
    other = trained_tiny(
        tmp_path,
        *(LOW, "data.image_size=48", "model.proposal_generator.post_nms_topk=[40,5]"),
    )
    alone = Predictor(other, other.train.init_checkpoint, stitch="FS-2")
    expected = alone(image)
    assert_same(predictor(image), expected)
    # For one call, whatever is in effect.
    predictor.set_stitch("S")
    assert predictor.name == "S"
    own = predictor(image)
    assert not own.scores.requires_grad
    assert_same(predictor(image, stitch="FS-2@48/5"), expected)
    assert_same(predictor(image), own)
    assert_same(list(predictor.stream([image] * 3, 2, "FS-2@48/5"))[2], expected)
    again = pickle.loads(pickle.dumps(predictor))
    assert_same(again(image, stitch="FS-2@48/5"), expected)


def test_the_trained_size_and_number_are_the_stitch(make, image):
    predictor = make(stitch="S@64/20")
    assert predictor.name == "S" and predictor.point.is_trained
    assert_same(predictor(image), make(stitch="S")(image))
    assert make(stitch="0@48/5").name == "S@48/5"


def test_a_budget_chooses_size_and_number_too(make, config):
    table = StitchTable.read(folder_of(config))
    cheapest = min(table, key=lambda entry: entry.gflops)
    predictor = make(max_gflops=cheapest.gflops, score_threshold="f1")
    assert predictor.name == cheapest.name == "S@48/5"
    assert predictor.score_threshold == table.threshold("S@48/5", "f1")
    predictor.set_point("S")
    assert predictor.score_threshold == table.threshold("S", "f1")


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ("FS-2@", "write it as FS-3@640/300"),
        ("FS-9@48/5", "no stitch 'FS-9'"),
        ("FS-2@50/5", "50 is not a multiple of the patch size 16"),
        ("FS-2@0/5", "at least"),
        ("FS-2@48/0", "the RPN gives 1 to 200 proposals"),
        ("FS-2@48/201", "the RPN gives 1 to 200 proposals"),
    ],
)
def test_points_that_the_model_cannot_run_are_refused(make, point, message):
    predictor = make(stitch="S@48/5")
    with pytest.raises(InputError, match=message):
        predictor.set_point(point)
    assert predictor.name == "S@48/5"


def test_an_image_of_another_size_is_refused(make, image):
    predictor = make(stitch="S")
    own, small = predictor.prepare(image), predictor.prepare(image, "S@48/5")
    assert predictor.detect([small], "FS-2@48/20")
    for inputs, point in (([small], "S"), ([own], "S@48/5"), ([own, small], "S")):
        with pytest.raises(InputError, match=f"another image size than that of {point}:"):
            predictor.detect(inputs, point)
    # Whoever prepares images himself knows what he does.
    assert predictor.detect([{k: v for k, v in small.items() if k != "prepared_for"}], "S")


def test_a_sweep_of_another_size_by_an_override_is_not_taken(config, trained_tiny, tmp_path):
    """Its rows have the names of the stitches, but are of other detectors."""
    other = trained_tiny(tmp_path, LOW, "sweep.stitch_ids=[S]", "data.image_size=48")
    train_net.main(default_argument_parser().parse_args(["--eval-only"]), other)
    table = StitchTable.read(tmp_path)
    assert (table["S"].result.image_size, table["S"].name) == (48, "S")
    weights = config.train.init_checkpoint
    message = "scored S at 48 pixels with 20 proposals, but the config has 64 and 20: give the same"
    with pytest.raises(InputError, match=message):
        Predictor(config, weights, table=table, max_gflops=1)
    assert Predictor(other, weights, table=table, max_gflops=1).name == "S"
    here = trained_tiny(tmp_path, LOW)
    with pytest.raises(InputError, match=message):
        Predictor(here, weights, max_gflops=1)
    predictor = Predictor(here, weights, stitch="S")
    arguments = (predictor.model, here, predictor.stitch, predictor.class_names)
    assert export_stitch(tmp_path / "s.safetensors", *arguments).result is None


def test_points_are_measured(make, config, image):
    predictor = make(stitch="S")
    points = [point_of(predictor.model, name) for name in ("S", "S@48/5")]
    costs = costs_of(config, points)
    rows = measure_points(predictor, points, lambda p: costs[p.name], [image], 1, 0)
    assert [row["name"] for row in rows] == ["S", "S@48/5"]
    assert rows[1]["memory_mb"] < rows[0]["memory_mb"]
    assert predictor.name == "S"
    table = StitchTable.read_results(f"{folder_of(config)}/sweep")
    measured = StitchTable([e.result for e in table], {"device": "here", "rows": rows})
    assert measured["S@48/5"].memory_mb == rows[1]["memory_mb"]
    assert measured["S@48/20"].memory_mb is None


def test_an_exported_file_carries_its_point(make, config, image, tmp_path):
    predictor = make(stitch="FS-2@48/5")
    path = tmp_path / "point.safetensors"
    model, names = predictor.model, predictor.class_names
    info = export_stitch(path, model, config, predictor.stitch, names, (48, 5))
    assert read_export(path) == info
    assert (info.name, info.stitch.name, info.image_size) == ("FS-2@48/5", "FS-2", 48)
    assert info.gflops == StitchTable.read(folder_of(config))["FS-2@48/5"].gflops
    exported = Predictor.from_file(path, score_threshold="f1")
    assert exported.name == "FS-2@48/5" and exported.point.num_proposals == 5
    exported.set_score_threshold(0.0)
    found, expected = exported(image), predictor(image)
    assert len(found) == len(expected) > 0
    # Low-rank updates are merged on the way.
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=1e-4)
    exported.set_stitch("FS-2@48/5")
    assert not exported.point.is_trained
    for other in ("FS-2", "FS-2@64/5", "FS-2@48/4", 3):
        with pytest.raises(InputError, match="has FS-2@48/5 alone: export"):
            exported.set_point(other)
    trained = StitchTable.read(folder_of(config))["FS-2"]
    assert exported.table["FS-2@48/5"].params_m == info.params_m == trained.params_m
    assert load_exported(path).backbone.padding_constraints["square_size"] == 48
    # A file as trained has no more keys than before there were points.
    export_stitch(path, model, config, predictor.stitch, names)
    assert "point" not in json.loads(read_export(path).to_json())
    assert read_export(path).name == "FS-2"


def test_a_point_that_is_not_that_of_its_file_is_refused(make, config, tmp_path):
    predictor = make(stitch="FS-2@48/5")
    arguments = (predictor.model, config, predictor.stitch, predictor.class_names, (48, 5))
    content = json.loads(export_stitch(tmp_path / "a.safetensors", *arguments).to_json())
    for point in ("S@48/5", "FS-2@64/5", "FS-2@48"):
        with pytest.raises(InputError, match="operating point"):
            type(read_export(tmp_path / "a.safetensors")).from_json(
                json.dumps({**content, "point": point})
            )


def test_the_tools_take_points(config, tmp_path, image):
    cv2.imwrite(str(tmp_path / "photo.png"), image)
    file, weights = f"{folder_of(config)}/config.yaml", config.train.init_checkpoint
    save_config(config, file)
    common = ["--config-file", file, "--weights", weights]
    out = tmp_path / "out"
    photo = str(tmp_path / "photo.png")
    done = run_program(
        *("tools/predict.py", photo, *common, "--stitch", "FS-2@48/5", "--output", str(out))
    )
    assert done.code == 0, done.error
    assert json.loads((out / "predictions.json").read_text())
    assert "Stitch FS-2@48/5 of" in done.printed
    exported = str(tmp_path / "p.safetensors")
    done = run_program(
        *("tools/export_stitch.py", *common, "--stitch", "S@96/5", "--output", exported, "--onnx")
    )
    assert done.code == 0, done.error
    assert "S@96/5" in done.printed and "1 x 3 x 96 x 96" in done.printed
    done = run_program(
        *("tools/measure_latency.py", *common, "--stitches", "S, FS-2@96/5"),
        *("--repeats", "1", "--warmup", "0", "--output", str(tmp_path / "points.json")),
    )
    assert done.code == 0, done.error
    rows = json.loads((tmp_path / "points.json").read_text())["rows"]
    assert {row["name"] for row in rows} >= {"S", "S@48/5", "FS-2@96/5"}
    done = run_program(
        *("tools/measure_latency.py", *common, "--stitches", "frontier"),
        *("--repeats", "1", "--warmup", "0", "--output", str(tmp_path / "latency.json")),
    )
    assert done.code == 0, done.error
    names = {row["name"] for row in json.loads((tmp_path / "latency.json").read_text())["rows"]}
    table = StitchTable.read(folder_of(config))
    assert names == {row["name"] for row in table.rows() if row["on_pareto"]}
    assert any("@" in name for name in names)


def test_the_demo_page_chooses_among_points(make, config):
    table = StitchTable.read(folder_of(config))
    choices = Choices(make().stitches, stitch_costs(config.model), table)
    assert {"S", "S@48/5", "L"} <= choices.rows.keys()
    cheapest = min(entry.gflops for entry in table)
    assert choices.within("gflops", cheapest, "box") == "S@48/5"
    low, _, _ = choices.limits("gflops")
    assert low >= cheapest


@pytest.fixture(scope="module")
def tight(trained_tiny, tmp_path_factory):
    """The config of a training with a sweep with tight padding beside it."""
    config = trained_tiny(
        tmp_path_factory.mktemp("tight"), LOW, "sweep.stitch_ids=[S,FS-2]", "sweep.padding=tight"
    )
    train_net.main(default_argument_parser().parse_args(["--eval-only"]), config)
    return config


def test_a_predictor_pads_as_its_config_or_its_argument_says(tight, config, image):
    weights = config.train.init_checkpoint
    by_config, by_argument = Predictor(tight, weights), Predictor(config, weights, padding="tight")
    square = Predictor(config, weights)
    assert (by_config.padding, by_argument.padding, square.padding) == ("tight", "tight", "square")
    image = image[:30]
    found = by_config(image, stitch="S")
    assert_same(found, by_argument(image, stitch="S"))
    assert not torch.equal(found.scores[:3], square(image, stitch="S").scores[:3])
    assert_same(Predictor(tight, weights, padding="square")(image), square(image))
    # Images of one shape are padded alike, alone or together.
    batch = by_config([image] * 2, batch_size=2, stitch="S")
    torch.testing.assert_close(batch[1].scores, found.scores, atol=1e-5, rtol=1e-4)
    with pytest.raises(InputError, match="padding must be square or tight, got 'loose'"):
        Predictor(config, weights, padding="loose")


def test_a_sweep_with_other_padding_is_not_taken(tight, config):
    weights = config.train.init_checkpoint
    assert Predictor(tight, weights, max_gflops=1).name in ("S", "FS-2")
    message = "is a sweep with tight padding, and its costs and scores are not those of square"
    with pytest.raises(InputError, match=message):
        Predictor(tight, weights, padding="square", max_gflops=1)
    with pytest.raises(InputError, match="give sweep.padding=square, or in Python padding="):
        Predictor(config, weights, padding="tight", max_gflops=1)


def test_an_exported_file_pads_as_it_was_swept(tight, config, image, tmp_path):
    predictor = Predictor(tight, config.train.init_checkpoint, stitch="FS-2")
    arguments = (predictor.model, tight, predictor.stitch, predictor.class_names)
    info = export_stitch(tmp_path / "tight.safetensors", *arguments)
    assert info.padding == "tight" and info.aspect_ratio == info.result.aspect_ratio == 1.333
    assert info.gflops == StitchTable.read(folder_of(tight))["FS-2"].gflops
    exported = Predictor.from_file(tmp_path / "tight.safetensors", score_threshold="f1")
    assert exported.padding == "tight"
    exported.set_score_threshold(0.0)
    found, expected = exported(image[:30]), predictor(image[:30])
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=1e-4)
    content = json.loads(info.to_json())
    for ratio in (None, 2.0):
        with pytest.raises(InputError, match="its sweep has another aspect ratio"):
            type(info).from_json(json.dumps({**content, "aspect_ratio": ratio}))
    # The scores are the sweep's, the costs are those of the ratio that is asked for.
    tight.sweep.aspect_ratio = 2.0
    other = export_stitch(tmp_path / "other.safetensors", *arguments)
    tight.sweep.aspect_ratio = 1.333
    assert other.gflops == other.result.gflops < info.gflops
    assert other.result.metrics == info.result.metrics
    square = export_stitch(
        tmp_path / "square.safetensors", predictor.model, config, predictor.stitch, info.class_names
    )
    assert "aspect_ratio" not in json.loads(square.to_json())


def test_the_tools_take_tight_padding(tight, config, tmp_path):
    file, weights = f"{folder_of(tight)}/config.yaml", config.train.init_checkpoint
    save_config(tight, file)
    common = ["--config-file", file, "--weights", weights]
    exported = str(tmp_path / "p.safetensors")
    options = ("--stitch", "S", "--output", exported)
    ratio = "sweep.aspect_ratio=2.5"
    done = run_program("tools/export_stitch.py", *common, *options, "--onnx", ratio)
    assert done.code == 0, done.error
    assert "1 x 3 x 32 x 64; largest difference" in done.printed
    done = run_program("tools/export_stitch.py", *common, *options, "--torchscript")
    assert "leave out sweep.padding=tight" in done.error
    output = tmp_path / "latency.json"
    done = run_program(
        *("tools/measure_latency.py", *common, "--stitches", "S"),
        *("--repeats", "1", "--warmup", "0", "--output", str(output)),
    )
    assert done.code == 0, done.error
    measured = json.loads(output.read_text())
    assert measured["padding"] == "tight" and measured["rows"][0]["name"] == "S"
    results = [entry.result for entry in StitchTable.read(folder_of(config))]
    with pytest.raises(InputError, match="measured with tight padding, but .* square padding"):
        StitchTable(results, measured)
    done = run_program("tools/export_stitch.py", *common, *options, "--onnx", "--size", "100")
    assert "--size must be a multiple of 16 pixels, got 100" in done.error
