"""DeiT3 as anchors: timm's deit3_{small,base,large}_patch16_224 and deit3_huge_patch14_224.

Stochastic depth: base, large and huge as ViTDet trains them; it has no small, which takes base's.
"""

from detectron2.config import LazyCall as L

from snnet_vitdet.modeling import AnchorViT

# Of all. Keys with an underscore stay in this file.
_shared = dict(
    img_size="${data.image_size}",
    patch_size=16,
    layer_scale_init=1e-6,
    window_size=14,
    use_rel_pos=True,
    pretrain_img_size=224,
    attention="fused",
    out_feature="last_feat",
)

deit3_small = L(AnchorViT)(
    embed_dim=384,
    depth=12,
    num_heads=6,
    drop_path_rate=0.1,
    global_block_indexes=[2, 5, 8, 11],
    **_shared,
)

deit3_base = L(AnchorViT)(
    embed_dim=768,
    depth=12,
    num_heads=12,
    drop_path_rate=0.1,
    global_block_indexes=[2, 5, 8, 11],
    **_shared,
)

deit3_large = L(AnchorViT)(
    embed_dim=1024,
    depth=24,
    num_heads=16,
    drop_path_rate=0.4,
    global_block_indexes=[5, 11, 17, 23],
    **_shared,
)

deit3_huge = L(AnchorViT)(
    embed_dim=1280,
    depth=32,
    num_heads=16,
    drop_path_rate=0.5,
    global_block_indexes=[7, 15, 23, 31],
    # Resampled to patches of 16 pixels, which every other anchor has.
    pretrain_patch_size=14,
    **_shared,
)

small_weights = "deit3_small_patch16_224.fb_in22k_ft_in1k"
base_weights = "deit3_base_patch16_224.fb_in22k_ft_in1k"
large_weights = "deit3_large_patch16_224.fb_in22k_ft_in1k"
huge_weights = "deit3_huge_patch14_224.fb_in22k_ft_in1k"
