"""The configs of the study."""

import pytest

from snnet_vitdet.engine import build_sampler, load_config
from snnet_vitdet.modeling import stitch_costs
from snnet_vitdet.stitching import select_stitches
from snnet_vitdet.study import PAPER, VARIANTS, training_cost

SUPERNET = "configs/proxy/mask_rcnn_snnet_proxy.py"


@pytest.fixture
def make(root):
    """Makes the supernet's config with the overrides of a variant."""
    return lambda variant: load_config(str(root / SUPERNET), list(variant.overrides))


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_variant_is_a_config_that_changes_something(variant, make):
    config = make(variant)
    space = stitch_costs(config.model).space
    swept = select_stitches(config.sweep.stitch_ids, space)
    # The ends are what is compared.
    assert {"S", "L"} <= {space[stitch].name for stitch in swept}
    assert (config == make(PAPER) and variant.length == 1) == (variant is PAPER)


def test_names_are_folders_of_their_own():
    names = [variant.name for variant in VARIANTS]
    assert len(set(names)) == len(names)
    assert not {"small_alone", "large_alone", "pretrained_small", "pretrained_large"} & set(names)


def test_the_cost_of_a_training_is_the_mean_over_the_draws(make):
    config = make(PAPER)
    costs = stitch_costs(config.model)
    cost, gflops = training_cost(config, costs), costs.gflops
    sampler = build_sampler(config, costs)
    draws = [gflops[sampler(iteration)] for iteration in range(4000)]
    # The draws are a sample: its mean has an error of about 0.002.
    assert cost == pytest.approx(sum(draws) / len(draws) / max(gflops), abs=0.01)
    assert 0.6 < cost < 1


def test_the_page_has_every_variant_with_its_overrides(root):
    page = (root / "docs/accuracy.md").read_text(encoding="utf-8")
    rows = {
        cells[1].strip(): cells[-2].strip()
        for line in page.splitlines()
        if line.startswith("| `")
        for cells in [line.split("|")]
    }
    expected = {}
    for variant in VARIANTS:
        cells = [f"`{override}`" for override in variant.overrides]
        if variant.length != 1:
            cells.append(f"{variant.length:g} × `train.max_iter`")
        expected[f"`{variant.name}`"] = " ".join(cells)
    assert expected.items() <= rows.items()
