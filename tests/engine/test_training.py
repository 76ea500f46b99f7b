"""A training as a whole: its optimizer, and compiled blocks from start to resume."""

import shutil
from functools import partial

import pytest
import torch
from in_process import run_main
from runs import assert_same_tensors, fewer_resources, weights
from torch import nn
from torch._dynamo.utils import counters

from snnet_vitdet.engine import training
from snnet_vitdet.engine.training import build_optimizer
from snnet_vitdet.modeling import compile_blocks


@pytest.mark.parametrize(
    ("device", "overrides", "fused"),
    [
        ("cuda", [], True),
        ("cuda:1", ["+optimizer.fused=null"], True),
        ("cuda", ["+optimizer.fused=False"], False),
        ("cuda", ["+optimizer.foreach=True"], None),
        ("cuda", ["optimizer._target_=torch.optim.RAdam"], None),
        ("cpu", [], None),
        ("cpu", ["+optimizer.fused=True"], True),
    ],
)
def test_a_gpu_runs_the_fused_optimizer_unless_the_config_says_otherwise(
    device, overrides, fused, tiny_config
):
    config = tiny_config(f"train.device={device}", *overrides)
    optimizer = build_optimizer(config, nn.Linear(2, 2))
    assert optimizer.defaults.get("fused") is fused
    # A hook of the average of the weights relies on it.
    assert getattr(optimizer, "_step_supports_amp_scaling", False) is bool(fused)


@pytest.mark.slow
def test_a_training_with_compiled_blocks_is_the_same_and_is_resumed_either_way(
    tiny_config, tmp_path, restored_logging, monkeypatch
):
    # Traced alone, the arithmetic is the same to the bit.
    monkeypatch.setattr(training, "compile_blocks", partial(compile_blocks, backend="eager"))
    evaluate_stitch = training.evaluate_stitch
    made_by_evaluation = []

    def noted(*args):
        before = counters["stats"]["unique_graphs"]
        scores = evaluate_stitch(*args)
        made_by_evaluation.append(counters["stats"]["unique_graphs"] - before)
        return scores

    monkeypatch.setattr(training, "evaluate_stitch", noted)

    def train(folder, compiled, *flags):
        """Returns the number of graphs that were made."""
        torch._dynamo.reset()
        counters.clear()
        overrides = fewer_resources(tmp_path / folder)
        run_main(tiny_config(*overrides, f"train.compile={compiled}"), *flags)
        return counters["stats"]["unique_graphs"]

    assert train("plain", False) == 0
    assert train("compiled", True) > 4
    assert_same_tensors(weights(tmp_path / "compiled"), weights(tmp_path / "plain"))
    for source, compiled in (("plain", True), ("compiled", False)):
        folder = tmp_path / f"from_{source}"
        folder.mkdir()
        for name in ("model_init.pth", "model_0000001.pth", "config.yaml"):
            shutil.copy(tmp_path / source / name, folder)
        (folder / "last_checkpoint").write_text("model_0000001.pth")
        assert (train(folder.name, compiled, "--resume") > 0) == compiled
        assert_same_tensors(weights(folder), weights(tmp_path / "plain"))
    assert made_by_evaluation == [0, 0, 0, 0]
