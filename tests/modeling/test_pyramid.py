"""One pyramid for each anchor that a stitch may end in; pyramids on given features."""

import pytest
import torch
from detectors import SIZE, instances, nano_config, picture
from detectron2.config import LazyCall, instantiate
from detectron2.modeling import SimpleFeaturePyramid
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.utils.analysis import FlopCountAnalysis
from detectron2.utils.events import EventStorage
from vits import images

from snnet_vitdet.engine import LayerwiseDecay
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation.one_pass import detect
from snnet_vitdet.modeling import (
    PyramidPerExit,
    anchor_alone,
    attention_implementation,
    baseline_cost,
    pyramid_from_features,
    pyramid_of_exit,
    stitch_costs,
)
from snnet_vitdet.stitching import LARGE, SMALL, PrefixTree, merged

PYRAMIDS = {
    "with an exit projection": {},
    "of each width": dict(exit_projection=False),
}
for_both = pytest.mark.parametrize("net", PYRAMIDS.values(), ids=PYRAMIDS)


def config_of(net):
    """The nano detector with a pyramid per exit and arguments of its backbone."""
    config = nano_config(num_classes=5)
    config.backbone.net.update(**net)
    config.backbone._target_ = PyramidPerExit
    return config


OWN = PYRAMIDS["of each width"]


def detector(net):
    torch.manual_seed(0)
    return instantiate(config_of(net))


def gradients_of(model, stitch: str) -> set[str]:
    """Names of the parameters that a training step of one stitch gives a gradient to."""
    model.train().zero_grad()
    model.backbone.net.set_stitch(stitch)
    sample = dict(image=picture(), instances=instances(), height=SIZE, width=SIZE)
    with EventStorage():
        sum(model([sample]).values()).backward()
    return {name for name, p in model.named_parameters() if p.grad is not None}


@for_both
def test_pyramids_are_trained_by_the_stitches_of_their_exit_alone(net):
    model = detector(net)
    small = {n for n, _ in model.backbone.named_parameters() if n.startswith("small_exit.simfp_")}
    large = {n for n, _ in model.backbone.named_parameters() if n.startswith("simfp_")}
    assert small and len(small) == len(large)
    for stitch, own in (
        ("S", small),
        ("SF-1", small),
        ("L", large),
        ("FSF-1-2", small),
        ("FS-2", large),
    ):
        trained = {n.removeprefix("backbone.") for n in gradients_of(model, stitch)}
        assert trained & (small | large) == own, stitch


def test_the_small_end_with_a_pyramid_of_its_own_is_the_small_vit_alone():
    """To the bit: with its weights, and the same to the heads."""
    model = detector(OWN).eval()
    alone = instantiate(anchor_alone(config_of(OWN), "small")).eval()
    assert type(alone.backbone) is SimpleFeaturePyramid
    state = model.state_dict()
    of_small = {k.replace("backbone.net.small.", "backbone.net."): v for k, v in state.items()}
    of_small |= {k.replace("small_exit.", ""): v for k, v in state.items() if "small_exit." in k}
    alone.load_state_dict({k: of_small[k] for k in alone.state_dict()})
    model.backbone.net.set_stitch("S")
    with torch.no_grad():
        ours, theirs = model.backbone(images()), alone.backbone(images())
    assert ours.keys() == theirs.keys() == {"p2", "p3", "p4", "p5", "p6"}
    assert all(torch.equal(ours[level], theirs[level]) for level in ours)
    cost = stitch_costs(config_of(OWN))[0]
    assert cost.flops == baseline_cost(anchor_alone(config_of(OWN), "small")).flops


@for_both
def test_costs_are_those_traced(net):
    config = config_of(net)
    model, table = instantiate(config).eval(), stitch_costs(config)
    image = [dict(image=picture())]
    for name in ("S", "L", "FS-1", "SF-2", "FSF-1-3"):
        stitch = table.space[name]
        model.backbone.net.set_stitch(name)
        with attention_implementation(model, "reference"), merged(model), torch.no_grad():
            tensor = model.preprocess_image(image).tensor
            traced = FlopCountAnalysis(model.backbone, tensor)
            traced.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            heads = sum(table.parts.exits[stitch.exit][name].flops for name in ("rpn", "roi_heads"))
            assert table[stitch.id].flops - heads == pytest.approx(traced.total(), rel=1e-3), name


