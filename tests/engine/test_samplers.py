"""The sampler of a training: that of its config, with turns of the ends."""

import copy

import pytest
from detectron2.config import instantiate

from snnet_vitdet.engine import (
    build_sampler,
    crowded_anchors,
    ends_plan,
    mean_gflops,
    preflight,
    training_shares,
)
from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import anchor_alone, stitch_costs
from snnet_vitdet.stitching import EndsSampler, ResourceConstrainedSampler, UniformSampler


@pytest.fixture(scope="module")
def costs(tiny_config):
    """The costs of the tiny detector."""
    return stitch_costs(tiny_config().model)


@pytest.fixture
def make(tiny_config, costs):
    """Makes the sampler of the tiny training with overrides."""
    return lambda *overrides: build_sampler(tiny_config(*overrides), costs)


def draws(sampler, slots, num_iterations):
    return [[sampler(i, slot) for slot in slots] for i in range(num_iterations)]


def test_a_config_has_the_sampler_that_it_names_and_stays_as_it_is(tiny_config, costs):
    config = tiny_config("train.seed=3")
    before = copy.deepcopy(config)
    sampler = build_sampler(config, costs)
    assert config == before
    assert type(sampler) is ResourceConstrainedSampler
    config.sampler.gflops = list(costs.gflops)
    assert draws(sampler, range(4), 20) == draws(instantiate(config.sampler), range(4), 20)
    assert training_shares(sampler, 10) == sampler.probabilities()


def test_ends_are_named_as_stitches_are_everywhere(make):
    sampler = make("train.ends.period=6", "train.ends.stitches='S,L,FS-1'", "train.ends.first=7")
    assert isinstance(sampler, EndsSampler)
    assert (sampler.ends, sampler.period, sampler.first) == ((0, 1, 2), 6, 7)
    assert make("train.ends.period=2").ends == (0, 1)
    assert make("train.ends.first=2", "train.ends.stitches=[3]").ends == (3,)


@pytest.mark.parametrize("period", [0, 4])
def test_an_anchor_that_shares_its_group_is_named(period, make, costs):
    spread = max(costs.gflops) - min(costs.gflops)
    wide = make(f"sampler.step={spread * 0.999}", f"train.ends.period={period}")
    said = crowded_anchors(wide, costs)
    assert "S is one of 13 stitches in its group" in said and " L is" not in said
    assert crowded_anchors(make("sampler.step=1e-9"), costs) == ""
    assert crowded_anchors(UniformSampler(costs.gflops), costs) == ""


def test_mean_cost_has_the_first_iterations_in_it(make, costs):
    sampler = make("train.ends.first=300")
    plain = mean_gflops(sampler.of.probabilities(), costs)
    ends = (costs[0].gflops + costs[1].gflops) / 2
    assert mean_gflops(training_shares(sampler, 600), costs) == pytest.approx((plain + ends) / 2)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("train.ends.period=4",), "S, L take turns: each has at least one of every 4 draws."),
        (("train.ends.first=9",), "S, L take turns: the first 9 iterations are theirs alone."),
        (
            ("train.ends.first=9", "train.ends.period=3", "train.ends.stitches=[FS-1]"),
            "FS-1 takes turns: the first 9 iterations are theirs alone, then each has at least one "
            "of every 3 draws.",
        ),
    ],
)
def test_plan_says_how_the_ends_take_turns(overrides, expected, make, costs):
    assert ends_plan(make(*overrides), costs.space) == expected


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("train.ends.period=1",), "train.ends.period=1 must be 0 or at least 2, a turn for each"),
        (
            ("train.ends.first=7", "train.max_iter=6"),
            "train.ends.first=7 must be at most train.max_iter=6",
        ),
        (
            ("train.ends.period=4", "train.ends.stitches=XL"),
            "train.ends.stitches=XL: unknown stitch 'XL'",
        ),
    ],
)
def test_turns_that_cannot_be_are_refused(overrides, expected, make):
    with pytest.raises(InputError, match=expected):
        make(*overrides)


def test_all_iterations_can_be_the_ends(make):
    assert make("train.ends.first=6", "train.max_iter=6").first == 6
    assert make("train.ends.period=2").probabilities()[:3] == (0.5, 0.5, 0)


def test_ends_that_a_space_does_not_have_are_refused_before_a_training(tiny_config, tmp_path):
    (tmp_path / "some.pth").touch()
    kinds = "model.backbone.net.kinds=[L,SFS]"
    config = tiny_config(f"train.output_dir='{tmp_path / 'output'}'", kinds, "train.ends.period=4")
    with pytest.raises(InputError, match="train.ends.stitches=S,L: unknown stitch 'S'"):
        preflight(config, evaluation=False, resume=False, num_processes=1)
    # They do no harm where they have no turns, or where nothing is trained.
    config.train.init_checkpoint = str(tmp_path / "some.pth")
    preflight(config, evaluation=True, resume=False, num_processes=1)
    config.train.ends.period = 0
    preflight(config, evaluation=False, resume=False, num_processes=1)


def test_a_baseline_has_no_stitches_to_take_turns(tiny_config, tmp_path):
    config = tiny_config(f"train.output_dir='{tmp_path}'", "train.ends.period=2")
    config.model = anchor_alone(config.model, "small")
    with pytest.raises(InputError, match="train.ends is set, but the backbone AnchorViT has no st"):
        preflight(config, evaluation=False, resume=False, num_processes=1)
