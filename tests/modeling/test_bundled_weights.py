"""The pretrained ViTs that come with the package."""

import os
import shutil

import pytest
import torch
from detectron2.config import instantiate

from snnet_vitdet.engine import load_config
from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import bundled_weights, load_anchor_weights
from snnet_vitdet.modeling.bundled_weights import BUNDLED, bundled_file
from snnet_vitdet.modeling.weights import check_weights, read_weights

CONFIGS = {name: f"configs/shapes/mask_rcnn_vitdet_nano_{name[-1]}.py" for name in BUNDLED}


def anchor(root, name, *overrides):
    """The ViT of the config that asks for some weights."""
    config = load_config(str(root / CONFIGS[name]), list(overrides))
    assert config.init.weights.net == name
    torch.manual_seed(0)
    return instantiate(config.model.backbone.net)


@pytest.mark.parametrize("name", BUNDLED)
def test_all_weights_of_an_anchor_are_bundled(name, root):
    # Without the size of the pretraining, tables of relative positions are resized.
    vit = anchor(root, name, "data.image_size=128")
    stored = read_weights(name)
    assert {value.dtype for value in stored.values()} == {torch.float16}
    check_weights(vit.to("meta"), name)
    vit = anchor(root, name, "data.image_size=128")
    load_anchor_weights(vit, name)
    assert vit.state_dict().keys() == stored.keys()
    for key, value in vit.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, stored[key].float()), key


def test_both_files_are_small():
    assert sum(os.path.getsize(bundled_file(name)) for name in BUNDLED) <= 5e6


def test_an_image_of_another_size_takes_them_too(root):
    """Tables of relative positions are as long as the training's images need."""
    load_anchor_weights(anchor(root, "vit_nano_s", "data.image_size=384"), "vit_nano_s")


@pytest.mark.parametrize("act", [check_weights, load_anchor_weights])
def test_an_anchor_that_the_shapes_would_not_tell_apart_is_refused(root, act):
    vit = anchor(root, "vit_nano_s", "model.backbone.net.num_heads=4")
    with pytest.raises(InputError, match="vit_nano_s need an anchor with num_heads=2 instead of 4"):
        act(vit, "vit_nano_s")


def test_the_weights_of_the_other_anchor_are_refused(root):
    with pytest.raises(InputError, match="vit_nano_l need an anchor with embed_dim=144 instead of"):
        check_weights(anchor(root, "vit_nano_s"), "vit_nano_l")


def test_a_damaged_or_missing_file_is_an_error(root, tmp_path, monkeypatch):
    shutil.copy(bundled_file("vit_nano_s"), tmp_path)
    monkeypatch.setattr(bundled_weights, "_FOLDER", tmp_path)
    path = tmp_path / "vit_nano_s.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="are damaged: install again"):
        check_weights(anchor(root, "vit_nano_s"), "vit_nano_s")
    with pytest.raises(InputError, match="cannot be read .*: install again"):
        read_weights("vit_nano_l")
