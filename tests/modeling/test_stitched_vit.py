import copy

import pytest
import torch
from detectors import cascade_config, instances, nano_config, picture
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage
from vits import images, large_anchor, small_anchor, stitched_vit

from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import StitchedViT, find_stitched_vit
from snnet_vitdet.stitching import LARGE, SMALL, Transition

# float32, up to 8 blocks; the same operations in the same order, so most differences are 0.
ROUNDING = dict(rtol=1e-5, atol=1e-5)
NAMES = [
    *("S", "L", "FS-1", "FS-2", "FS-3", "SF-1", "SF-2", "SF-3"),
    *("SFS-1-2", "SFS-1-3", "SFS-2-3", "FSF-1-2", "FSF-1-3", "FSF-2-3"),
]
ONE_OF_EACH_KIND = ["S", "L", "FS-2", "SF-1", "SFS-1-3", "FSF-2-3"]


def chain(net, name):
    """The modules a stitch runs, from its name and DESIGN alone: 4 stages, 2 large blocks each."""
    kind, *cuts = name.split("-")
    kind = {"S": "F", "L": "S"}.get(kind, kind)
    edges = [0, *map(int, cuts), 4]
    modules = [net.small if kind[0] == "F" else net.large]  # its embedding
    for i, letter in enumerate(kind):
        start, stop = edges[i : i + 2]
        if i:
            layers = net.stitching_layers
            directed = layers.large_to_small if letter == "F" else layers.small_to_large
            modules.append(directed[str(start)])
        if letter == "F":
            modules.extend(net.small.blocks[start:stop])
        else:
            modules.extend(net.large.blocks[2 * start : 2 * stop])
    if kind[-1] == "F":
        modules.append(net.stitching_layers.exit)
    return modules


def run_chain(net, name, x):
    anchor, *modules = chain(net, name)
    x = anchor.embed(x)
    for module in modules:
        x = module(x)
    return x.permute(0, 3, 1, 2)


def active_parameters(net, name):
    """Names of the parameters that the stitch runs and that are trained."""
    anchor, *modules = chain(net, name)
    parameters = {id(p) for module in modules for p in module.parameters() if p.requires_grad}
    parameters |= {id(p) for p in [*anchor.patch_embed.parameters(), anchor.pos_embed]}
    return {key for key, p in net.named_parameters() if id(p) in parameters}


def train_once(net, name, optimizer=None):
    net.train().set_stitch(name)
    net.zero_grad(set_to_none=True)
    net(images())["last_feat"].square().mean().backward()
    if optimizer is not None:
        optimizer.step()


def test_the_space_is_that_of_the_depths_of_the_anchors():
    assert [stitch.name for stitch in stitched_vit().space] == NAMES


@pytest.mark.parametrize("size", [(64, 64), (96, 48)])
@torch.no_grad()
def test_every_stitch_equals_the_same_blocks_chained_by_hand(size):
    net, x = stitched_vit(), images(*size)
    outputs = []
    for name in NAMES:
        net.set_stitch(name)
        out = net(x)
        assert out.keys() == {"last_feat"}
        assert out["last_feat"].shape == (2, 40, size[0] // 16, size[1] // 16)
        torch.testing.assert_close(out["last_feat"], run_chain(net, name, x), **ROUNDING)
        outputs.append(out["last_feat"])
    for i, first in enumerate(outputs):
        for second in outputs[:i]:
            assert (first - second).abs().max() > 0.1  # 14 different networks


def test_a_stitch_is_set_by_id_or_name_and_is_in_effect_at_once():
    net = stitched_vit()
    assert net.stitch.name == "L"
    for stitch_id, name in enumerate(NAMES):
        assert net.set_stitch(stitch_id) is net.stitch is net.space[name]
        net.set_stitch("L")
        assert net.set_stitch(name).id == net.stitch.id == stitch_id


@pytest.mark.parametrize(
    ("unknown", "error", "message"),
    [
        (14, IndexError, "stitch id 14 is not in 0 … 13"),
        (-1, IndexError, "stitch id -1 is not in 0 … 13"),
        ("FS-4", KeyError, "no stitch is named 'FS-4'"),
        (None, TypeError, "a stitch is chosen by id or name, not by None"),
    ],
)
def test_an_unknown_stitch_is_an_error_and_the_one_in_effect_stays(unknown, error, message):
    net = stitched_vit()
    net.set_stitch("SF-1")
    with pytest.raises(error, match=message):
        net.set_stitch(unknown)
    assert net.stitch.name == "SF-1"
    with pytest.raises(error, match=message), net.using_stitch(unknown):
        pass
    assert net.stitch.name == "SF-1"


def test_using_a_stitch_restores_the_one_before_also_after_an_exception():
    net = stitched_vit()
    net.set_stitch("SF-1")
    with net.using_stitch("S") as stitch:
        assert net.stitch is stitch is net.space["S"]
        with net.using_stitch(1):
            assert net.stitch.name == "L"
        assert net.stitch.name == "S"
    assert net.stitch.name == "SF-1"
    with pytest.raises(RuntimeError, match="stop"), net.using_stitch("S"):
        raise RuntimeError("stop")
    assert net.stitch.name == "SF-1"


def test_the_stitch_is_in_no_checkpoint_and_loading_leaves_it():
    net, other = stitched_vit(), stitched_vit()
    keys = list(net.state_dict())
    net.set_stitch("SF-1")
    assert list(net.state_dict()) == keys
    assert set(keys) == {name for name, _ in net.named_parameters()}
    net.load_state_dict(other.state_dict())
    assert net.stitch.name == "SF-1"
    assert other.stitch.name == "L"


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_gradients_exist_on_the_active_path_alone(name):
    net = stitched_vit()
    train_once(net, name)
    with_gradient = {key for key, p in net.named_parameters() if p.grad is not None}
    assert with_gradient == active_parameters(net, name)
    for key, parameter in net.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_a_step_with_weight_decay_leaves_inactive_parameters_bitwise_as_they_are(name):
    net = stitched_vit()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.1)
    # All blocks have momentum from earlier iterations, which must not move them either.
    for earlier in ("L", "S", "SFS-1-2", "FSF-2-3", "FS-3", "SF-3", "FS-1"):
        train_once(net, earlier, optimizer)
    before = copy.deepcopy(net.state_dict())
    train_once(net, name, optimizer)
    after = net.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == active_parameters(net, name)


