"""Two detectors joined: both are still themselves, whatever is trained between them."""

import copy

import pytest
import torch
from detectors import CONFIGS as CONFIG_FILES
from detectors import SIZE, cascade_config, instances, nano_config, picture
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import GeneralizedRCNN
from detectron2.utils.analysis import FlopCountAnalysis
from detectron2.utils.events import EventStorage

from snnet_vitdet.deploy import export_stitch, load_exported
from snnet_vitdet.engine import load_detectors
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation.one_pass import detect
from snnet_vitdet.modeling import (
    JoinedRCNN,
    anchor_alone,
    attention_implementation,
    baseline_cost,
    join_configs,
    running_in,
    stitch_costs,
)
from snnet_vitdet.stitching import LARGE, SMALL, PrefixTree, merged

CONFIGS = {"mask": nano_config, "cascade": cascade_config}
EXITS = {"S": SMALL, "L": LARGE}


def alone(heads, anchor):
    """The config of one of the two detectors; they differ in more than their ViTs."""
    config = anchor_alone(CONFIGS[heads](num_classes=5), anchor)
    if anchor == "small":
        config.proposal_generator.post_nms_topk = [30, 20]
    config.backbone.net.drop_path_rate = 0.3
    for predictor in config.roi_heads.get(
        "box_predictors", [config.roi_heads.get("box_predictor")]
    ):
        predictor.test_score_thresh = 0.0
    return config


def joined_config(heads="mask", **net):
    return join_configs(alone(heads, "small"), alone(heads, "large"), **{"lora_rank": 4, **net})


def two_and_joined(heads="mask", **net):
    """Two detectors of random weights, and the joined one of them, by exit and together."""
    torch.manual_seed(0)
    two = {SMALL: instantiate(alone(heads, "small")), LARGE: instantiate(alone(heads, "large"))}
    joined = instantiate(joined_config(heads, **net))
    for exit_anchor, detector in two.items():
        joined.detector(exit_anchor).load_state_dict(copy.deepcopy(detector.state_dict()))
    return two, joined


def batch():
    return [{"image": picture(), "height": 100, "width": SIZE}]


def assert_same(found, expected):
    """To the bit: boxes, scores, classes and masks."""
    (found,), (expected,) = ([each["instances"] for each in given] for given in (found, expected))
    assert len(found) == len(expected) > 0
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    for field in ("scores", "pred_classes", "pred_masks"):
        assert torch.equal(found.get(field), expected.get(field))


@torch.no_grad()
def outputs(model, given):
    return model.eval()(given)


