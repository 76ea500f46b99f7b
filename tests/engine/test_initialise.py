"""The start of a training: weights, fitted stitching layers, joined detectors."""

import copy
import logging
import pickle
from functools import partial

import pytest
import torch
from detectron2.config import LazyCall, instantiate
from detectron2.modeling import ViT
from detectron2.utils import comm
from torch import nn

from snnet_vitdet.deploy import export_stitch
from snnet_vitdet.engine import fit_stitching_layers, launch_here, load_anchors, load_detectors
from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import anchor_alone, join_configs
from snnet_vitdet.stitching import LARGE, SMALL, TokenMoments

OVERRIDES = (
    # Tokens that a fit in training mode would not see.
    "model.backbone.net.small.drop_path_rate=0.5",
    "model.backbone.net.large.drop_path_rate=0.5",
    "model.roi_heads.num_classes=2",
)


def make_model(tiny_config, *overrides):
    torch.manual_seed(0)
    return instantiate(tiny_config(*OVERRIDES, *overrides).model)


def make_samples(count, seed=0, size=64):
    """Noise, whose tokens are well-conditioned: 16 an image."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    return [{"image": image, "height": size, "width": size} for image in images]


def tokens_before_cuts(model, samples):
    """Tokens (n, width) of both anchors by cut, from hooks on their blocks; in float64."""
    net = model.backbone.net
    caught = {}
    hooks = [
        block.register_forward_hook(
            lambda _module, _inputs, output, key=(name, index): caught.setdefault(key, []).append(
                output.flatten(0, 2).double()
            )
        )
        for name, anchor in (("S", net.small), ("L", net.large))
        for index, block in enumerate(anchor.blocks)
    ]
    training = model.training
    model.eval()
    with torch.no_grad():
        for sample in samples:
            images = model.preprocess_image([sample]).tensor
            for name in ("S", "L"):
                with net.using_stitch(name):
                    net(images)
    model.train(training)
    for hook in hooks:
        hook.remove()
    # Two large blocks to each of the four small ones.
    return {
        cut: (torch.cat(caught["S", cut - 1]), torch.cat(caught["L", 2 * cut - 1]))
        for cut in (1, 2, 3, 4)
    }


def with_ones(x):
    return torch.cat([x, x.new_ones(len(x), 1)], dim=1)


def by_direction(tokens, transition):
    """Source and target tokens of a stitching layer."""
    small, large = tokens[transition.cut]
    return (small, large) if transition.source == SMALL else (large, small)


@pytest.fixture(scope="module")
def samples():
    return make_samples(6)


@pytest.fixture(scope="module")
def fitted(tiny_config, samples):
    model = make_model(tiny_config).train()
    for _, layer in model.backbone.net.stitching_layers.items():
        # As left by an earlier training: the fit has to reset it.
        torch.nn.init.ones_(layer.lora_a)
    residuals = fit_stitching_layers(model, samples, make_samples(2, seed=1))
    return model, residuals


def test_every_layer_equals_an_independent_least_squares_solution(fitted, samples):
    model, _ = fitted
    tokens = tokens_before_cuts(model, samples)
    layers = dict(model.backbone.net.stitching_layers.items())
    assert len(layers) == 3 + 3 + 1
    for transition, layer in layers.items():
        source, target = by_direction(tokens, transition)
        solution = torch.linalg.lstsq(with_ones(source), target).solution
        # Float32 parameters of a problem of condition < 1e3, solved in float64.
        tolerance = {"rtol": 1e-3, "atol": 1e-4}
        torch.testing.assert_close(layer.weight.double(), solution[:-1].T, **tolerance)
        torch.testing.assert_close(layer.bias.double(), solution[-1], **tolerance)


def test_reported_residuals_are_the_share_of_held_out_variance_left_by_layer(fitted, samples):
    model, residuals = fitted
    seen = tokens_before_cuts(model, samples)
    unseen = tokens_before_cuts(model, make_samples(2, seed=1))
    names = {f"cut {cut} small to large" for cut in (1, 2, 3, 4)}
    names |= {f"cut {cut} large to small" for cut in (1, 2, 3)}
    assert residuals.keys() == names
    for transition, layer in model.backbone.net.stitching_layers.items():
        _, fitted_target = by_direction(seen, transition)
        source, target = by_direction(unseen, transition)
        with torch.no_grad():
            left = (layer(source.float()).double() - target).square().sum()
        share = left / (target - fitted_target.mean(0)).square().sum()
        direction = "small to large" if transition.source == SMALL else "large to small"
        found = residuals[f"cut {transition.cut} {direction}"]
        assert found.exact == pytest.approx(share.item(), rel=1e-3, abs=1e-6)
        assert found.as_run == pytest.approx(share.item(), rel=1e-5, abs=1e-6)


def test_layers_are_fitted_and_judged_in_the_precision_that_runs_them(tiny_config, samples, caplog):
    model = make_model(tiny_config)
    with caplog.at_level(logging.INFO, "snnet_vitdet"):
        residuals = fit_stitching_layers(model, samples, samples[:2], torch.bfloat16)
    assert "as run in bfloat16: cut 1 small to large" in caplog.text
    net = model.eval().backbone.net
    images = [model.preprocess_image([sample]).tensor for sample in samples[:2]]
    errors, total = 0.0, 0.0
    mean = torch.cat([large for small, large in [tokens_before_cuts(model, samples)[1]]]).mean(0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for image in images:
            _, small, large = next(iter(net.stage_tokens(image)))
            guess = net.stitching_layers.small_to_large["1"](small)
            assert guess.dtype == torch.bfloat16
            errors += (guess.double() - large.double()).square().sum()
            total += (large.double() - mean).square().sum()
    found = residuals["cut 1 small to large"]
    # The mean is that of tokens in bfloat16 there.
    assert found.as_run == pytest.approx((errors / total).item(), rel=0.01)


@pytest.mark.parametrize(
    ("height", "width", "tokens"), [(64, 64, 16), (47, 64, 2 * 4), (64, 20, 4 * 1), (9, 9, 1)]
)
def test_tokens_of_the_padding_have_no_part_in_the_fit(
    height, width, tokens, tiny_config, monkeypatch
):
    """Whole patches of 16 pixels of the image count, and at least one, of a canvas of 64."""
    sample = make_samples(1)[0]
    sample["image"] = sample["image"][:, :height, :width]
    seen, update = [], TokenMoments.update

    def spy(moments, *pair):
        seen.extend(pair)
        update(moments, *pair)

    monkeypatch.setattr(TokenMoments, "update", spy)
    fit_stitching_layers(make_model(tiny_config), [sample], [sample])
    assert {pair.shape[:-1].numel() for pair in seen} == {tokens}


def test_a_layer_that_is_worse_than_the_mean_is_named_in_a_warning(tiny_config, caplog):
    model = make_model(tiny_config)
    # Held out is what the fit has never seen the like of.
    other = make_samples(1, seed=3)
    other[0]["image"] = 255 - other[0]["image"] // 64
    with caplog.at_level(logging.WARNING, "snnet_vitdet"):
        residuals = fit_stitching_layers(model, make_samples(1, size=32), other)
    bad = {name for name, residual in residuals.items() if residual.as_run > 1}
    assert bad
    (warning,) = (r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)
    assert {name for name in residuals if f"{name} " in warning} == bad


def test_fit_restores_the_mode_and_touches_the_stitching_layers_alone(tiny_config, samples):
    model = make_model(tiny_config).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stitch = model.backbone.net.set_stitch("SFS-1-2")
    fit_stitching_layers(model, samples[:1], samples[:1])
    assert all(module.training for module in model.modules())
    assert model.backbone.net.stitch == stitch
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed
    assert all(name.startswith("backbone.net.stitching_layers.") for name in changed)

    model.eval()
    fit_stitching_layers(model, samples[:1], samples[:1])
    assert not any(module.training for module in model.modules())


def test_full_matrix_is_fitted_too_and_stays_trainable(tiny_config, samples):
    model = make_model(tiny_config, "model.backbone.net.lora_rank=0")
    fit_stitching_layers(model, samples[:3], samples[:1])
    tokens = tokens_before_cuts(model, samples[:3])
    for transition, layer in model.backbone.net.stitching_layers.items():
        source, target = by_direction(tokens, transition)
        assert layer.weight.requires_grad
        with torch.no_grad():
            residual = layer(source.float()).double() - target
        # Normal equations of a least-squares solution: the residual is orthogonal to the tokens.
        scale = source.abs().mean() * target.abs().mean()
        assert (with_ones(source).T @ residual).abs().max() / len(source) < 1e-3 * scale


def test_fit_without_any_image_is_an_error(tiny_config):
    with pytest.raises(InputError, match="there is no training image"):
        fit_stitching_layers(make_model(tiny_config), [], [])


def fit_in_a_process(model, folder):
    torch.set_num_threads(1)
    residuals = fit_stitching_layers(
        model, *(make_samples(count)[comm.get_rank() :: 2] for count in (6, 2))
    )
    state = {**model.backbone.net.stitching_layers.state_dict(), "residuals": residuals}
    torch.save(state, f"{folder}/{comm.get_rank()}.pth")


@pytest.mark.slow
def test_two_processes_with_half_the_images_each_get_the_layers_of_one(
    tiny_config, fitted, tmp_path, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    args = (make_model(tiny_config), str(tmp_path))
    launch_here(fit_in_a_process, 2, *args)
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=False) for rank in (0, 1))
    expected = fitted[0].backbone.net.stitching_layers.state_dict()
    assert first.pop("residuals") == second.pop("residuals")
    assert first.keys() == second.keys() == expected.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        # Sums in another order.
        if not name.endswith("lora_b"):
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def timm_state(anchor, seed):
    """Weights of an anchor as timm would publish them: other values, without relative positions."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=generator)
        for name, value in anchor.state_dict().items()
        if "rel_pos" not in name
    }


