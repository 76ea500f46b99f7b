"""Overrides of ablations, each trained for some iterations: it does what its row says.

test_ablations.py builds all ablations; test_train_net.py trains LoRA on the anchors.
"""

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from in_process import run_main
from runs import assert_same_tensors

from snnet_vitdet.engine import initialise
from snnet_vitdet.modeling import stitch_costs
from snnet_vitdet.stitching import ResourceConstrainedSampler, StitchSpace

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
DEPTHS = (4, 8)
NET = "model.backbone.net"
LAYERS = "backbone.net.stitching_layers."
SNNETV1 = (f"{NET}.max_cuts=1", f"{NET}.kinds=[S,L,FS]")
# So many iterations draw more than one kind of every space below.
SEVERAL = 10


@dataclass
class Run:
    """What a training started from and ended with, and the stitch id of each of its iterations."""

    before: dict
    after: dict
    ids: list[int]

    @property
    def moved(self):
        """Names of the weights that the training has changed."""
        return {n for n, value in self.before.items() if not torch.equal(value, self.after[n])}


@pytest.fixture(scope="module")
def trained(tiny_config, tmp_path_factory, restored_logging):
    """Trains the tiny detector, or another config, with overrides; once for the same ones."""
    runs = {}

    def trained(*overrides, iterations=2, make_config=tiny_config):
        key = (overrides, iterations, make_config)
        if key not in runs:
            output = tmp_path_factory.mktemp("run")
            common = (
                f"train.output_dir={output}",
                f"train.max_iter={iterations}",
                "train.log_period=1",
                "train.eval_period=0",
                "train.eval_stitches=[0]",
                "init.num_images=2",
            )
            # Last, so that it overrides these, too.
            run_main(make_config(*common, *overrides))
            before, after = (
                torch.load(output / name)["model"] for name in ("model_init.pth", "model_final.pth")
            )
            lines = map(json.loads, (output / "metrics.json").read_text().splitlines())
            ids = [int(m.get("stitch_id", -1)) for m in lines if "total_loss" in m]
            runs[key] = Run(before, after, ids)
        return runs[key]

    return trained


def layer_name(transition):
    """The name of a stitching layer in a checkpoint of the tiny detector."""
    if transition.cut == DEPTHS[0]:
        return f"{LAYERS}exit"
    return f"{LAYERS}{('small_to_large', 'large_to_small')[transition.source]}.{transition.cut}"


def layers_of(names):
    """The stitching layers that some names lie in."""
    return {name.rpartition(".")[0] for name in names if name.startswith(LAYERS)}


def crossed_layers(run, space):
    """The stitching layers that some iteration has crossed, of which there has to be one."""
    layers = {layer_name(t) for i in run.ids for t in space[i].transitions}
    assert layers
    return layers


def draws(sampler, count):
    return [sampler(iteration) for iteration in range(count)]


# ------------------------------------------------------------------------------ space and sampling


@pytest.mark.parametrize(
    ("overrides", "space"),
    [
        (SNNETV1, StitchSpace(DEPTHS, 1, ("S", "L", "FS"))),
        ((f"{NET}.max_cuts=1",), StitchSpace(DEPTHS, 1)),
        ((f"{NET}.kinds=[FSF,SFS]",), StitchSpace(DEPTHS, kinds=("SFS", "FSF"))),
        # Without an exit projection.
        ((f"{NET}.kinds=[L,SFS]",), StitchSpace(DEPTHS, kinds=("L", "SFS"))),
    ],
    ids=["SN-Netv1", "one cut", "round trips", "large ends"],
)
def test_stitches_of_the_space_alone_are_built_and_trained(overrides, space, trained, tiny_config):
    run = trained(*overrides, iterations=SEVERAL)
    costs = stitch_costs(tiny_config(*overrides).model)
    assert [stitch.name for stitch in costs.space] == [stitch.name for stitch in space]
    assert run.ids == draws(ResourceConstrainedSampler(costs.gflops, step=0.002), SEVERAL)
    assert len({space[i].kind for i in run.ids}) > 1
    # Which stitch an id was in the model shows in what has been trained.
    assert layers_of(run.before) == {layer_name(t) for t in space.transitions}
    assert layers_of(run.moved) == crossed_layers(run, space)


# -------------------------------------------------------------------------------- stitching layers