def test_a_subset_of_kinds_builds_its_layers_alone():
    net = stitched_vit(kinds=("S", "L", "FS"))
    layers = net.stitching_layers
    assert len(net.space) == 5
    assert set(layers.small_to_large) == {"1", "2", "3"} and len(layers.large_to_small) == 0
    assert [t for t, _ in layers.items()] == [Transition(c, SMALL, LARGE) for c in (1, 2, 3, 4)]
    without_anchors = stitched_vit(kinds=("SFS",))
    assert without_anchors.stitching_layers.exit is None
    assert without_anchors.stitch.name == "SFS-1-2"
    assert stitched_vit(max_cuts=0).space.kinds == ("S", "L")


@pytest.mark.parametrize("depth", [8, 6])
@torch.no_grad()
def test_stage_tokens_are_both_anchors_outputs_at_every_cut(depth):
    large = large_anchor(depth=depth, global_block_indexes=(1,))
    net, x = StitchedViT(small_anchor(), large, lora_rank=3).eval(), images()
    ends = {8: (2, 4, 6, 8), 6: (2, 3, 4, 6)}[depth]
    cuts = []
    for cut, small_tokens, large_tokens in net.stage_tokens(x):
        cuts.append(cut)
        for anchor, stop, tokens in (
            (net.small, cut, small_tokens),
            (net.large, ends[cut - 1], large_tokens),
        ):
            expected = anchor.embed(x)
            for block in anchor.blocks[:stop]:
                expected = block(expected)
            torch.testing.assert_close(tokens, expected, **ROUNDING)
    assert cuts == [1, 2, 3, 4]


def test_output_has_the_width_of_the_large_anchor():
    shape = stitched_vit(out_feature="tokens").output_shape()
    assert shape.keys() == {"tokens"}
    assert (shape["tokens"].channels, shape["tokens"].stride) == (40, 16)


def test_anchors_of_different_patch_sizes_are_an_error():
    other = large_anchor(patch_size=8)
    message = r"their patch sizes differ \(16 and 8\).*choose two ViTs of one patch size"
    with pytest.raises(InputError, match=message):
        StitchedViT(small_anchor(), other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(max_cuts=-1), "max_cuts must be an integer >= 0, got -1"),
        (dict(kinds=["XY"]), r"kinds \['XY'\] with max_cuts=2 and 4 stages: choose among"),
        (dict(lora_rank=25), "rank must be 0 … 24 for a stitching layer 24 -> 40, got 25"),
    ],
)
def test_arguments_that_give_no_space_are_input_errors(arguments, message):
    with pytest.raises(InputError, match=message):
        stitched_vit(**arguments)


def test_anchors_in_the_wrong_order_are_an_error():
    with pytest.raises(InputError, match=r"more blocks \(8\) than the large one \(4\)"):
        StitchedViT(large_anchor(), small_anchor())


@pytest.fixture(params=[nano_config, cascade_config], ids=["mask_rcnn", "cascade"])
def detector(request):
    torch.manual_seed(0)
    return instantiate(request.param(num_classes=6))


def test_the_backbone_is_found_inside_a_detector(detector):
    assert find_stitched_vit(torch.nn.Sequential(detector)) is detector.backbone.net
    assert find_stitched_vit(small_anchor()) is None


@pytest.mark.parametrize("name", ["L", "FSF-1-3"])
def test_a_detector_trains_one_step_of_a_stitch(detector, name):
    net = detector.backbone.net
    net.set_stitch(name)
    with EventStorage():
        losses = detector.train()([dict(image=picture(), instances=instances())])
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    assert {"loss_rpn_cls", "loss_mask"} < losses.keys()
    prefix = "backbone.net."
    gradients = {k for k, p in detector.named_parameters() if p.grad is not None}
    assert {k.removeprefix(prefix) for k in gradients if k.startswith(prefix)} == (
        active_parameters(net, name)
    )
    shared = {k for k, _ in detector.named_parameters() if not k.startswith(prefix)}
    assert shared <= gradients
    torch.optim.AdamW(detector.parameters(), lr=1e-3).step()
    assert all(torch.isfinite(p).all() for p in detector.parameters())


@torch.no_grad()
def test_a_detector_infers_and_each_stitch_gives_its_own_features(detector):
    net = detector.eval().backbone.net
    features = []
    for name in ("S", "SFS-1-2"):
        net.set_stitch(name)
        (result,) = detector([dict(image=picture(), height=90, width=110)])
        found = result["instances"]
        assert found.image_size == (90, 110)
        assert found.pred_masks.shape == (len(found), 90, 110)
        image = detector.preprocess_image([dict(image=picture())])
        pyramid = detector.backbone(image.tensor)
        shapes = {name: tuple(value.shape) for name, value in pyramid.items()}
        assert shapes == {f"p{i}": (1, 32, 128 >> i, 128 >> i) for i in range(2, 7)}
        features.append(pyramid["p4"])
    assert not torch.allclose(*features)
