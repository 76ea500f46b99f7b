"""Anchors out of the checkpoints of detectors that were trained with one of them alone."""

import pytest
import torch
from detectron2.config import instantiate

from snnet_vitdet.engine import load_config
from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import load_anchor_weights
from snnet_vitdet.modeling.timm_weights import check_weights

ALONE = {
    "small": "research/proxy/configs/mask_rcnn_vitdet_proxy_s.py",
    "large": "research/proxy/configs/mask_rcnn_vitdet_proxy_l.py",
}
SUPERNET = "research/proxy/configs/mask_rcnn_snnet_proxy.py"


def build(root, config_file, *overrides, seed=0):
    torch.manual_seed(seed)
    return instantiate(load_config(str(root / config_file), list(overrides)).model)


@pytest.fixture
def checkpoint(root, tmp_path):
    """Saves a model as a training does."""

    def save(model):
        path = tmp_path / "model_final.pth"
        torch.save({"model": model.state_dict(), "iteration": 7}, path)
        return str(path)

    return save


@pytest.mark.parametrize("name", ALONE)
def test_the_anchor_of_a_baseline_is_loaded_whole_and_no_other(name, root, checkpoint):
    alone = build(root, ALONE[name], seed=1)
    # What starts at zero, such as relative positions, would be equal anyway.
    for parameter in alone.parameters():
        torch.nn.init.normal_(parameter)
    path = checkpoint(alone)
    net = build(root, SUPERNET).backbone.net
    anchors = {"small": net.small, "large": net.large}
    other = anchors["large" if name == "small" else "small"]
    before = {key: value.clone() for key, value in other.state_dict().items()}
    check_weights(anchors[name], path)
    load_anchor_weights(anchors[name], path)
    for key, value in alone.backbone.net.state_dict().items():
        assert torch.equal(anchors[name].state_dict()[key], value), key
    for key, value in before.items():
        assert torch.equal(other.state_dict()[key], value), key


def test_a_detector_of_another_anchor_is_refused_with_what_differs(root, checkpoint):
    net = build(root, SUPERNET).backbone.net
    path = checkpoint(build(root, ALONE["large"]))
    for function in (check_weights, load_anchor_weights):
        with pytest.raises(InputError, match=r"model_final.pth is a checkpoint .* differ"):
            function(net.small, path)
    wider = checkpoint(build(root, ALONE["small"], "model.backbone.net.mlp_ratio=2.0"))
    with pytest.raises(InputError, match=r"mlp.fc1.weight \(128, 64\) instead of \(256, 64\)"):
        load_anchor_weights(net.small, wider)


def test_a_supernet_is_no_baseline(root, checkpoint):
    supernet = build(root, SUPERNET)
    with pytest.raises(InputError, match="not of one with this anchor alone"):
        load_anchor_weights(supernet.backbone.net.small, checkpoint(supernet))
