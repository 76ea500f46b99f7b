"""Two trained detectors into a joined one, from every kind of file they come in."""

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from detectron2.config import LazyCall, instantiate
from detectron2.modeling import ViT
from torch import nn

from snnet_vitdet.deploy import export_stitch
from snnet_vitdet.engine import load_detectors
from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import anchor_alone, join_configs
from snnet_vitdet.stitching import LARGE, SMALL

NAMES = ["circle", "triangle", "square", "star", "cross", "ring"]
EXITS = {"small": SMALL, "large": LARGE}


@pytest.fixture
def configs(tiny_config):
    """Of the two detectors, in the config of a run."""
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


def test_detectron2_s_own_vitdet_is_taken(two, joined, tmp_path):
    """As its model zoo has them: arrays in a pickle, positions with the class token's place."""
    sources = {}
    for name, detector in two.items():
        state = {key: value.numpy() for key, value in detector.state_dict().items()}
        positions = state["backbone.net.pos_embed"]
        state["backbone.net.pos_embed"] = np.concatenate(
            [np.full_like(positions[:, :1], 7), positions], axis=1
        )
        sources[name] = str(tmp_path / f"{name}.pkl")
        with open(sources[name], "wb") as file:
            pickle.dump({"model": state, "__author__": "detectron2"}, file)
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


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        (lambda s: s.pop("small"), "init.detectors.small is not set: give the checkpoint"),
        (lambda s: s.update(large="nix.pth"), r"init\.detectors\.large=nix\.pth: .*not exist"),
        (lambda s: s.update(small=s["large"]), r"init\.detectors\.small=.*not one of this model"),
        (lambda s: s.update(large=s["other"]), r"init\.detectors\.large=.*trained for the classes"),
    ],
)
def test_what_does_not_fit_is_refused(change, refused, two, joined, tmp_path):
    sources = {name: saved(detector, tmp_path / f"{name}.pth") for name, detector in two.items()}
    sources["other"] = saved(two["large"], tmp_path / "other.pth", NAMES[::-1])
    change(sources)
    with pytest.raises(InputError, match=refused):
        load_detectors(joined, sources, NAMES)