def assert_trained_with_rank(run, rank):
    """Bitwise frozen matrices, updates of this rank that moved where a stitch crossed."""
    crossed = crossed_layers(run, StitchSpace(DEPTHS))
    moved = run.moved
    for layer in layers_of(run.before):
        num_out, num_in = run.before[f"{layer}.weight"].shape
        assert run.before[f"{layer}.lora_a"].shape == (num_out, rank)
        assert run.before[f"{layer}.lora_b"].shape == (rank, num_in)
        assert not run.before[f"{layer}.lora_a"].any()
        assert f"{layer}.weight" not in moved
        for name in ("lora_a", "lora_b", "bias"):
            assert (f"{layer}.{name}" in moved) == (layer in crossed), (layer, name)


@pytest.mark.parametrize("rank", [4, 16])
def test_a_rank_trains_the_update_and_leaves_the_fit(rank, trained):
    run = trained(f"{NET}.lora_rank={rank}")
    assert_trained_with_rank(run, rank)
    # The rank has no part in the fit.
    other = trained(f"{NET}.lora_rank=0")
    for layer in layers_of(run.before):
        assert torch.equal(run.before[f"{layer}.weight"], other.before[f"{layer}.weight"])


def test_rank_0_trains_the_fitted_matrix_itself(trained):
    run = trained(f"{NET}.lora_rank=0")
    assert not any(".lora_" in name for name in run.before)
    crossed = crossed_layers(run, StitchSpace(DEPTHS))
    assert {layer for layer in crossed if f"{layer}.weight" in run.moved} == crossed
    assert layers_of(run.moved) == crossed


def test_random_start_leaves_out_the_fit_alone(trained):
    fitted, random = trained(), trained("init.stitching_layers=random")
    differing = {n for n, v in random.before.items() if not torch.equal(v, fitted.before[n])}
    layers = layers_of(random.before)
    assert differing == {f"{layer}.{end}" for layer in layers for end in ("weight", "bias")}
    # Trained by LoRA as it is.
    assert_trained_with_rank(random, 4)


def test_num_images_reach_the_fit(tiny_config, tmp_path, monkeypatch, restored_logging):
    seen = []
    fit = initialise.fit_stitching_layers

    def spy(model, samples, *rest):
        seen.append([])

        def recorded():
            for sample in samples:
                seen[-1].append(sample["file_name"])
                yield sample

        return fit(model, recorded(), *rest)

    monkeypatch.setattr(initialise, "fit_stitching_layers", spy)
    for count in (1, 5):
        output = f"train.output_dir={tmp_path / str(count)}"
        changes = (f"init.num_images={count}", "train.max_iter=1", "train.eval_stitches=[0]")
        run_main(tiny_config(output, *changes))
    assert [len(set(names)) for names in seen] == [len(names) for names in seen] == [1, 5]


# ---------------------------------------------------------------------- tuning and initialisation


SMALL_END = (
    f"{NET}.exit_projection=False",
    "model.backbone._target_=snnet_vitdet.modeling.PyramidPerExit",
    "train.accumulation.steps=2",
    "train.ends.period=4",
    "train.distillation.weight=1",
    "train.distillation.rpn_weight=1",
    "train.ema_decay=0.9",
)


def test_all_that_is_for_the_small_end_is_trained_resumed_and_swept_together(
    tiny_config, tmp_path, restored_logging
):
    def config(folder):
        common = ("train.max_iter=4", "train.checkpointer.period=2", "init.num_images=2")
        stitches = ("train.eval_stitches=[0]", "sweep.stitch_ids='S,L,FSF-1-3'")
        return tiny_config(*common, *stitches, *SMALL_END, f"train.output_dir={folder}")

    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run_main(config(whole))
    resumed.mkdir()
    shutil.copy(whole / "model_0000001.pth", resumed)
    (resumed / "last_checkpoint").write_text("model_0000001.pth")
    run_main(config(resumed), "--resume")
    ends = [torch.load(folder / "model_final.pth") for folder in (whole, resumed)]
    assert_same_tensors(ends[0]["model"], ends[1]["model"])
    assert_same_tensors(ends[0]["ema"]["weights"], ends[1]["ema"]["weights"])
    assert any(name.startswith("backbone.small_exit.simfp_") for name in ends[0]["model"])
    lines = map(json.loads, (whole / "metrics.json").read_text().splitlines())
    losses = [line for line in lines if "total_loss" in line]
    assert losses
    assert all({"loss_distill", "loss_distill_rpn"} <= line.keys() for line in losses)
    run_main(config(whole), "--eval-only")
    with open(whole / "sweep" / "stitches.csv", newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["S", "L", "FSF-1-3"]
