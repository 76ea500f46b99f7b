"""Two detectors joined: both are still themselves, whatever is trained between them."""

import copy

import pytest
import torch
from detection_arrays import records_of
from detectors import CONFIGS as CONFIG_FILES
from detectors import SIZE, cascade_config, instances, nano_config, picture
from detectron2.config import LazyConfig, instantiate
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
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
    extracted_state,
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


def joined_config(heads="mask", updates=0, **net):
    """With low-rank updates of the ViTs of a rank, 0 for none."""
    config = join_configs(alone(heads, "small"), alone(heads, "large"), **{"lora_rank": 4, **net})
    config.backbone.net.small.lora_rank = config.backbone.net.large.lora_rank = updates
    return config


def two_and_joined(heads="mask", updates=0, **net):
    """Two detectors of random weights, and the joined one of them, by exit and together."""
    torch.manual_seed(0)
    two = {SMALL: instantiate(alone(heads, "small")), LARGE: instantiate(alone(heads, "large"))}
    joined = instantiate(joined_config(heads, updates, **net))
    for exit_anchor, detector in two.items():
        state = copy.deepcopy(detector.state_dict())
        keys = joined.detector(exit_anchor).load_state_dict(state, strict=not updates)
        assert not keys.unexpected_keys and all(".lora_" in key for key in keys.missing_keys)
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


@pytest.mark.parametrize(("heads", "updates"), [("mask", 0), ("cascade", 0), ("mask", 3)])
def test_both_ends_are_the_detectors_before_and_after_a_training(heads, updates):
    two, joined = two_and_joined(heads, updates)
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
    stitching = {k for k in changed if k.startswith("backbone.net.stitching_layers.")}
    assert stitching
    assert all(k.endswith((".lora_a", ".lora_b")) for k in changed - stitching)
    assert bool(changed - stitching) == bool(updates)


def trained_with_updates(**changes):
    _, joined = two_and_joined(updates=3, **changes)
    for layer in joined.backbone.net.updates():
        torch.nn.init.normal_(layer.lora_a, std=0.1)
    return joined


def test_updates_take_part_after_the_first_cut_and_nowhere_else():
    net = trained_with_updates().eval().backbone.net
    plain = copy.deepcopy(net)
    for layer in plain.updates():
        layer.lora_a.data.zero_()
    changed = copy.deepcopy(net)
    for layer in changed.updates():
        layer.weight.data.copy_(layer.weight + layer.scale * layer.lora_a @ layer.lora_b)
    images = torch.rand(1, 3, SIZE, SIZE)
    for name in ("S", "L", "FS-1", "SF-2", "SFS-1-3", "FSF-2-3"):
        stitch = net.set_stitch(name)
        with torch.no_grad():
            (anchor, start, stop), *rest = stitch.segments
            x = plain.anchors[anchor].embed(images)
            for block in plain.anchors[anchor].blocks[start:stop]:
                x = block(x)
            for transition, (anchor, start, stop) in zip(stitch.transitions, rest, strict=True):
                x = changed.stitching_layers[transition](x)
                for block in changed.anchors[anchor].blocks[start:stop]:
                    x = block(x)
            found = net(images)["last_feat"]
        torch.testing.assert_close(found, x.permute(0, 3, 1, 2), rtol=1e-4, atol=1e-5)
        without = plain.anchors[stitch.exit](images)["last_feat"]
        assert torch.equal(found, without) == (name in EXITS)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_updates_that_took_part_learn_and_no_other(checkpointing):
    joined = trained_with_updates()
    joined.train().backbone.net.set_stitch("SFS-1-3")
    for anchor in joined.backbone.net.anchors:
        anchor.activation_checkpointing = checkpointing
    runs = []
    joined.backbone.net.large.blocks[7].register_forward_pre_hook(lambda *_: runs.append(1))
    with EventStorage():
        sum(joined([{"image": picture(), "instances": instances()}]).values()).backward()
    learn = {n for n, p in joined.named_parameters() if p.grad is not None}
    learn = {n.removeprefix("backbone.net.").rsplit(".", 3)[0] for n in learn if ".blocks." in n}
    assert len(runs) == 1 + checkpointing
    # The large ViT's first two blocks come before the cut.
    expected = {"small.blocks.1", "small.blocks.2", "large.blocks.6", "large.blocks.7"}
    assert learn == expected


def test_updates_are_merged_where_a_stitch_is_exported():
    joined = trained_with_updates().eval()
    net, images = joined.backbone.net, torch.rand(1, 3, SIZE, SIZE)
    tree = {s.id: f["last_feat"] for s, f in net.forward_tree(images, PrefixTree(net.space))}
    for stitch in net.space:
        net.set_stitch(stitch.id)
        with torch.no_grad():
            expected = net(images)["last_feat"]
            assert torch.equal(tree[stitch.id], expected)
            with merged(joined):
                found = net(images)["last_feat"]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        state = extracted_state(net, stitch)
        assert not any(".lora_" in key for key in state)
        first = len(range(*stitch.segments[0][1:]))
        for index in range(first):
            block = net.anchors[stitch.segments[0].anchor].blocks[index]
            assert torch.equal(state[f"layers.{index}.mlp.fc1.weight"], block.mlp.fc1.weight)


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
            (one,), (expected,) = found, outputs(joined, batch())
        assert len(one) > 0
        assert records_of(one, 7) == instances_to_coco_json(expected["instances"], 7)


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
        ("backbone.out_channels", 16, "differ in model.backbone.out_channels cannot be joined"),
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
    with pytest.raises(InputError, match="have 7 and 5 classes, but both must have 5"):
        instantiate(config)
    assert issubclass(JoinedRCNN, GeneralizedRCNN)