@for_both
def test_many_stitches_at_once_detect_what_each_detects_alone(net):
    model = detector(net).eval()
    # So that untrained heads detect something.
    model.roi_heads.box_predictor.test_score_thresh = 0.0
    net = model.backbone.net
    batch = [dict(image=picture(), height=SIZE, width=SIZE)]
    count = 0
    for stitch, (found,) in detect(model, batch, PrefixTree(net.space)):
        with net.using_stitch(stitch.id), torch.no_grad():
            alone = model(batch)[0]["instances"]
        assert len(found) == len(alone) > 0
        assert torch.equal(found.pred_boxes.tensor, alone.pred_boxes.tensor), stitch.name
        assert torch.equal(found.scores, alone.scores)
        count += 1
    assert count == len(net.space)


@for_both
def test_what_is_new_learns_as_fast_as_the_heads(net):
    decay = LayerwiseDecay(dict(small=4, large=8), dict(small=0.5, large=0.5))
    new = [
        n for n, _ in detector(net).named_parameters() if "small_exit" in n or "layers.exit" in n
    ]
    assert new
    assert {decay(n) for n in new} == {1.0}


def test_pyramids_by_exit():
    pyramid = detector(OWN).backbone
    assert pyramid.exit_pyramid(LARGE) is pyramid is pyramid_of_exit(pyramid, LARGE)
    small = pyramid_of_exit(pyramid, SMALL)
    assert small.net.output_shape()["last_feat"].channels == 32
    shared = instantiate(nano_config()).backbone
    assert pyramid_of_exit(shared, SMALL) is pyramid_of_exit(shared, LARGE) is shared


@pytest.mark.parametrize("top", ["p5", "last_feat", None])
@torch.no_grad()
def test_a_pyramid_on_the_features_of_its_vit_gives_its_own_levels(top):
    config = anchor_alone(nano_config(), "small").backbone
    config.top_block = None
    if top:
        # The small ViT is as wide as the pyramid's levels.
        config.top_block = LazyCall(LastLevelP6P7)(in_channels=32, out_channels=32)
        config.top_block.in_feature = top
    pyramid, x = instantiate(config).eval(), images()
    expected = pyramid(x)
    found = pyramid_from_features(pyramid, pyramid.net(x)["last_feat"])
    assert list(found) == list(expected) and len(found) == (6 if top else 4)
    assert all(torch.equal(found[level], expected[level]) for level in expected)


def test_the_pyramid_of_an_exit_on_its_anchor_alone_shares_all_weights():
    pyramid = detector(OWN).eval().backbone
    for exit_anchor, name in ((SMALL, "S"), (LARGE, "L")):
        alone = pyramid.alone(exit_anchor)
        assert type(alone) is SimpleFeaturePyramid
        assert alone.net is pyramid.net.anchors[exit_anchor]
        own = {p.data_ptr() for p in pyramid.parameters()}
        assert {p.data_ptr() for p in alone.parameters()} <= own
        pyramid.net.set_stitch(name)
        with torch.no_grad():
            found, expected = alone.eval()(images()), pyramid(images())
        assert all(torch.equal(found[level], expected[level]) for level in expected)


def test_what_does_not_fit_is_refused():
    config = nano_config()
    config.backbone._target_ = PyramidPerExit
    config.backbone.net = config.backbone.net.small
    with pytest.raises(InputError, match="a PyramidPerExit is for a StitchedViT"):
        instantiate(config)
    config = config_of(OWN)
    config.backbone._target_ = SimpleFeaturePyramid
    with pytest.raises(InputError, match="add model.backbone._target_=snnet_vitdet.modeling.Pyr"):
        stitch_costs(config)
