import re

import pytest
import safetensors.torch
import timm
import torch
from detectron2.config import instantiate
from timm.models.vision_transformer import VisionTransformer
from vits import randomise, small_anchor

from snnet_vitdet.engine import load_config
from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import load_anchor_weights
from snnet_vitdet.modeling.weights import check_weights, read_weights

ALONE = {
    "small": "research/proxy/configs/mask_rcnn_vitdet_proxy_s.py",
    "large": "research/proxy/configs/mask_rcnn_vitdet_proxy_l.py",
}
SUPERNET = "research/proxy/configs/mask_rcnn_snnet_proxy.py"
NAME = "deit3_small_patch16_224.fb_in22k_ft_in1k"


def small_vit(no_embed_class=True, **changes):
    """timm's model of the small anchor: 9 positions, a class token, a norm, a classifier."""
    arguments = dict(img_size=48, embed_dim=24, depth=4, num_heads=2, num_classes=5)
    return VisionTransformer(**arguments | changes, init_values=1e-6, no_embed_class=no_embed_class)


def timm_state(**arguments):
    """Its state dict."""
    return randomise(small_vit(**arguments), seed=7).state_dict()


def in_the_names_of_deit3(state):
    return {re.sub(r"\.ls([12])\.gamma", r".gamma_\1", key): v for key, v in state.items()}


def save(state, path):
    if str(path).endswith(".safetensors"):
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return str(path)


def loaded(source):
    anchor = small_anchor()
    for name, parameter in anchor.named_parameters():
        if "rel_pos" in name:
            torch.nn.init.zeros_(parameter)
    load_anchor_weights(anchor, source)
    return anchor.state_dict()


def assert_loaded(anchor_state, state):
    """Everything of the anchor comes from the file, but the relative positions."""
    for key, value in anchor_state.items():
        if "rel_pos" in key:
            assert not value.any()
        else:
            assert torch.equal(value, state[key]), key


@pytest.mark.parametrize(
    ("file_name", "wrap"),
    [
        ("w.pth", lambda state: state),
        ("w.pt", lambda state: {"model": state}),
        ("w.bin", lambda state: {"state_dict": state, "epoch": 3}),
        ("w.pth", lambda state: {"model": in_the_names_of_deit3(state)}),
        ("w.safetensors", lambda state: state),
        ("w.safetensors", in_the_names_of_deit3),
        ("no_suffix", lambda state: state),
    ],
)
def test_weights_load_from_every_kind_of_file(tmp_path, file_name, wrap):
    state = timm_state()
    assert_loaded(loaded(save(wrap(state), tmp_path / file_name)), state)