@pytest.mark.parametrize(("named", "other"), [("small", "large"), ("large", "small")])
def test_weights_go_to_the_anchor_that_is_named_and_to_no_other(
    named, other, tiny_config, tmp_path, caplog
):
    model, untouched = make_model(tiny_config), make_model(tiny_config)
    state = timm_state(getattr(model.backbone.net, named), seed=5)
    torch.save(state, tmp_path / "weights.pth")
    with caplog.at_level(logging.INFO, "snnet_vitdet"):
        load_anchors(model, {named: str(tmp_path / "weights.pth"), other: None})
    loaded = getattr(model.backbone.net, named).state_dict()
    for name, value in state.items():
        assert torch.equal(loaded[name], value), name
    prefix = f"backbone.net.{named}."
    for name, value in untouched.state_dict().items():
        if not name.startswith(prefix) or "rel_pos" in name:
            assert torch.equal(model.state_dict()[name], value), name
    assert f"'{other}' starts from random weights" in caplog.text


def test_baseline_loads_its_one_anchor(tiny_config, tmp_path):
    config = anchor_alone(tiny_config(*OVERRIDES).model, "small")
    model = instantiate(config)
    state = timm_state(model.backbone.net, seed=6)
    torch.save(state, tmp_path / "weights.pth")
    load_anchors(model, {"net": str(tmp_path / "weights.pth")})
    assert torch.equal(model.backbone.net.state_dict()["pos_embed"], state["pos_embed"])


