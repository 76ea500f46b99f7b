import csv
import dataclasses
import json
import sys
import tempfile
from collections import Counter

import pytest
import torch
from detectron2.config import instantiate
from PIL import Image
from tools import benchmark

from benchmark_cases import Setting, block_groups, row_of, rows_of_groups
from benchmark_detectors import (
    OnePass,
    detectron2_vitdet,
    inference_groups,
    optimizer_of,
    set_score_threshold,
    sweep_groups,
    training_groups,
    typical_draws,
)
from benchmark_pipeline import MASKS, PASTING, STAGES, StageClock, pipeline_rows
from snnet_vitdet.engine import build_sampler
from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import anchor_alone, baseline_cost, join_configs, stitch_costs
from snnet_vitdet.modeling.cost import build_on_meta
from snnet_vitdet.stitching import merged
from snnet_vitdet.sweep_run import points_named

CPU = torch.device("cpu")


def parameters_of(case):
    # The first argument of a block's forward pass is the block.
    return tuple(case.forward.args[0].parameters())


def cases_of(groups):
    """The cases of all groups by their networks."""
    return {case.network: case for make in groups for case in make()}


@pytest.fixture(scope="module")
def make(tiny_config):
    """Makes the setting of a selection of points, by default of the tiny detector."""

    def make(selection="anchors", config=None, draws=0):
        config = config or tiny_config()
        points = points_named(config, build_on_meta(config.model), selection)
        return Setting(config, CPU, torch.float32, 1, points, points, draws, repeats=1, warmup=0)

    return make


def test_blocks_of_each_anchor_are_compared_with_those_of_detectron2(make, tiny_config):
    cases = cases_of(block_groups(make()))
    assert len(cases) == 2 * 2 * 3
    # 4 and 8 blocks, every other one in windows.
    for anchor, count in (("small", 2), ("large", 4)):
        for kind in ("window", "global"):
            ours, theirs = cases[f"stitched {anchor} {kind}"], cases[f"detectron2 {anchor} {kind}"]
            assert ours.weight == theirs.weight == count
            sizes = [sum(p.numel() for p in parameters_of(case)) for case in (ours, theirs)]
            # LayerScale is ours alone.
            width = tiny_config().model.backbone.net[anchor].embed_dim
            assert sizes[0] - sizes[1] == 2 * width
            ours.run()
            assert all(p.grad is not None for p in parameters_of(ours))


def test_all_blocks_of_a_vit_are_the_sum_of_its_kinds(make):
    rows = {row["network"]: row for row in rows_of_groups(block_groups(make()), make())}
    whole = rows["all 8 blocks, stitched large"]
    window, everywhere = (rows[f"stitched large {kind}"] for kind in ("window", "global"))
    for key in ("median_s", "kept_mib"):
        assert whole[key] == pytest.approx(4 * window[key] + 4 * everywhere[key])
    theirs = rows["all 8 blocks, detectron2 large"]
    assert whole["over_detectron2"] == pytest.approx(whole["median_s"] / theirs["median_s"])
    assert whole["kept_over_detectron2"] == pytest.approx(whole["kept_mib"] / theirs["kept_mib"])


