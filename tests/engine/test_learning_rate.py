"""Linear scaling, schedules and layer-wise decay."""

import re

import pytest
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import (
    ConstantParamScheduler,
    CosineParamScheduler,
    StepParamScheduler,
)
from in_process import run_main
from omegaconf import OmegaConf

from snnet_vitdet.engine import LayerwiseDecay, apply_linear_scaling, load_config
from snnet_vitdet.engine.learning_rate import build_schedule, scale_iterations
from snnet_vitdet.engine.training import training_plan
from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import anchor_alone
from snnet_vitdet.modeling.cost import build_on_meta

TWELVE = "configs/COCO/mask_rcnn_snnet_deit3_s_l_12ep.py"
BATCH = "dataloader.train.total_batch_size"


def values_of(config):
    train = config.train
    return {
        "reference": train.reference_batch_size,
        "lr": config.optimizer.lr,
        "max_iter": train.max_iter,
        "eval_period": train.eval_period,
        "checkpointer.period": train.checkpointer.period,
        "freeze_anchors": train.freeze_anchors,
        "ends.first": train.ends.first,
    }


@pytest.fixture
def load(root):
    """Loads the twelve epochs at a batch of 8, with overrides."""
    return lambda *overrides: load_config(str(root / TWELVE), overrides)


@pytest.mark.parametrize(
    ("iterations", "reference", "batch", "expected"),
    [
        (177000, 8, 64, 22125),
        (177000, 8, 4, 354000),
        (1000, 8, 3, 2667),
        (5, 8, 64, 1),
        (0, 8, 64, 0),
        (7, 8, 8, 7),
    ],
)
def test_iterations_are_those_that_see_as_many_images(iterations, reference, batch, expected):
    assert scale_iterations(iterations, reference, batch) == expected


def test_nothing_is_scaled_unless_asked_for(load):
    for overrides in ((f"{BATCH}=64",), (f"{BATCH}=8", "train.reference_batch_size=8")):
        config, expected = load(*overrides), load(*overrides)
        assert apply_linear_scaling(config) == []
        expected.train.reference_batch_size = None
        assert config == expected


def test_learning_rate_and_iterations_are_scaled_to_the_batch_and_told(load):
    config = load(
        f"{BATCH}=64",
        "train.reference_batch_size=8",
        "train.freeze_anchors=2000",
        "train.ends.first=800",
    )
    others = load(f"{BATCH}=64")
    notes = apply_linear_scaling(config)
    assert values_of(config) == {
        "reference": None,
        "lr": pytest.approx(8e-4),
        "max_iter": 22125,
        # 29500 / 8 is 3687.5, 7375 / 8 is 921.9
        "eval_period": 3688,
        "checkpointer.period": 922,
        "freeze_anchors": 250,
        "ends.first": 100,
    }
    assert notes == [
        "Scaled linearly from 8 to 64 images an iteration: optimizer.lr 0.0001 → 0.0008, "
        "train.max_iter 177000 → 22125, train.eval_period 29500 → 3688, "
        "train.checkpointer.period 7375 → 922, train.freeze_anchors 2000 → 250, "
        "train.ends.first 800 → 100."
    ]
    # All groups learn at the scaled rate; nothing else has changed.
    assert config.optimizer.params.base_lr == config.optimizer.lr
    others.optimizer.lr = config.optimizer.lr
    others.train = config.train
    assert config == others


def test_saved_config_is_not_scaled_again(load, tmp_path):
    config = load(f"{BATCH}=24", "train.reference_batch_size=8")
    apply_linear_scaling(config)
    once = values_of(config)
    apply_linear_scaling(config)
    assert values_of(config) == once
    path = str(tmp_path / "config.yaml")
    LazyConfig.save(config, path)
    saved = load_config(path)
    apply_linear_scaling(saved)
    assert values_of(saved) == once
    # Nor for another batch, unless that is asked for again.
    other = load_config(path, [f"{BATCH}=8"])
    apply_linear_scaling(other)
    assert values_of(other) == once
    other = load_config(path, [f"{BATCH}=8", "train.reference_batch_size=24"])
    apply_linear_scaling(other)
    # But for what rounding has taken.
    expected = {k: v and pytest.approx(v, rel=1e-3) for k, v in values_of(load()).items()}
    assert values_of(other) == expected


def test_what_is_off_stays_off_and_is_not_told(load):
    config = load(f"{BATCH}=64", "train.reference_batch_size=8", "train.eval_period=0")
    (note,) = apply_linear_scaling(config)
    train = config.train
    assert (train.eval_period, train.freeze_anchors, train.ends.first) == (0, 0, 0)
    assert note.endswith("train.max_iter 177000 → 22125, train.checkpointer.period 7375 → 922.")


def test_a_rate_that_is_left_to_the_user_is_named(load):
    with pytest.raises(InputError, match="optimizer.lr=null must be a number above 0"):
        apply_linear_scaling(load("train.reference_batch_size=8", "optimizer.lr='???'"))


def test_plan_says_how_the_batch_is_shared_and_how_many_epochs_it_makes():
    config = OmegaConf.create(
        {
            "dataloader": {"train": {"total_batch_size": 8}},
            "train": {"max_iter": 177000, "accumulation": {"steps": 8}},
        }
    )
    assert training_plan(config, 1, 1e-4, 0, 118000) == (
        "8 images an iteration (1 process x 8 micro-batches of 1), learning rate 0.0001, 177000 "
        "iterations: 12.00 epochs of 118000 images."
    )
    config.train.accumulation.steps = 1
    assert training_plan(config, 2, 1e-4, 40, 117266) == (
        "8 images an iteration (2 processes x 1 micro-batch of 4), learning rate 0.0001, 177000 "
        "iterations, from 40 on: 12.08 epochs of 117266 images."
    )


