"""What each exit may have of its own: a rank, a norm, a pyramid."""

import copy

import pytest
import torch
from detectors import SIZE, instances, nano_config, picture
from detectron2.config import instantiate
from detectron2.modeling import GeneralizedRCNN, SimpleFeaturePyramid
from detectron2.utils.analysis import FlopCountAnalysis
from detectron2.utils.events import EventStorage
from vits import images, large_anchor, small_anchor, stitched_vit

from snnet_vitdet.engine import LayerwiseDecay
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation.one_pass import detect
from snnet_vitdet.modeling import (
    ExitAdapterBoxHead,
    ExitAwareRCNN,
    ExtractedViT,
    PyramidPerExit,
    anchor_alone,
    attention_implementation,
    baseline_cost,
    extracted_state,
    stitch_costs,
)
from snnet_vitdet.stitching import LARGE, SMALL, PrefixTree, merged

SETTINGS = {
    "norm per exit": dict(exit_norm="exit"),
    "norm per kind": dict(exit_norm="kind"),
    "full rank": dict(exit_rank=0),
    "box adapters": {},
    "own pyramids": dict(exit_projection=False),
    "own pyramids and norms": dict(exit_projection=False, exit_norm="exit"),
}
OWN = [name for name in SETTINGS if name.startswith("own")]
for_every_setting = pytest.mark.parametrize("setting", SETTINGS)


def config_of(setting: str):
    """The nano detector with a setting; pyramids of their own where there is no projection."""
    config = nano_config(num_classes=5)
    config.backbone.net.update(**SETTINGS[setting])
    if not config.backbone.net.get("exit_projection", True):
        config.backbone._target_ = PyramidPerExit
    if setting == "box adapters":
        config._target_ = ExitAwareRCNN
        config.roi_heads.box_head._target_ = ExitAdapterBoxHead
        config.roi_heads.box_head.exit_rank = 4
    return config


def detector(setting: str):
    torch.manual_seed(0)
    return instantiate(config_of(setting))


def gradients_of(model, stitch: str) -> set[str]:
    """Names of the parameters that a training step of one stitch gives a gradient to."""
    model.train().zero_grad()
    model.backbone.net.set_stitch(stitch)
    sample = dict(image=picture(), instances=instances(), height=SIZE, width=SIZE)
    with EventStorage():
        sum(model([sample]).values()).backward()
    return {name for name, p in model.named_parameters() if p.grad is not None}


def test_the_rank_of_the_exit_projection_is_its_own():
    layers = stitched_vit(lora_rank=3, exit_rank=0).stitching_layers
    assert layers.exit.rank == 0 and layers.exit.weight.requires_grad
    assert {layer.rank for t, layer in layers.items() if layer is not layers.exit} == {3}
    assert stitched_vit(lora_rank=3).stitching_layers.exit.rank == 3
    with pytest.raises(InputError, match="rank must be"):
        stitched_vit(exit_rank=25)


@pytest.mark.parametrize(
    ("group", "own"),
    [
        (
            "exit",
            {"S": "small", "SF-1": "small", "FSF-1-2": "small", "L": "large", "FS-1": "large"},
        ),
        ("kind", {"S": "S", "SF-1": "SF", "FSF-1-2": "FSF", "L": "L", "FS-1": "FS"}),
    ],
)
def test_norms_are_trained_by_the_stitches_of_their_group_alone(group, own):
    model = detector(f"norm per {group}")
    for stitch, name in own.items():
        trained = {n for n in gradients_of(model, stitch) if ".exit_norms." in n}
        prefix = f"backbone.net.exit_norms.{name}."
        assert trained == {f"{prefix}weight", f"{prefix}bias"}, stitch