def test_the_old_format_of_torch_loads_too(tmp_path):
    state = timm_state()
    torch.save(state, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert_loaded(loaded(str(tmp_path / "w.pth")), state)


def test_the_class_slot_of_the_positions_is_dropped_where_there_is_one(tmp_path):
    with_slot = timm_state(no_embed_class=False)
    assert with_slot["pos_embed"].shape == (1, 10, 24)
    expected = with_slot | {"pos_embed": with_slot["pos_embed"][:, 1:]}
    assert_loaded(loaded(save(with_slot, tmp_path / "with.pth")), expected)
    without = timm_state()
    assert without["pos_embed"].shape == (1, 9, 24)
    assert_loaded(loaded(save(without, tmp_path / "without.pth")), without)


def test_one_position_too_many_without_a_class_token_is_an_error(tmp_path):
    state = timm_state(no_embed_class=False)
    del state["cls_token"]
    with pytest.raises(InputError, match=r"1 misshapen \(pos_embed \(1, 10, 24\) instead of \(1, "):
        loaded(save(state, tmp_path / "w.pth"))


@pytest.mark.parametrize("source", [None, ""])
def test_no_source_leaves_the_anchor_as_it_is(source):
    anchor, untouched = small_anchor(), small_anchor()
    load_anchor_weights(anchor, source)
    state = untouched.state_dict()
    assert all(torch.equal(state[key], value) for key, value in anchor.state_dict().items())


def assert_refused(source, *messages):
    """Loading and checking both say so, and the anchor stays as it was."""
    anchor, state = small_anchor(), small_anchor().state_dict()
    for act in (load_anchor_weights, check_weights):
        with pytest.raises(InputError) as info:
            act(anchor, source)
        for message in messages:
            assert message in str(info.value)
    assert all(torch.equal(state[key], value) for key, value in anchor.state_dict().items())


def test_missing_unexpected_and_misshapen_keys_are_listed(tmp_path):
    state = timm_state()
    del state["blocks.2.attn.proj.weight"], state["pos_embed"]
    state["blocks.9.norm1.bias"] = torch.zeros(24)
    state["blocks.0.mlp.fc1.bias"] = torch.zeros(95)
    path = save(state, tmp_path / "w.pth")
    assert_refused(
        path,
        f"{path}: these are not the weights of the anchor (width 24, depth 4, patch 16): ",
        "2 missing (blocks.2.attn.proj.weight, pos_embed); ",
        "1 unexpected (blocks.9.norm1.bias); ",
        "1 misshapen (blocks.0.mlp.fc1.bias (95,) instead of (96,))",
    )


def test_a_long_list_of_keys_is_cut(tmp_path):
    path = save(timm_state(depth=5), tmp_path / "w.pth")
    assert_refused(path, "14 unexpected (blocks.4.attn.proj.bias, ", ", …)")


def test_weights_of_another_width_are_named_by_their_width(tmp_path):
    path = save(timm_state(embed_dim=32), tmp_path / "w.pth")
    assert_refused(
        path,
        f"{path}: 32 wide, but the anchor is 24 wide; give the weights of the anchor's own model, "
        "or set its embed_dim, depth and num_heads",
    )


def test_weights_of_another_patch_size_are_misshapen(tmp_path):
    path = save(timm_state(patch_size=8, img_size=24), tmp_path / "w.pth")
    assert_refused(
        path, "1 misshapen (patch_embed.proj.weight (24, 3, 8, 8) instead of (24, 3, 16, 16))"
    )


def test_malformed_tensors_are_misshapen_keys(tmp_path):
    state = timm_state()
    state["pos_embed"] = state["patch_embed.proj.weight"] = torch.tensor(1.0)
    path = save(state, tmp_path / "w.pth")
    assert_refused(path, "patch_embed.proj.weight () instead of", "pos_embed () instead of")


@pytest.mark.parametrize("zip_format", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_an_error(tmp_path, zip_format, share):
    path = tmp_path / "w.pth"
    torch.save(timm_state(), path, _use_new_zipfile_serialization=zip_format)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert_refused(str(path), f"weight file {path} cannot be read")


def test_a_truncated_file_of_the_old_format_is_an_error_wherever_it_ends(tmp_path):
    # Its unpickler raises IndexError, struct.error, KeyError and others by where that is.
    path = tmp_path / "w.pth"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match="cannot be read"):
            read_weights(str(path))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_a_truncated_safetensors_file_is_an_error(tmp_path, share):
    path = tmp_path / "w.safetensors"
    save(timm_state(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert_refused(
        str(path), f"weight file {path} cannot be read", "it is truncated or no weight file"
    )


@pytest.mark.parametrize("text", ["hello world", "Not Found", "<html>404</html>"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_text_file_is_an_error(tmp_path, text, suffix):
    path = tmp_path / f"w{suffix}"
    path.write_text(text)
    assert_refused(str(path), f"weight file {path} cannot be read")


def test_a_missing_file_or_a_folder_is_an_error(tmp_path):
    for name in ("gone.pth", "gone.safetensors"):
        path = str(tmp_path / name)
        assert_refused(path, f"weight file {path} does not exist: check the path")
    assert_refused(str(tmp_path), f"{tmp_path} is a folder: give a weight file in it")


@pytest.mark.parametrize("name", ["deit33_small", "no_such_folder/deit3"])
def test_a_name_that_timm_does_not_know_is_an_error(name):
    assert_refused(
        name,
        f"weights '{name}' are neither an existing file, nor bundled (vit_nano_s, vit_nano_l), "
        "nor a model that timm knows; see tools/list_anchors.py",
    )


@pytest.fixture
def published(monkeypatch):
    """timm publishes the small ViT as NAME; what is asked of it is written down."""
    state, asked = timm_state(), []

    def create_model(name, **arguments):
        asked.append((name, arguments))
        model = small_vit()
        model.pretrained_cfg = timm.get_pretrained_cfg(NAME).to_dict()
        if arguments.get("pretrained"):
            model.load_state_dict(state)
        return model

    monkeypatch.setattr(timm, "create_model", create_model)
    return state, asked


def test_a_timm_model_is_asked_for_by_its_name_with_its_weights(published):
    state, asked = published
    assert_loaded(loaded(NAME), state)
    assert asked == [(NAME, {}), (NAME, {"pretrained": True})]


def test_no_network_is_an_error_that_says_what_to_do(published, monkeypatch):
    offline = timm.create_model

    def create_model(name, pretrained=False):
        if pretrained:
            raise ConnectionError("no route to the hub\nsecond line")
        return offline(name)

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(InputError) as info:
        load_anchor_weights(small_anchor(), NAME)
    assert str(info.value) == (
        f"timm could not give the weights '{NAME}' (ConnectionError: no route to the hub): "
        "without network, download them elsewhere and give the file's path with "
        "init.weights.small=<file> (or .large, or .net; docs/method.md says where they are)"
    )


def test_checking_a_name_downloads_nothing(published):
    _, asked = published
    check_weights(small_anchor(), NAME)
    assert asked == [(NAME, {})]


def test_weights_of_another_model_are_refused_before_they_are_downloaded(published):
    _, asked = published
    for act in (check_weights, load_anchor_weights):
        with pytest.raises(
            InputError, match=r"needs an anchor with depth=4 instead of 3, norm_eps"
        ):
            act(small_anchor(depth=3, global_block_indexes=(1,), norm_eps=1e-5), NAME)
    assert asked == [(NAME, {})] * 2


def test_checking_a_file_works_on_the_meta_device_and_loads_nothing(tmp_path):
    path = save(timm_state(), tmp_path / "w.pth")
    anchor, state = small_anchor(), small_anchor().state_dict()
    check_weights(anchor, path)
    assert all(torch.equal(state[key], value) for key, value in anchor.state_dict().items())
    check_weights(anchor.to("meta"), path)
    with pytest.raises(InputError, match="32 wide, but the anchor is 24 wide"):
        check_weights(anchor, save(timm_state(embed_dim=32), tmp_path / "wide.pth"))


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
