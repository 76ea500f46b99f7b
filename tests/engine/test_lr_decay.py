import re

import pytest

from snnet_vitdet.engine import LayerwiseDecay
from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import anchor_alone
from snnet_vitdet.modeling.cost import build_on_meta

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
