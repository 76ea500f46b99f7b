"""tools/export_stitch.py, and tools/predict.py on what it writes."""

import json
from pathlib import Path

import pytest
import torch
from in_process import run_program

pytestmark = pytest.mark.slow

# So short a training is sure of little.
LOW = "model.roi_heads.box_predictor.test_score_thresh=0.01"


@pytest.fixture
def config(trained_tiny, tmp_path):
    return trained_tiny(tmp_path / "unused")


@pytest.fixture
def export(config, tmp_path):
    """Runs the program into the test's folder; gives what it printed, or its error."""
    config_file = str(Path(config.train.init_checkpoint).parent / "config.yaml")

    def run(*options, fails=False):
        options = ("--output", str(tmp_path / "a.safetensors"), *options, LOW)
        done = run_program("tools/export_stitch.py", "--config-file", config_file, *options)
        assert (done.code != 0) == fails, done.error
        return done.error if fails else done.printed

    run.config_file = config_file
    return run


@pytest.fixture
def predict(config, tmp_path):
    """Runs tools/predict.py on the training's images; gives its output and its predictions."""

    def run(name, *options):
        folder = tmp_path / name
        arguments = [config.data.test_images, *options, "--threshold", "0.02", "--no-pictures"]
        done = run_program("tools/predict.py", *arguments, "--output", str(folder))
        if done.code:
            return done.error, None
        return done.printed, json.loads((folder / "predictions.json").read_text())

    return run


def test_an_exported_file_predicts_as_the_stitch_it_is_of(export, predict, tmp_path):
    """Scores to 1e-4: the same image, category and score of every detection, in order."""
    file = str(tmp_path / "a.safetensors")
    printed = export("--stitch", "SF-1")
    assert "SF-1: " in printed and f"MB in {file}" in printed
    assert "the weights of all 14 stitches" in printed and "state of the optimizer" in printed
    printed, found = predict("alone", "--exported", file)
    assert f"Stitch SF-1 of {file}, scores from 0.02" in printed
    _, expected = predict(
        "supernet", "--config-file", export.config_file, "--stitch", "SF-1", "--device", "cpu", LOW
    )
    assert found["categories"] == expected["categories"]
    assert len(found["annotations"]) == len(expected["annotations"]) > 10
    for one, other in zip(found["annotations"], expected["annotations"], strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-2)
        assert one["category_id"] == other["category_id"]
        assert one["image_id"] == other["image_id"]


def test_an_exported_file_says_what_it_is(export, tmp_path):
    export("--stitch", "0")
    done = run_program("tools/export_stitch.py", "--info", str(tmp_path / "a.safetensors"))
    said = json.loads(done.printed)
    assert said["stitch"]["name"] == "S" and said["image_size"] == 64
    assert said["model"]["part"] == "GeneralizedRCNN" and len(said["class_names"]) > 1


def test_what_is_fixed_in_an_exported_file_cannot_be_given_with_it(export, predict, tmp_path):
    export("--stitch", "S")
    given = ("--exported", str(tmp_path / "a.safetensors"))
    for name, options in (
        ("--max-gflops", ("--max-gflops", "3")),
        ("--stitch", ("--stitch", "S")),
        ("--weights", ("--weights", "a.pth")),
        (LOW, (LOW,)),
    ):
        error, _ = predict("none", *given, *options)
        assert f"{name} cannot be given with --exported" in error
    error, _ = predict("none", *given, "--config-file", export.config_file)
    assert "not allowed with argument" in error
    error, _ = predict("none", "--exported", export.config_file)
    assert "is not a whole file of tools/export_stitch.py" in error


def test_graphs_are_written_beside_it(export, tmp_path):
    printed = export("--stitch", "S", "--torch-export", "--torchscript", "--size", "96")
    assert "1 x 3 x 96 x 96; largest difference" in printed
    assert "detections are the same" in printed
    assert {path.name for path in tmp_path.glob("a.*")} == {"a.safetensors", "a.pt2", "a.ts"}


def test_graphs_take_batches(export, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    printed = export("--stitch", "S@96/5", "--onnx", "--torch-export", "--batch-size", "dynamic")
    assert printed.count("N x 3 x 96 x 96; largest difference") == 2
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    assert session.get_inputs()[0].shape == ["batch", 3, 96, 96]
    assert session.get_modelmeta().custom_metadata_map == {
        "point": "S@96/5",
        "image_size": "96",
        "padding": "square",
        "image_format": "RGB",
        "batch_size": "dynamic",
    }
    printed = export("--stitch", "S", "--torch-export", "--torchscript", "--batch-size=2")
    assert "2 x 3 x 64 x 64; largest difference" in printed
    assert "detections are the same" in printed
    found, other = ({"point": "", "batch_size": "", "image_size": ""} for _ in range(2))
    torch.export.load(tmp_path / "a.pt2", extra_files=found)
    torch.jit.load(tmp_path / "a.ts", _extra_files=other)
    assert (found["point"], found["batch_size"], found["image_size"]) == ("S", "2", "64")
    assert other == {"point": b"S", "batch_size": b"2", "image_size": b"64"}


def test_wrong_choices_are_refused(export, tmp_path):
    error = export("--stitch", "S", "--batch-size=2", fails=True)
    assert "--batch-size is for --onnx, --torch-export and --torchscript" in error
    error = export("--stitch", "S", "--onnx", "--torchscript", "--batch-size=dynamic", fails=True)
    assert "--torchscript takes a fixed number of images" in error
    for number in ("0", "all", "-1"):
        error = export("--onnx", f"--batch-size={number}", fails=True)
        assert f"'{number}' is neither a number of images nor 'dynamic'" in error
    assert "give a stitch or budgets" in export("--stitch", "S", "--max-gflops", "3", fails=True)
    assert "no stitch 'FS-9'" in export("--stitch", "FS-9", fails=True)
    error = export("--stitch", "S", "--output", str(tmp_path / "a.pth"), fails=True)
    assert "a.pth must end in .safetensors" in error
    (tmp_path / "file").touch()
    error = export("--stitch", "S", "--output", str(tmp_path / "file/a.safetensors"), fails=True)
    assert "cannot write" in error
    assert "multiple of 16" in export("--stitch", "S", "--torch-export", "--size=40", fails=True)
    done = run_program("tools/export_stitch.py", "--stitch", "S")
    assert done.code and "no config file is given" in done.error