@pytest.mark.parametrize("anchor", ["small", "large"])
def test_detectron2s_own_detector_has_the_sizes_of_the_anchor(tiny_config, anchor):
    model_config = tiny_config().model
    theirs = instantiate(detectron2_vitdet(model_config, anchor))
    ours = baseline_cost(anchor_alone(model_config, anchor))
    width = model_config.backbone.net[anchor].embed_dim
    params = sum(p.numel() for p in theirs.parameters())
    # It has a position for the class token besides.
    assert params - ours.params == width
    windows = [block.window_size for block in theirs.backbone.net.blocks]
    assert windows == [2, 0] * (len(windows) // 2)


def test_a_training_step_runs_the_point_it_is_named_after(make):
    cases = cases_of(training_groups(make("S,FS-2,FS-2@96/20")))
    assert list(cases) == [
        "detectron2 ViTDet large",
        "detectron2 ViTDet small",
        "stitch S",
        "stitch FS-2",
        "stitch FS-2@96/20",
    ]
    losses = [case.forward().item() for case in cases.values()]
    assert len(set(losses)) == 5
    cases["stitch FS-2"].run()
    model = cases["stitch FS-2"].run.func.__self__.model
    ran = [p.grad is not None for p in model.parameters()]
    assert any(ran) and not all(ran)
    # The learning rate is zero: the next repetition is the same.
    assert [case.forward().item() for case in cases.values()] == losses


@pytest.mark.parametrize(
    ("anchor", "factors"),
    [
        ("small", {0.5**layer for layer in range(6)}),
        ("large", {0.8**layer for layer in range(10)}),
        (None, {0.5**layer for layer in range(6)} | {0.8**layer for layer in range(10)}),
    ],
)
def test_training_uses_the_parameter_groups_of_the_config(tiny_config, anchor, factors):
    rates = "optimizer.params.lr_factor_func.rates={small: 0.5, large: 0.8}"
    config = tiny_config(rates, "optimizer.lr=1")
    ours = config.model
    model = instantiate(ours if anchor is None else detectron2_vitdet(ours, anchor))
    optimizer = optimizer_of(config, model, anchor)
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert set(grouped) == {p for p in model.parameters() if p.requires_grad}
    assert {group["lr"] for group in optimizer.param_groups} == {0.0}
    # What the learning rates would be; the optimizer keeps them apart.
    found = {group["initial_lr"] for group in optimizer.param_groups}
    assert sorted(found) == pytest.approx(sorted(factors))


def test_the_mean_step_is_that_of_what_the_sampler_draws(make, tiny_config):
    config = tiny_config()
    costs = stitch_costs(config.model)
    probabilities = build_sampler(config, costs).probabilities()
    mean = sum(p * g for p, g in zip(probabilities, costs.gflops, strict=True))
    draws = typical_draws(config, 200)
    drawn = sum(costs.gflops[i] for i in draws) / 200
    assert drawn == pytest.approx(mean, rel=0.01)
    # A common stitch stands for more draws than a rare one.
    count = Counter(draws)
    assert max(count.values()) > min(count.values())
    case = cases_of(training_groups(make(draws=3)))["mean of the sampler's draws"]
    assert case.times == 3
    case.run()


def test_detectors_that_are_joined_have_nothing_to_learn(make, tiny_config):
    config = tiny_config()
    two = (anchor_alone(config.model, anchor) for anchor in ("small", "large"))
    config.model = join_configs(*two, lora_rank=2)
    *_, ours = training_groups(make("FS-2", config))
    (case,) = ours()
    case.run()
    *_, ours = training_groups(make("FS-2,L", config))
    with pytest.raises(InputError, match="stitch L of a joined detector has nothing to learn"):
        ours()


def test_a_step_in_float16_changes_no_weight(make):
    setting = dataclasses.replace(make("S"), precision=torch.float16)
    case = cases_of(training_groups(setting))["stitch S"]
    step = case.run.func.__self__
    before = [p.detach().clone() for p in step.model.parameters()]
    for _ in range(3):
        case.run()
    assert step.scaler.is_enabled() and step.optimizer.state
    assert all(map(torch.equal, before, step.model.parameters()))


def test_as_many_objects_are_found_as_the_model_returns_at_most(make):
    cases = cases_of(inference_groups(make("L,S@96/20")))
    assert [case.image_size for case in cases.values()] == [64, 64, 64, 96]
    # Some boxes are empty once they are cut at the edge of the image.
    assert all(95 <= case.run() <= 100 for case in cases.values())


def test_a_sweep_finds_objects_with_masks(make):
    cases = cases_of(sweep_groups(make("S,FS-2,FS-3,S@96/20,S@96/10")))
    assert list(cases) == [
        "3 stitches in one pass",
        "3 stitches separately",
        "2 points at 96 in one pass",
        "2 points at 96 separately",
    ]
    stitches, alone = cases["3 stitches in one pass"], cases["3 stitches separately"]
    assert 30 < stitches.run() == alone.run() <= 100
    assert cases["2 points at 96 in one pass"].run() > 30


def test_the_stages_of_a_sweep_add_up(make):
    total, *stages = pipeline_rows(make("S,FS-2"))
    assert [row["network"] for row in stages] == [f"2 points at 64: {name}" for name in STAGES]
    assert all(row["median_s"] > 0 for row in stages)
    assert sum(row["share"] for row in stages) == pytest.approx(1)
    assert sum(row["median_s"] for row in stages) == pytest.approx(total["median_s"])
    assert total["detections"] > 30


def test_a_stage_has_the_work_that_it_is_named_after(make, monkeypatch):
    """Each of its modules and functions runs while the clock stands on the stage."""
    setting = make("S")
    model = instantiate(setting.config.model)
    one_pass, clock = OnePass(model, setting.swept, torch.float32), StageClock(CPU)
    images = setting.images(64)
    set_score_threshold(model, 0.0)
    stages = {}

    def note(name):
        return lambda *_: stages.update({name: clock._stage})

    pyramid, heads = model.backbone, model.roi_heads
    for name, module in {
        "backbones": pyramid.net.small.blocks[-1],
        "pyramid": pyramid.stages[-1],
        "RPN": model.proposal_generator.rpn_head,
        "box heads and NMS": heads.box_head,
        "mask head": heads.mask_head.predictor,
    }.items():
        module.register_forward_hook(note(name))
    with merged(model), clock.watching(model):
        clock.enter("transfer")
        for _ in one_pass(images):
            stages[PASTING] = clock._stage
    assert stages == {name: name for name in stages} and len(stages) == 6
    assert clock.seconds[MASKS] > 0


def arguments(tmp_path, *options):
    """The command line of a short measurement."""
    short = ["--device", "cpu", "--repeats", "1", "--warmup", "0", "--output", str(tmp_path)]
    return ["benchmark.py", *short, *options]


@pytest.mark.slow
def test_every_part_is_measured_and_written(monkeypatch, tiny_overrides, tmp_path, capsys, root):
    monkeypatch.chdir(root)
    options = ["--stitches", "S,FS-2", "--draws", "2", *tiny_overrides]
    monkeypatch.setattr(sys, "argv", arguments(tmp_path, *options))
    with pytest.raises(SystemExit) as exit_:
        benchmark.main()
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    assert "2 stitches in one pass" in printed and f"Results in {tmp_path}" in printed
    with open(tmp_path / "benchmark.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    facts = json.loads((tmp_path / "benchmark.json").read_text())
    assert len(rows) == len(facts["rows"]) == 12 + 6 + 5 + 4 + 2 + 12
    assert [part["end"] for part in facts["parts"].values()] == ["done"] * 5
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
def test_a_part_that_fails_leaves_the_others(monkeypatch, tiny_overrides, tmp_path, capsys, root):
    monkeypatch.chdir(root)
    broken = "optimizer.weight_decay=-1"
    options = ["--what", "training", "inference", "--stitches", "S", *tiny_overrides, broken]
    monkeypatch.setattr(sys, "argv", arguments(tmp_path, *options))
    with pytest.raises(SystemExit) as exit_:
        benchmark.main()
    assert exit_.value.code == 1
    parts = json.loads((tmp_path / "benchmark.json").read_text())["parts"]
    assert parts["training"]["end"] == "failed: Invalid weight_decay value: -1"
    assert parts["inference"]["end"] == "done"
    assert "training   failed: " in capsys.readouterr().out


@pytest.mark.slow
def test_a_part_ends_after_its_limit(monkeypatch, tiny_overrides, tmp_path, capsys, root):
    monkeypatch.chdir(root)
    options = ["--what", "sweep", "--limit", "0.1", *tiny_overrides]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(sys, "argv", arguments(tmp_path, *options))
    with pytest.raises(SystemExit) as exit_:
        benchmark.main()
    assert exit_.value.code == 1
    assert "sweep      ended after its limit of 0.1 s" in capsys.readouterr().out
    assert not list((tmp_path / "temporary").iterdir())


def test_a_row_is_written_before_its_part_ends(monkeypatch, tiny_overrides, tmp_path, root):
    monkeypatch.chdir(root)
    monkeypatch.setattr(
        sys, "argv", arguments(tmp_path, "--what", "sweep", "--draws", "0", *tiny_overrides)
    )
    args = benchmark.arguments()
    written = []

    def run_part(what, args, take_row):
        setting = benchmark.setting_of(args)
        take_row(row_of(setting, what, "first", 64, [1.0], over_detectron2=1.0))
        written.append((tmp_path / "benchmark.csv").read_text())
        return "ended after its limit of 1 s"

    monkeypatch.setattr(benchmark, "run_part", run_part)
    assert benchmark.run(args) == 1
    assert "sweep,first" in written[0]


def test_points_are_named_as_everywhere(tiny_config):
    config = tiny_config("sweep.image_sizes=[64,96]")
    points = points_named(config, build_on_meta(config.model), "L@32/5, S,FS-2")
    names = [point.name for point in points]
    # Stitches run at the image sizes of the sweep.
    assert names == ["S", "S@96/20", "FS-2", "FS-2@96/20", "L@32/5"]


@pytest.mark.parametrize(
    ("stitches", "problem"),
    [
        ("99", "ids go from 0 to 13"),
        ("FS-9@64/20", "FS-9"),
        ("FS-2@64", "write it as FS-3@640/300"),
        ("FS-2@100/20", "image size 100 is not a multiple of the patch size 16"),
    ],
)
def test_an_unknown_point_is_refused(tiny_config, stitches, problem):
    config = tiny_config()
    with pytest.raises(InputError, match=problem):
        points_named(config, build_on_meta(config.model), stitches)


@pytest.mark.slow
@pytest.mark.parametrize("stitches", ["99", "FS-2@100/20"])
def test_an_unknown_point_ends_the_program(monkeypatch, capsys, root, stitches):
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--device", "cpu", "--stitches", stitches])
    with pytest.raises(SystemExit) as exit_:
        benchmark.main()
    assert exit_.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("--device foo", "there is no device 'foo'"),
        ("--device meta", "--device must be auto, cpu or cuda"),
        ("--warmup -1", "--warmup must be 0 or more, got -1"),
        ("--draws -1", "--draws must be 0 or more"),
        ("--repeats 0", "--repeats must be 1 or more"),
        ("--limit 0", "--limit must be above 0"),
        # An override behind an option of several values is none of them.
        ("--what blocks train.lr=1", "train.lr"),
    ],
)
def test_wrong_arguments_end_the_program(monkeypatch, capsys, root, words, problem):
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *words.split()])
    with pytest.raises(SystemExit) as exit_:
        benchmark.main()
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert problem in error