def test_a_norm_normalises_what_the_pyramid_sees():
    net = stitched_vit(exit_norm="exit")
    for stitch in net.space:
        net.set_stitch(stitch.id)
        with torch.no_grad():
            tokens = net(images())["last_feat"]
        # The weight of a new norm is one, its bias zero.
        torch.testing.assert_close(
            tokens.mean(1), torch.zeros_like(tokens.mean(1)), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(
            tokens.var(1, unbiased=False), torch.ones_like(tokens.mean(1)), atol=1e-3, rtol=0
        )


@pytest.mark.parametrize("setting", OWN)
def test_pyramids_are_trained_by_the_stitches_of_their_exit_alone(setting):
    model = detector(setting)
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


def test_adapters_of_the_box_head_are_trained_by_the_stitches_of_their_exit_alone():
    model = detector("box adapters")
    exits = {"S": "small", "SF-1": "small", "L": "large", "SFS-1-2": "large"}
    for stitch, exit_name in exits.items():
        trained = {n for n in gradients_of(model, stitch) if ".adapters." in n}
        assert len(trained) == 4
        assert all(f".adapters.{exit_name}." in name for name in trained), stitch


def test_adapters_of_the_box_head_start_at_the_shared_head():
    model, plain = detector("box adapters").eval(), instantiate(nano_config(num_classes=5)).eval()
    shared = {k: v for k, v in model.state_dict().items() if ".adapters." not in k}
    plain.load_state_dict({k.replace("box_head.head.", "box_head."): v for k, v in shared.items()})
    pooled = torch.randn(3, 64, 7, 7, generator=torch.Generator().manual_seed(0))
    for stitch in ("S", "L"):
        model.backbone.net.set_stitch(stitch)
        assert torch.equal(model.roi_heads.box_head(pooled), plain.roi_heads.box_head(pooled))


def test_a_copy_of_a_detector_follows_its_own_backbone():
    model = detector("box adapters").eval()
    for adapter in model.roi_heads.box_head.adapters.values():
        torch.nn.init.normal_(adapter[-1].weight)
    pooled = torch.randn(3, 64, 7, 7, generator=torch.Generator().manual_seed(0))
    copied = copy.deepcopy(model)
    model.backbone.net.set_stitch("S")
    copied.backbone.net.set_stitch("L")
    before = model.roi_heads.box_head(pooled)
    assert not torch.allclose(before, copied.roi_heads.box_head(pooled))
    copied.backbone.net.set_stitch("S")
    assert torch.equal(before, copied.roi_heads.box_head(pooled))


def test_the_small_end_with_a_pyramid_of_its_own_is_the_small_vit_alone():
    """To the bit: with its weights, and the same to the heads."""
    model = detector("own pyramids").eval()
    alone = instantiate(anchor_alone(config_of("own pyramids"), "small")).eval()
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
    cost = stitch_costs(config_of("own pyramids"))[0]
    assert cost.flops == baseline_cost(anchor_alone(config_of("own pyramids"), "small")).flops


@for_every_setting
def test_costs_are_those_traced(setting):
    config = config_of(setting)
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


@pytest.mark.parametrize("setting", ["norm per kind", "box adapters", "own pyramids"])
def test_many_stitches_at_once_detect_what_each_detects_alone(setting):
    model = detector(setting).eval()
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


@for_every_setting
def test_the_features_of_an_extracted_stitch_are_those_of_the_supernet(setting):
    changes = SETTINGS[setting]
    net = stitched_vit(**changes)
    for stitch in net.space:
        projects = stitch.exit == SMALL and net.space.exit_projection
        chain = ExtractedViT(
            [small_anchor(), large_anchor()],
            stitch.segments,
            net.large.embed_dim if projects else None,
            normalises="exit_norm" in changes,
        ).eval()
        chain.load_state_dict(extracted_state(net, stitch))
        net.set_stitch(stitch.id)
        with torch.no_grad():
            ours, theirs = net(images())["last_feat"], chain(images())["last_feat"]
        assert ours.shape[1] == chain.output_shape()["last_feat"].channels
        # Float rounding of a merged update.
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_what_is_new_learns_as_fast_as_the_heads():
    decay = LayerwiseDecay(dict(small=4, large=8), dict(small=0.5, large=0.5))
    names = [n for n, _ in detector("own pyramids and norms").named_parameters()]
    new = [n for n in names if "exit" in n]
    assert {n.split(".")[1] for n in new} == {"net", "small_exit"}
    assert {decay(n) for n in new} == {1.0}


def test_without_settings_there_is_nothing_of_an_exit_alone():
    model = instantiate(nano_config(num_classes=5))
    assert type(model.backbone) is SimpleFeaturePyramid
    names = [n for n in model.state_dict() if "exit" in n and ".stitching_layers.exit." not in n]
    assert names == []


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"exit_norm must be null or one of \['exit', 'kind'\]"):
        stitched_vit(exit_norm="batch")
    config = nano_config()
    config.backbone._target_ = PyramidPerExit
    config.backbone.net = config.backbone.net.small
    with pytest.raises(InputError, match="a PyramidPerExit is for a StitchedViT"):
        instantiate(config)
    config = config_of("own pyramids")
    config.backbone._target_ = SimpleFeaturePyramid
    with pytest.raises(InputError, match="add model.backbone._target_=snnet_vitdet.modeling.Pyr"):
        stitch_costs(config)
    config = config_of("box adapters")
    config._target_ = GeneralizedRCNN
    with pytest.raises(InputError, match="it is for model._target_="):
        gradients_of(instantiate(config), "S")
    config = config_of("box adapters")
    config.roi_heads.box_head.exit_rank = 0
    with pytest.raises(InputError, match="must be at least 1, got 0"):
        instantiate(config)
    with pytest.raises(InputError, match="an ExitAwareRCNN is for a StitchedViT"):
        instantiate(anchor_alone(config_of("box adapters"), "small"))


def test_pyramids_by_exit():
    pyramid = detector("own pyramids").backbone
    assert pyramid.exit_pyramid(LARGE) is pyramid
    assert pyramid.exit_pyramid(SMALL).net.output_shape()["last_feat"].channels == 96
