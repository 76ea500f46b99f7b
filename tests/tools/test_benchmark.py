import csv
import json
import sys

import pytest
import torch
from detectron2.config import instantiate
from PIL import Image
from tools import benchmark
from tools.benchmark import (
    Setting,
    block_cases,
    detectron2_vitdet,
    inference_cases,
    sweep_cases,
    training_cases,
)

from snnet_vitdet.engine import synthetic_batch
from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import anchor_alone, baseline_cost, join_configs

CPU = torch.device("cpu")


def parameters_of(case):
    # The first argument of a case's forward pass is what it measures.
    return tuple(case.forward.args[0].parameters())


@pytest.fixture(scope="module")
def model_config(tiny_config):
    return tiny_config().model


@pytest.fixture(scope="module")
def make(model_config):
    """Makes the setting of a model, by default the tiny one."""

    def make(config=model_config):
        return Setting(config, CPU, torch.float32, synthetic_batch(1, 64, 6))

    return make


def test_blocks_of_each_anchor_are_compared_with_those_of_detectron2(make, model_config):
    cases = {case.network: case for case in block_cases(make())}
    assert len(cases) == 2 * 2 * 3
    # 4 and 8 blocks, every other one in windows.
    for anchor, count in (("small", 2), ("large", 4)):
        for kind in ("window", "global"):
            ours, theirs = cases[f"stitched {anchor} {kind}"], cases[f"detectron2 {anchor} {kind}"]
            assert ours.weight == theirs.weight == count
            sizes = [sum(p.numel() for p in parameters_of(case)) for case in (ours, theirs)]
            # LayerScale is ours alone.
            width = model_config.backbone.net[anchor].embed_dim
            assert sizes[0] - sizes[1] == 2 * width
            ours.run()
            assert all(p.grad is not None for p in parameters_of(ours))


@pytest.mark.parametrize("anchor", ["small", "large"])
def test_detectron2s_own_detector_has_the_sizes_of_the_anchor(model_config, anchor):
    theirs = instantiate(detectron2_vitdet(model_config, anchor))
    ours = baseline_cost(anchor_alone(model_config, anchor))
    width = model_config.backbone.net[anchor].embed_dim
    params = sum(p.numel() for p in theirs.parameters())
    # It has a position for the class token besides.
    assert params - ours.params == width
    windows = [block.window_size for block in theirs.backbone.net.blocks]
    assert windows == [2, 0] * (len(windows) // 2)


def test_a_training_step_runs_the_stitch_it_is_named_after(make):
    cases = list(training_cases(make(), ["S", "FS-2"]))
    assert [case.network for case in cases] == [
        "stitch S",
        "stitch FS-2",
        "detectron2 ViTDet small",
        "detectron2 ViTDet large",
    ]
    losses = [case.forward().item() for case in cases]
    assert len(set(losses)) == 4
    cases[1].run()
    ran = [p.grad is not None for p in parameters_of(cases[1])]
    assert any(ran) and not all(ran)
    # The learning rate is zero: the next repetition is the same.
    assert [case.forward().item() for case in cases] == losses


def test_detectors_that_are_joined_have_nothing_to_learn(make, model_config):
    two = (anchor_alone(model_config, anchor) for anchor in ("small", "large"))
    joined = join_configs(*two, lora_rank=2)
    case = next(training_cases(make(joined), ["FS-2"]))
    case.run()
    with pytest.raises(InputError, match="stitch L of a joined detector has nothing to learn"):
        list(training_cases(make(joined), ["FS-2", "L"]))


def test_inference_and_sweep_run(make):
    for case in inference_cases(make(), ["L"]):
        case.run()
    one_pass, separate = sweep_cases(make(), ["S", "FS-2", "FS-3"])
    assert one_pass.network == "3 stitches in one pass"
    assert separate.network == "3 stitches separately"
    one_pass.run()
    separate.run()


@pytest.mark.slow
def test_every_part_is_measured_and_written(monkeypatch, tiny_overrides, tmp_path, capsys, root):
    monkeypatch.chdir(root)
    options = ["--device", "cpu", "--repeats", "1", "--warmup", "0", "--stitches", "S,FS-2"]
    monkeypatch.setattr(
        sys, "argv", ["benchmark.py", *options, "--output", str(tmp_path), *tiny_overrides]
    )
    benchmark.main()
    printed = capsys.readouterr().out
    assert "2 stitches in one pass" in printed and f"Results in {tmp_path}" in printed
    with open(tmp_path / "benchmark.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    facts = json.loads((tmp_path / "benchmark.json").read_text())
    assert len(rows) == len(facts["rows"]) == 12 + 4 + 4 + 2
    by_name = {(row["what"], row["network"]): row for row in rows}
    step = by_name["training", "stitch FS-2"]
    large = by_name["training", "detectron2 ViTDet large"]
    ratio = float(step["median_s"]) / float(large["median_s"])
    assert float(step["over_detectron2"]) == pytest.approx(ratio)
    assert float(step["gflops"]) > float(by_name["training", "stitch S"]["gflops"])
    assert float(step["kept_mib"]) > 0 and step["peak_mib"] == ""
    block = by_name["block", "stitched large window without relative positions"]
    other = by_name["block", "detectron2 large window"]
    ratio = float(block["median_s"]) / float(other["median_s"])
    assert float(block["over_detectron2"]) == pytest.approx(ratio)
    assert by_name["sweep", "2 stitches separately"]["over_detectron2"] == "1.0"
    with Image.open(tmp_path / "benchmark.png") as picture:
        assert picture.width == 1280


@pytest.mark.slow
def test_an_unknown_stitch_is_refused(monkeypatch, capsys, root):
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--device", "cpu", "--stitches", "99"])
    with pytest.raises(SystemExit) as exit_:
        benchmark.main()
    assert exit_.value.code == 2
    assert "error: " in capsys.readouterr().err
