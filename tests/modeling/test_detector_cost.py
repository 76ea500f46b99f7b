import copy

import pytest
import torch
from detectors import CONFIGS, SIZE, cascade_config, nano_config, picture
from detectron2 import model_zoo
from detectron2.config import LazyConfig, instantiate
from detectron2.utils.analysis import FlopCountAnalysis
from omegaconf import OmegaConf

from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import (
    anchor_alone,
    attention_implementation,
    baseline_cost,
    operating_at,
    point_costs,
    stitch_costs,
)
from snnet_vitdet.modeling.cost import image_size_of
from snnet_vitdet.stitching import merged

ONE_OF_EACH_KIND = ["S", "L", "FS-2", "SF-1", "SFS-1-3", "FSF-2-3"]
# 0.1 % is what DESIGN asks for; the two counts differ by the rounding of fvcore's einsum alone.
AGREEMENT = 2e-6


@torch.no_grad()
def traced(model, num_proposals, size=SIZE, height=None):
    """detectron2's count of the whole model, and the number of detections."""
    inputs = [dict(image=picture(size)[:, :height])]
    images = model.preprocess_image(inputs)
    proposals, _ = model.proposal_generator(images, model.backbone(images.tensor), None)
    # The table counts the nominal number, which a trained RPN reaches.
    assert len(proposals[0]) == num_proposals
    (result,) = model(inputs)
    analysis = FlopCountAnalysis(model, inputs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return analysis.total(), len(result["instances"])


def traced_stitch(model, name, num_proposals=100):
    net = model.backbone.net
    with net.using_stitch(name), merged(net), attention_implementation(net, "reference"):
        return traced(model, num_proposals)


def build(config):
    torch.manual_seed(0)
    return instantiate(config).eval()


@pytest.fixture(scope="module")
def nano():
    config = nano_config()
    return build(config), stitch_costs(config)


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_the_table_equals_detectron2s_count_of_the_whole_model(nano, name):
    model, table = nano
    flops, num_detections = traced_stitch(model, name)
    assert num_detections == 0
    assert table[table.space[name].id].flops == pytest.approx(flops, rel=AGREEMENT)


def test_the_mask_head_is_counted_for_the_detections_named():
    config = nano_config(num_classes=6)
    flops, num_detections = traced_stitch(build(config), "FS-2")
    assert num_detections > 0
    table = stitch_costs(config, num_detections=num_detections)
    assert table[table.space["FS-2"].id].flops == pytest.approx(flops, rel=AGREEMENT)
    without = stitch_costs(config)
    assert without[0].flops < table[0].flops
    assert without[0].params == table[0].params


def test_the_table_counts_cascade_heads_as_detectron2_does():
    config = cascade_config()
    flops, num_detections = traced_stitch(build(config), "SF-1")
    table = stitch_costs(config, num_detections=num_detections)
    assert table[table.space["SF-1"].id].flops == pytest.approx(flops, rel=AGREEMENT)


def test_the_table_counts_other_anchors_as_detectron2_does():
    # One norm more, and positions of every kind: a table, none, absolute-win, some decomposed.
    config = nano_config()
    config.backbone.net.small.update(pre_norm=True, abs_pos="win", use_rel_pos="global")
    config.backbone.net.large.update(abs_pos=None, rel_pos_table=True)
    model, table = build(config), stitch_costs(config)
    for name in ("FS-2", "SF-1"):
        flops, _ = traced_stitch(model, name)
        assert table[table.space[name].id].flops == pytest.approx(flops, rel=AGREEMENT)
    for anchor in ("small", "large"):
        alone = anchor_alone(config, anchor)
        assert baseline_cost(alone).params == sum(p.numel() for p in build(alone).parameters())


@pytest.mark.parametrize("anchor", ["small", "large"])
def test_the_cost_of_a_baseline_equals_detectron2s_count(anchor):
    config = anchor_alone(nano_config(), anchor)
    model = build(config)
    with attention_implementation(model, "reference"):
        flops, num_detections = traced(model, 100)
    assert num_detections == 0
    cost = baseline_cost(config)
    assert cost.flops == pytest.approx(flops, rel=AGREEMENT)
    assert cost.params == sum(p.numel() for p in model.parameters())


def test_a_baseline_costs_what_detectron2s_own_vitdet_costs():
    # DESIGN's 440.9 and 1807.4 were measured on detectron2's ViT; here at a size that runs quickly.
    config = nano_config()
    ours = anchor_alone(config, "small")
    cost = baseline_cost(ours)
    vit = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model.backbone.net
    anchor = config.backbone.net.small
    for key in ("patch_size", "embed_dim", "depth", "num_heads", "window_size"):
        vit[key] = anchor[key]
    vit.update(img_size=SIZE, window_block_indexes=[0, 2], pretrain_img_size=256)
    theirs = copy.deepcopy(ours)
    theirs.backbone.net = vit
    flops, num_detections = traced(build(theirs), 100)
    assert num_detections == 0
    assert cost.flops == pytest.approx(flops, rel=AGREEMENT)


def test_fused_attention_would_be_missing_from_detectron2s_count(nano):
    # Why the reference formulation is what is counted.
    model, table = nano
    with model.backbone.net.using_stitch("L"), merged(model):
        flops, _ = traced(model, 100)
    assert flops < 0.99 * table[table.space["L"].id].flops


def test_parameters_are_those_of_the_modules_a_stitch_uses_with_merged_layers(nano):
    model, table = nano
    net = model.backbone.net
    shared = sum(
        p.numel() for n, p in model.named_parameters() if not n.startswith("backbone.net.")
    )
    for stitch in table.space:
        start = net.anchors[stitch.segments[0].anchor]
        expected = shared + start.pos_embed.numel()
        expected += sum(p.numel() for p in start.patch_embed.parameters())
        for anchor, first, last in stitch.segments:
            blocks = net.anchors[anchor].blocks[first:last]
            expected += sum(p.numel() for p in blocks.parameters())
        for transition in stitch.transitions:
            source, target = (net.anchors[i].embed_dim for i in transition[1:])
            expected += source * target + target
        assert table[stitch.id].params == expected


def test_the_rank_of_the_layers_changes_no_cost():
    tables = []
    for rank in (0, 4, 16):
        config = nano_config()
        config.backbone.net.lora_rank = rank
        tables.append(list(stitch_costs(config)))
    assert tables[0] == tables[1] == tables[2]


def test_the_attention_that_runs_changes_no_cost():
    config = nano_config()
    expected = list(stitch_costs(config))
    config.backbone.net.small.attention = config.backbone.net.large.attention = "reference"
    assert list(stitch_costs(config)) == expected


def test_counting_leaves_the_config_as_it_is():
    config = nano_config()
    before = OmegaConf.to_container(config, resolve=True)
    stitch_costs(config)
    baseline_cost(anchor_alone(config, "small"))
    assert OmegaConf.to_container(config, resolve=True) == before


def test_the_image_size_is_the_configs_own_or_the_one_given():
    config = nano_config(image_size=64)
    assert image_size_of(config) == 64
    expected = stitch_costs(config).gflops
    # The stored positions of 128 pixels are interpolated, which counts as nothing.
    config = nano_config(image_size=128)
    assert stitch_costs(config, image_size=64).gflops == expected
    baseline = anchor_alone(config, "small")
    assert baseline_cost(baseline, image_size=64).flops < baseline_cost(baseline).flops


def test_a_config_without_a_size_of_its_own_needs_one():
    config = nano_config()
    expected = stitch_costs(config).gflops
    config.backbone.square_pad = 0
    with pytest.raises(InputError, match=r"square_pad is 0, .*give one to count costs at"):
        stitch_costs(config)
    assert stitch_costs(config, image_size=SIZE).gflops == expected


def test_a_backbone_of_the_other_sort_is_an_error():
    config = nano_config()
    with pytest.raises(InputError, match=r"model\.backbone\.net is no AnchorViT, so the model"):
        baseline_cost(config)
    with pytest.raises(InputError, match=r"model\.backbone\.net is no StitchedViT, so the model"):
        stitch_costs(anchor_alone(config, "small"))


def test_the_baseline_of_an_anchor_has_its_sizes_and_the_pyramids_input():
    config = nano_config()
    config.backbone.net.out_feature = "tokens"
    alone = anchor_alone(config, "large")
    assert alone.backbone.net.embed_dim == 144
    assert config.backbone.net.large.out_feature == "last_feat"
    assert "tokens" in instantiate(alone).backbone.net.output_shape()


@pytest.fixture(scope="module")
def small_and_large():
    path = CONFIGS / "COCO" / "mask_rcnn_snnet_deit3_s_l_100ep.py"
    return LazyConfig.load(str(path)).model


def test_the_baselines_meet_the_figures_of_the_design(small_and_large):
    for anchor, gflops in (("small", 440.9), ("large", 1807.4)):
        cost = baseline_cost(anchor_alone(small_and_large, anchor))
        assert cost.gflops == pytest.approx(gflops, rel=0.005)


def test_the_anchors_of_the_supernet_meet_the_figures_of_the_design(small_and_large):
    table = stitch_costs(small_and_large)
    assert len(table) == 134
    large = table[table.space["L"].id].gflops
    assert large == pytest.approx(1807.4, rel=0.005)
    assert large == baseline_cost(anchor_alone(small_and_large, "large")).gflops
    assert table[table.space["S"].id].gflops == pytest.approx(475, rel=0.02)
    # A cut replaces at least one stage of an anchor, which outweighs all stitching layers.
    assert min(table.gflops) == table[0].gflops and max(table.gflops) == large


def test_the_cost_of_an_operating_point_equals_detectron2s_count_of_the_running_detector(nano):
    model, _ = nano
    tables = point_costs(nano_config(), [64, 192], [20, 60])
    for (size, count), table in tables.items():
        for name in ("FS-2", "SF-1"):
            net = model.backbone.net
            with (
                operating_at(model, size, count),
                net.using_stitch(name),
                merged(net),
                attention_implementation(net, "reference"),
            ):
                flops, _ = traced(model, count, size)
            assert table[table.space[name].id].flops == pytest.approx(flops, rel=AGREEMENT)


def test_the_own_size_and_number_are_those_of_the_config():
    config = nano_config()
    own = stitch_costs(config)
    tables = point_costs(config, [None, SIZE], [None, 100])
    assert all(list(table) == list(own) for table in tables.values())
    small = anchor_alone(config, "small")
    fewer = baseline_cost(small, image_size=64, num_proposals=20)
    assert 0 < fewer.flops < baseline_cost(small, image_size=64).flops < baseline_cost(small).flops
    assert fewer.params == baseline_cost(small).params


def test_costs_with_tight_padding_are_those_of_a_whole_image_of_this_ratio():
    config = nano_config()
    model = build(config)
    net = model.backbone.net
    ratio = 16 / 9
    table = stitch_costs(config, aspect_ratio=ratio)
    for name in ("FS-2", "SF-1"):
        with (
            operating_at(model, None, None, "tight"),
            net.using_stitch(name),
            merged(net),
            attention_implementation(net, "reference"),
        ):
            # 72 pixels are padded to 96.
            flops, _ = traced(model, 100, SIZE, height=72)
        assert table[table.space[name].id].flops == pytest.approx(flops, rel=AGREEMENT)
    for anchor in ("small", "large"):
        alone = anchor_alone(config, anchor)
        model = build(alone)
        with (
            operating_at(model, None, None, "tight"),
            attention_implementation(model, "reference"),
        ):
            flops, _ = traced(model, 100, SIZE, height=72)
        assert baseline_cost(alone, aspect_ratio=ratio).flops == pytest.approx(flops, rel=AGREEMENT)
    # All but the box head shrinks with the image, to 6 of 8 rows.
    assert table[0].flops < 0.92 * stitch_costs(config)[0].flops