@pytest.mark.parametrize("warms_up", [False, True])
@pytest.mark.parametrize(
    ("schedule", "last"),
    [
        (L(ConstantParamScheduler)(value=0.5), 0.5),
        (L(StepParamScheduler)(num_updates=90, values=[1.0, 0.1]), 0.1),
        (L(CosineParamScheduler)(start_value=1.0, end_value=0.25), 0.25),
    ],
)
def test_a_schedule_has_a_value_at_the_end_of_the_training(schedule, last, warms_up):
    node = schedule
    if warms_up:
        node = L(WarmupParamScheduler)(scheduler=node, warmup_factor=0.01, warmup_length=0.1)
    given = build_schedule(node)
    assert given(1.0) == pytest.approx(last)
    own = instantiate(node)
    assert all(given(place / 97) == own(place / 97) for place in range(97))


def test_a_constant_learning_rate_trains_to_its_end(tiny_config, tmp_path):
    config = tiny_config(f"train.output_dir={tmp_path}", "train.max_iter=2", "train.eval_period=0")
    config.lr_multiplier = L(ConstantParamScheduler)(value=1.0)
    run_main(config)
    assert (tmp_path / "model_final.pth").is_file()
    assert '"bbox_AP"' in (tmp_path / "metrics.json").read_text().replace("S/", "")


# -------------------------------------------------------------------------------- layer-wise decay


DEPTHS = {"small": 4, "large": 8}
RATES = {"small": 0.7, "large": 0.9}


@pytest.fixture(scope="module")
def nano_names(tiny_config):
    return [name for name, _ in build_on_meta(tiny_config().model).named_parameters()]


def table(depth, rate):
    """Factor by the start of a name inside an anchor: from the heads down, one rate a layer."""
    factors = {}
    factor = 1.0
    for block in reversed(range(depth)):
        factor *= rate
        factors[f"blocks.{block}."] = factor
    return {**factors, "pos_embed": factor * rate, "patch_embed.": factor * rate}


def test_table_has_vitdets_numbers():
    # Four blocks at one half: the last block learns at 1/2, the embedding at 1/32.
    assert table(4, 0.5) == {
        "blocks.3.": 1 / 2,
        "blocks.2.": 1 / 4,
        "blocks.1.": 1 / 8,
        "blocks.0.": 1 / 16,
        "pos_embed": 1 / 32,
        "patch_embed.": 1 / 32,
    }


def expected_factors(names, anchors):
    """Factor of every name; ``anchors`` gives the table by the path of the anchor."""
    factors = dict.fromkeys(names, None)
    for path, entries in anchors.items():
        for inside, factor in entries.items():
            for name in names:
                if name.startswith(path + inside):
                    assert factors[name] is None
                    factors[name] = factor
    for name, factor in factors.items():
        if factor is None:
            head = re.match(
                r"backbone\.(net\.stitching_layers|simfp_)|proposal_gen|roi_heads", name
            )
            assert head, name
            factors[name] = 1.0
    return factors


def test_every_parameter_of_a_stitched_detector_has_the_factor_of_its_own_anchor(nano_names):
    decay = LayerwiseDecay(DEPTHS, RATES)
    expected = expected_factors(
        nano_names,
        {
            "backbone.net.small.": table(4, 0.7),
            "backbone.net.large.": table(8, 0.9),
        },
    )
    assert len(set(expected.values())) == 1 + 5 + 9
    assert {name: decay(name) for name in nano_names} == pytest.approx(expected, rel=1e-12)


def test_every_parameter_of_a_baseline_has_the_factor_of_its_depth(tiny_config):
    model = build_on_meta(anchor_alone(tiny_config().model, "large"))
    names = [name for name, _ in model.named_parameters()]
    decay = LayerwiseDecay({"net": 8}, {"net": 0.8})
    expected = expected_factors(names, {"backbone.net.": table(8, 0.8)})
    assert len(set(expected.values())) == 1 + 9
    assert {name: decay(name) for name in names} == pytest.approx(expected, rel=1e-12)


def test_rate_of_one_leaves_every_factor_at_one(nano_names):
    decay = LayerwiseDecay(DEPTHS, {"small": 1, "large": 1.0})
    assert {decay(name) for name in nano_names} == {1.0}


@pytest.mark.parametrize(
    "name",
    [
        "backbone.net.small.norm.weight",
        "backbone.net.small.blocks.4.norm1.weight",
        "backbone.net.medium.pos_embed",
        "backbone.net.pos_embed",
        "backbone.net.smaller.pos_embed",
    ],
)
def test_backbone_parameter_that_no_rule_covers_is_an_error_that_names_it(name):
    with pytest.raises(InputError, match=f"covers the parameter '{re.escape(name)}'"):
        LayerwiseDecay(DEPTHS, RATES)(name)


def test_other_prefix_is_taken():
    decay = LayerwiseDecay({"net": 2}, {"net": 0.5}, prefix="module.backbone.net")
    assert decay("module.backbone.net.blocks.1.mlp.fc1.weight") == 0.5
    assert decay("backbone.net.blocks.1.mlp.fc1.weight") == 1.0


def test_depths_and_rates_of_different_anchors_are_refused():
    with pytest.raises(
        InputError, match=r"depths for \['large', 'small'\] but rates for \['net'\]"
    ):
        LayerwiseDecay(DEPTHS, {"net": 0.7})


@pytest.mark.parametrize("rate", [0, -0.1, 1.1, float("nan")])
def test_rate_out_of_range_is_refused(rate):
    with pytest.raises(InputError, match=r"layer-wise decay of 'large' must be in \(0, 1\]"):
        LayerwiseDecay(DEPTHS, {"small": 0.7, "large": rate})