def test_weights_of_an_anchor_the_model_lacks_are_refused_with_those_it_has(tiny_config):
    with pytest.raises(
        InputError, match=r"names \['net'\], but the model has \['small', 'large'\]"
    ):
        load_anchors(make_model(tiny_config), {"net": "some.pth"})


# -------------------------------------------------------------------------------- joined detectors


NAMES = ["circle", "triangle", "square", "star", "cross", "ring"]
EXITS = {"small": SMALL, "large": LARGE}


@pytest.fixture
def configs(tiny_config):
    """The configs of the two detectors, by ViT."""
    config = tiny_config()
    return {name: anchor_alone(config.model, name) for name in EXITS}


@pytest.fixture
def two(configs):
    torch.manual_seed(0)
    return {name: instantiate(config) for name, config in configs.items()}


@pytest.fixture
def joined(configs):
    torch.manual_seed(1)
    return instantiate(join_configs(configs["small"], configs["large"], lora_rank=4))


def saved(detector, path, names=NAMES):
    torch.save({"model": detector.state_dict(), "classes": {"thing_classes": names}}, path)
    return str(path)


def assert_loaded(joined, two):
    for name, detector in two.items():
        expected = detector.state_dict()
        found = joined.detector(EXITS[name]).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_checkpoints_of_trainings_are_taken_whole(two, joined, tmp_path):
    sources = {name: saved(detector, tmp_path / f"{name}.pth") for name, detector in two.items()}
    load_detectors(joined, sources, NAMES)
    assert_loaded(joined, two)


