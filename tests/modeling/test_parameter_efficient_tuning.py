"""LoRA on frozen anchors: the paper's Figure 12a."""

import torch
from detectron2.config import LazyCall as L

from snnet_vitdet.engine import load_config
from snnet_vitdet.modeling import AnchorViT, StitchedViT, baseline_cost, stitch_costs
from snnet_vitdet.modeling.conversion import convert_timm_state_dict
from snnet_vitdet.stitching import merged

SIZES = dict(img_size=64, embed_dim=32, depth=4, num_heads=2, window_size=2, pretrain_img_size=64)


def anchor(lora_rank=0, **changes):
    torch.manual_seed(0)
    return AnchorViT(**SIZES, layer_scale_init=0.5, lora_rank=lora_rank, **changes).eval()


def is_update(name):
    return name.endswith((".lora_a", ".lora_b"))


def test_only_the_updates_of_attention_and_mlp_are_trained():
    tuned = anchor(lora_rank=3)
    trained = {name for name, p in tuned.named_parameters() if p.requires_grad}
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert trained == {
        f"blocks.{i}.{layer}.lora_{side}" for i in range(4) for layer in layers for side in "ab"
    }


def test_merged_updates_change_the_output_by_rounding_only():
    tuned = anchor(lora_rank=3)
    for name, parameter in tuned.named_parameters():
        if is_update(name):
            torch.nn.init.normal_(parameter, std=0.1)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = tuned(images)["last_feat"]
        with merged(tuned):
            torch.testing.assert_close(tuned(images)["last_feat"], expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(tuned(images)["last_feat"], expected)


def test_pretrained_weights_load_strictly_beside_the_updates():
    plain, tuned = anchor(), anchor(lora_rank=3)
    state = {k: v for k, v in plain.state_dict().items() if "rel_pos" not in k}
    assert convert_timm_state_dict(state, tuned).keys() == state.keys()


def test_a_tuned_anchor_costs_what_the_plain_one_does(root):
    overrides = ["model.roi_heads.num_classes=80", "data.image_size=64"]
    config = load_config(str(root / "configs/shapes/mask_rcnn_snnet_nano.py"), overrides).model
    plain = stitch_costs(config)
    config.backbone.net.small.lora_rank = config.backbone.net.large.lora_rank = 4
    tuned = stitch_costs(config)
    assert list(tuned) == list(plain)
    config.backbone.net = L(AnchorViT)(**SIZES, out_feature="last_feat")
    alone = baseline_cost(config)
    config.backbone.net.lora_rank = 4
    assert baseline_cost(config) == alone


def test_of_a_stitched_backbone_the_updates_and_the_stitching_layers_are_trained():
    stitched = StitchedViT(anchor(lora_rank=3), anchor(lora_rank=3), lora_rank=2)
    trained = {name for name, p in stitched.named_parameters() if p.requires_grad}
    assert trained == {
        name
        for name, _ in stitched.named_parameters()
        if is_update(name) or (name.startswith("stitching_layers.") and name.endswith(".bias"))
    }
