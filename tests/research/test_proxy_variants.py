"""The configs of the study, and its page."""

import re
import shlex

import pytest
from research.proxy.table import StudyTable
from research.proxy.variants import ALONE, CONFIGS, PAPER, VARIANTS, training_cost

from snnet_vitdet.engine import build_sampler, load_config
from snnet_vitdet.modeling import stitch_costs
from snnet_vitdet.stitching import select_stitches

PAGE = "research/proxy/README.md"
SUPERNETS = [variant for variant in VARIANTS if variant.vit is None]
SINGLE_VITS = [variant for variant in (*ALONE.values(), *VARIANTS) if variant.vit is not None]


@pytest.fixture
def make(root):
    """Makes the config of a variant."""
    return lambda variant: load_config(
        str(root / CONFIGS[variant.vit or "supernet"]), list(variant.overrides)
    )


@pytest.mark.parametrize("variant", SUPERNETS, ids=lambda variant: variant.name)
def test_a_variant_is_a_config_that_changes_something(variant, make):
    config = make(variant)
    space = stitch_costs(config.model).space
    swept = select_stitches(config.sweep.stitch_ids, space)
    # The ends are what is compared.
    assert {"S", "L"} <= {space[stitch].name for stitch in swept}
    assert (config == make(PAPER) and variant.length == 1) == (variant is PAPER)


def test_names_are_folders_of_their_own():
    names = [variant.name for variant in (*ALONE.values(), *VARIANTS)]
    assert len(set(names)) == len(names)
    assert not {"pretrained_small", "pretrained_large"} & set(names)


@pytest.mark.parametrize("variant", SINGLE_VITS, ids=lambda variant: variant.name)
def test_a_vit_alone_is_that_of_the_supernet(variant, make):
    net = make(variant).model.backbone.net
    assert net == make(PAPER).model.backbone.net[variant.vit]


def test_the_cost_of_a_training_is_the_mean_over_the_draws(make):
    config = make(PAPER)
    costs = stitch_costs(config.model)
    cost, gflops = training_cost(config, costs), costs.gflops
    sampler = build_sampler(config, costs)
    draws = [gflops[sampler(iteration)] for iteration in range(4000)]
    # The draws are a sample: its mean has an error of about 0.002.
    assert cost == pytest.approx(sum(draws) / len(draws) / max(gflops), abs=0.01)
    assert 0.6 < cost < 1


def test_s_in_every_second_iteration_costs_no_more_for_that_it_is_longer(root):
    """The two commands of the page for COCO."""
    page = (root / PAGE).read_text(encoding="utf-8").replace("\\\n", " ")
    costs = []
    for line in re.findall(r"^python train_net.py --config-file (.*)$", page, re.MULTILINE):
        path, _, _, *overrides = shlex.split(line)
        config = load_config(str(root / path), overrides)
        mean = training_cost(config, stitch_costs(config.model))
        costs.append(mean * config.train.max_iter)
    paper, longer = costs
    assert 0.98 * paper < longer <= paper


def test_the_page_has_every_variant_with_its_overrides(root):
    page = (root / PAGE).read_text(encoding="utf-8")
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
            of = {None: "", "small": "S alone, ", "large": "L alone, "}[variant.vit]
            cells.append(f"{of}{variant.length:g} × `train.max_iter`")
        expected[f"`{variant.name}`"] = " ".join(cells)
    assert expected.items() <= rows.items()


def test_the_page_has_the_table_of_its_rows(root, make):
    config = make(PAPER)
    table = StudyTable(training_cost(config, stitch_costs(config.model)))
    table.read(root / "research/proxy/study.csv")
    assert table.summary() in (root / PAGE).read_text(encoding="utf-8")