def train(model, stitches, steps=2):
    """Some steps of an optimizer that decays whatever it is given."""
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1
    )
    sample = {"image": picture(), "instances": instances()}
    for stitch in stitches * steps:
        model.train()
        model.backbone.net.set_stitch(stitch)
        with EventStorage():
            loss = sum(model([sample]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("heads", CONFIGS)
def test_both_ends_are_the_detectors_before_and_after_a_training(heads):
    two, joined = two_and_joined(heads)
    net = joined.backbone.net
    before = copy.deepcopy(joined.state_dict())
    for trained in (False, True):
        if trained:
            train(joined, ["FS-1", "SF-2", "SFS-1-3", "FSF-2-3"])
        for name, exit_anchor in EXITS.items():
            net.set_stitch(name)
            expected = outputs(two[exit_anchor], batch())
            assert_same(outputs(joined, batch()), expected)
            assert_same(outputs(joined.detector(exit_anchor), batch()), expected)
            joined.train()
            assert_same(outputs(joined, batch()), expected)
            with torch.no_grad(), merged(joined):
                assert_same(joined.eval()(batch()), expected)
    changed = {k for k, v in joined.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all(k.startswith("backbone.net.stitching_layers.") for k in changed)


@pytest.mark.parametrize("heads", CONFIGS)
def test_from_files_to_an_exported_file_the_ends_are_the_detectors(heads, tmp_path):
    two, _ = two_and_joined(heads)
    names = list("abcde")
    sources = {name: str(tmp_path / f"{name}.pth") for name in ("small", "large")}
    for path, detector in zip(sources.values(), two.values(), strict=True):
        torch.save({"model": detector.state_dict(), "classes": {"thing_classes": names}}, path)
    run = LazyConfig.load(str(CONFIG_FILES / "join" / "mask_rcnn_snnet_nano.py"))
    run.data.image_size = SIZE
    run.model = joined_config(heads)
    joined = instantiate(run.model).eval()
    load_detectors(joined, sources, names)
    for name, exit_anchor in EXITS.items():
        path = tmp_path / f"{name}.safetensors"
        export_stitch(path, joined, run, joined.backbone.net.space[name], names)
        assert_same(outputs(load_exported(path), batch()), outputs(two[exit_anchor], batch()))


def test_mixed_stitches_run_the_pyramid_and_heads_of_their_exit():
    two, joined = two_and_joined()
    train(joined, ["FS-1", "SF-2"])
    joined.eval()
    net = joined.backbone.net
    images = joined.preprocess_image(batch())
    for stitch in net.space:
        net.set_stitch(stitch.id)
        detector = two[stitch.exit].eval()
        with torch.no_grad():
            tokens = net(images.tensor)["last_feat"]
            assert tokens.shape[1] == net.anchors[stitch.exit].embed_dim
            # The detector with other features than those of its own ViT.
            detector.backbone.net.forward = lambda _, tokens=tokens: {"last_feat": tokens}
            expected = detector(batch())
            del detector.backbone.net.forward
        assert_same(outputs(joined, batch()), expected)


def test_only_the_stitching_layers_of_a_stitch_learn():
    _, joined = two_and_joined()
    joined.train().backbone.net.set_stitch("FSF-1-3")
    with EventStorage():
        sum(joined([{"image": picture(), "instances": instances()}]).values()).backward()
    prefix = "backbone.net.stitching_layers."
    learn = {
        name.removeprefix(prefix) for name, p in joined.named_parameters() if p.grad is not None
    }
    layers = ("small_to_large.1", "large_to_small.3")
    assert learn == {f"{each}.{part}" for each in layers for part in ("bias", "lora_a", "lora_b")}


def test_frozen_parts_have_no_randomness_in_training():
    """The ViTs have stochastic depth, which the detectors were trained with and these are not."""
    _, joined = two_and_joined()
    joined.train()
    assert joined.training and joined.roi_heads.training and joined.proposal_generator.training
    images = torch.rand(1, 3, SIZE, SIZE)
    for stitch in joined.backbone.net.space:
        joined.backbone.net.set_stitch(stitch.id)
        first, second = (joined.backbone(images)["p4"] for _ in range(2))
        assert torch.equal(first, second)


@pytest.mark.parametrize("heads", CONFIGS)
def test_one_pass_gives_what_each_stitch_gives(heads):
    _, joined = two_and_joined(heads)
    joined.eval()
    net = joined.backbone.net
    for stitch, found in detect(joined, batch(), PrefixTree(net.space)):
        with net.using_stitch(stitch.id):
            assert_same([{"instances": each} for each in found], outputs(joined, batch()))


@pytest.mark.parametrize("heads", CONFIGS)
def test_costs_are_those_that_are_traced_and_the_ends_cost_what_the_detectors_cost(heads):
    config = joined_config(heads)
    costs = stitch_costs(config)
    for name, anchor in (("S", "small"), ("L", "large")):
        assert costs[costs.space[name].id] == baseline_cost(alone(heads, anchor))
    joined = instantiate(config).eval()
    image = [{"image": picture()}]
    for name in ("S", "L", "FS-2", "SFS-1-3", "FSF-1-2"):
        joined.backbone.net.set_stitch(name)
        with merged(joined), attention_implementation(joined, "reference"), torch.no_grad():
            analysis = FlopCountAnalysis(joined, (image,)).unsupported_ops_warnings(False)
            # The mask head runs for what is found, which is counted as nothing.
            flops = analysis.total() - sum(
                count
                for module, count in analysis.by_module().items()
                if module.endswith("mask_head")
            )
        assert costs[costs.space[name].id].flops == pytest.approx(flops, rel=1e-3)


def test_half_precision_ends_in_float32_for_both_exits():
    _, joined = two_and_joined()
    joined.eval()
    with torch.no_grad(), running_in(joined, torch.bfloat16):
        for name in EXITS:
            joined.backbone.net.set_stitch(name)
            (found,) = joined.inference(batch(), do_postprocess=False)
            assert {found.scores.dtype, found.pred_masks.dtype} == {torch.float32}


@pytest.mark.parametrize(
    ("key", "value", "refused"),
    [
        ("pixel_std", [1.0, 1.0, 1.0], "differ in model.pixel_std cannot be joined"),
        ("backbone.out_channels", 32, "differ in model.backbone.out_channels cannot be joined"),
    ],
)
def test_detectors_that_cannot_be_joined_are_refused(key, value, refused):
    small, large = alone("mask", "small"), alone("mask", "large")
    *parents, name = key.split(".")
    node = small
    for parent in parents:
        node = node[parent]
    node[name] = value
    with pytest.raises(InputError, match=refused):
        join_configs(small, large)


def test_a_joined_detector_is_made_of_parts_per_exit():
    config = joined_config()
    config.proposal_generator = config.proposal_generator.small
    with pytest.raises(InputError, match="make its config by join_configs"):
        instantiate(config)
    config = joined_config()
    config.roi_heads.small.num_classes = 7
    with pytest.raises(InputError, match="have 7 and 5 classes, and together should have 5"):
        instantiate(config)
    assert issubclass(JoinedRCNN, GeneralizedRCNN)
