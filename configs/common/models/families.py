"""Other pretrained ViTs as anchors: what their weights ask for, and ViTDet's windows.

tools/list_anchors.py prints the same of any plain ViT that timm has. Stochastic depth as ViTDet's.
"""

from detectron2.config import LazyCall as L

from snnet_vitdet.modeling import AnchorViT

# Keys with an underscore stay in this file.
_shared = dict(
    img_size="${data.image_size}",
    patch_size=16,
    window_size=14,
    attention="fused",
    out_feature="last_feat",
)
_small = dict(
    embed_dim=384,
    depth=12,
    num_heads=6,
    drop_path_rate=0.1,
    global_block_indexes=[2, 5, 8, 11],
    **_shared,
)
_base = dict(
    embed_dim=768,
    depth=12,
    num_heads=12,
    drop_path_rate=0.1,
    global_block_indexes=[2, 5, 8, 11],
    **_shared,
)
_large = dict(
    embed_dim=1024,
    depth=24,
    num_heads=16,
    drop_path_rate=0.4,
    global_block_indexes=[5, 11, 17, 23],
    **_shared,
)

_mae = dict(layer_scale_init=None, use_rel_pos=True, pretrain_img_size=224)
mae_base = L(AnchorViT)(**_base, **_mae)
mae_large = L(AnchorViT)(**_large, **_mae)
mae_weights = dict(small="vit_base_patch16_224.mae", large="vit_large_patch16_224.mae")

_augreg = dict(
    layer_scale_init=None,
    use_rel_pos=True,
    pretrain_img_size=224,
    pretrain_pixel_mean=[127.5, 127.5, 127.5],
    pretrain_pixel_std=[127.5, 127.5, 127.5],
)
augreg_base = L(AnchorViT)(**_base, **_augreg)
augreg_large = L(AnchorViT)(**_large, **_augreg)
augreg_weights = dict(
    small="vit_base_patch16_224.augreg_in21k_ft_in1k",
    large="vit_large_patch16_224.augreg_in21k_ft_in1k",
)

# Pretrained with ViTDet's windows, relative positions and image size. timm's norms have eps 1e-5.
_sam = dict(layer_scale_init=None, norm_eps=1e-5, use_rel_pos=True, pretrain_img_size=1024)
sam_base = L(AnchorViT)(**_base, **_sam)
sam_large = L(AnchorViT)(**_large, **_sam)
sam_weights = dict(small="samvit_base_patch16.sa1b", large="samvit_large_patch16.sa1b")

# No absolute positions; a table of relative ones for 14 x 14 tokens, ViTDet's very window.
_beitv2 = dict(
    layer_scale_init=1e-6,
    abs_pos=None,
    use_rel_pos=True,
    rel_pos_table=True,
    pretrain_img_size=224,
)
beitv2_base = L(AnchorViT)(**_base, **_beitv2)
beitv2_large = L(AnchorViT)(**_large, **_beitv2)
beitv2_weights = dict(
    small="beitv2_base_patch16_224.in1k_ft_in22k_in1k",
    large="beitv2_large_patch16_224.in1k_ft_in22k_in1k",
)

# Patches of 14 pixels are resampled to 16 when they are loaded.
_dinov2 = dict(
    layer_scale_init=1e-6, use_rel_pos=True, pretrain_img_size=518, pretrain_patch_size=14
)
dinov2_small = L(AnchorViT)(**_small, **_dinov2)
dinov2_base = L(AnchorViT)(**_base, **_dinov2)
dinov2_large = L(AnchorViT)(**_large, **_dinov2)
dinov2_small_weights = "vit_small_patch14_dinov2.lvd142m"
dinov2_weights = dict(
    small="vit_base_patch14_dinov2.lvd142m", large="vit_large_patch14_dinov2.lvd142m"
)

_clip = dict(
    layer_scale_init=None,
    norm_eps=1e-5,
    act_layer="quick_gelu",
    pre_norm=True,
    use_rel_pos=True,
    pretrain_img_size=224,
    pretrain_pixel_mean=[122.770938, 116.746013, 104.093736],
    pretrain_pixel_std=[68.500533, 66.632158, 70.323163],
)
clip_base = L(AnchorViT)(**_base, **_clip)
clip_large = L(AnchorViT)(**_large, **_clip, pretrain_patch_size=14)
clip_weights = dict(
    small="vit_base_patch16_clip_quickgelu_224.openai",
    large="vit_large_patch14_clip_quickgelu_224.openai",
)
