"""The configs of the study, and its page."""

import re
import shlex

import pytest
import torch
from detectron2.config import instantiate
from detectron2.utils.analysis import FlopCountAnalysis
from research.proxy.table import StudyTable
from research.proxy.variants import ALONE, CONFIGS, PAPER, VARIANTS, training_cost

from snnet_vitdet.engine import build_sampler, load_config
from snnet_vitdet.modeling import attention_implementation, stitch_costs
from snnet_vitdet.stitching import LARGE, UniformSampler, select_stitches

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


def test_cost_is_a_forward_of_the_teacher_and_the_pyramid_for_each_stitch_that_is_taught(
    tiny_config,
):
    """Of a whole large step, which is three of its forward passes."""
    uniform = "sampler._target_=snnet_vitdet.stitching.UniformSampler"
    config = tiny_config(uniform, "train.max_iter=700")
    costs = stitch_costs(config.model)
    plain = training_cost(config, costs)
    model = instantiate(config.model).eval()
    image = torch.zeros(1, 3, 64, 64)
    with attention_implementation(model.backbone.net.large, "reference"):
        flops = FlopCountAnalysis(model.backbone, image).by_module()
    forward = flops["model"] / 1e9
    # Forward, and back to what goes into it.
    again = 2 * (flops["model"] - flops["model.net"]) / 1e9
    step = 3 * max(costs.gflops)
    others = sum(UniformSampler([1.0] * 14)(i) != LARGE for i in range(700)) / 700
    assert 0.85 < others < 1
    config.train.distillation.weight = 1.0
    # As fvcore counts it.
    extra = training_cost(config, costs) - plain
    assert extra == pytest.approx(others * (forward + again) / step, rel=1e-3)
    config.train.distillation.rpn_weight = 1.0
    rpn = costs.parts.exits[LARGE]["rpn"].gflops
    extra = training_cost(config, costs) - plain
    assert extra == pytest.approx(others * (forward + again + rpn) / step, rel=1e-3)
    # The RPN's outputs are there already.
    config.train.distillation.weight = 0.0
    extra = training_cost(config, costs) - plain
    assert extra == pytest.approx(others * (forward + rpn) / step, rel=1e-3)


@pytest.mark.parametrize(
    ("every", "taught"),
    [
        # In turn S, L and twice one of five, of which one is L.
        (1, (4 - 1 - 2 / 5) / 4),
        # Only S, in its turn.
        (4, 1 / 4),
        # Every turn, after every other.
        (5, (4 - 1 - 2 / 5) / 4 / 5),
    ],
)
def test_cost_knows_which_turns_are_taught(every, taught, tiny_config):
    config = tiny_config(
        "model.backbone.net.kinds=[S,L,FS]",
        "sampler._target_=snnet_vitdet.stitching.UniformSampler",
        "train.ends.period=4",
        "train.max_iter=4000",
    )
    costs = stitch_costs(config.model)
    plain = training_cost(config, costs)
    config.train.distillation.update(weight=1.0, every=every)
    small, large = costs.parts.exits
    forward = costs[LARGE].gflops - large["rpn"].gflops - large["roi_heads"].gflops
    forward += 2 * small["pyramid"].gflops
    # The draws are a sample.
    added = (training_cost(config, costs) - plain) * 3 * costs[LARGE].gflops
    assert added / forward == pytest.approx(taught, rel=0.05)


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