def of_the_model_zoo(config):
    """The config of the same detector on detectron2's own ViT, as projects/ViTDet builds it."""
    config, ours = copy.deepcopy(config), config.backbone.net
    config.backbone.net = LazyCall(ViT)(
        **{key: ours[key] for key in ("img_size", "patch_size", "embed_dim", "depth", "num_heads")},
        **{key: ours[key] for key in ("window_size", "use_rel_pos", "pretrain_img_size")},
        drop_path_rate=0.1,
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        window_block_indexes=[i for i in range(ours.depth) if i not in ours.global_block_indexes],
        residual_block_indexes=[],
        out_feature="last_feat",
    )
    config.roi_heads.box_predictor.test_score_thresh = 0.0
    return config


def test_detectron2_s_own_vitdet_detects_the_same_when_it_is_joined(tiny_config, tmp_path):
    """To the rounding of another order of sums: our attention is fused, its is written out."""
    # Positions of another grid than that of the images, as MAE's of 224 pixels are.
    nets = [f"model.backbone.net.{size}.pretrain_img_size=48" for size in EXITS]
    low = "model.roi_heads.box_predictor.test_score_thresh=0.0"
    config = tiny_config(*nets, low)
    alone = {name: anchor_alone(config.model, name) for name in EXITS}
    torch.manual_seed(0)
    theirs = {name: instantiate(of_the_model_zoo(alone[name])).eval() for name in EXITS}
    sources = {}
    for name, detector in theirs.items():
        for parameter in detector.parameters():
            # Not those that start at zero, such as relative positions and biases.
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1)
        state = {key: value.numpy() for key, value in detector.state_dict().items()}
        sources[name] = str(tmp_path / f"{name}.pkl")
        with open(sources[name], "wb") as file:
            pickle.dump({"model": state, "__author__": "detectron2"}, file)
    joined = instantiate(join_configs(alone["small"], alone["large"], lora_rank=4)).eval()
    load_detectors(joined, sources, NAMES)
    given = [{"image": 255 * torch.rand(3, 64, 64), "height": 64, "width": 64}]
    for name, exit_anchor in EXITS.items():
        joined.backbone.net.set_stitch("SL"[exit_anchor])
        with torch.no_grad():
            pixels = joined.preprocess_image(given).tensor
            found, expected = (m.backbone(pixels) for m in (joined, theirs[name]))
            for level, features in expected.items():
                torch.testing.assert_close(found[level], features, rtol=1e-4, atol=1e-4)
            found, expected = (m(given)[0]["instances"] for m in (joined, theirs[name]))
        assert len(found) == len(expected) > 0
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=1e-4, atol=1e-2
        )
        assert torch.equal(found.pred_classes, expected.pred_classes)


def test_the_moving_average_of_a_training_is_what_is_joined(two, joined, tmp_path):
    sources = {name: saved(detector, tmp_path / f"{name}.pth") for name, detector in two.items()}
    checkpoint = torch.load(sources["small"])
    average = {key: value + 1 for key, value in checkpoint["model"].items()}
    checkpoint["ema"] = {"weights": average, "num_steps": 3}
    torch.save(checkpoint, sources["small"])
    load_detectors(joined, sources, NAMES)
    found = joined.detector(SMALL).state_dict()
    assert found.keys() == average.keys()
    assert all(torch.equal(found[key], average[key]) for key in average)


def test_exported_files_are_taken(two, joined, tiny_config, tmp_path):
    sources = {}
    for name, detector in two.items():
        config = tiny_config(f"train.output_dir={tmp_path}")
        config.model = anchor_alone(config.model, name)
        sources[name] = str(tmp_path / f"{name}.safetensors")
        export_stitch(sources[name], detector.eval(), config, None, NAMES)
    load_detectors(joined, sources, NAMES)
    assert_loaded(joined, two)
    with pytest.raises(InputError, match="trained for the classes"):
        load_detectors(joined, sources, NAMES[::-1])
