"""A stitched Mask R-CNN small enough to train from random weights on two CPU cores."""

from detectron2.config import LazyCall as L

from snnet_vitdet.modeling import AnchorViT

from .mask_rcnn_snnet import model

model.backbone.net.small = L(AnchorViT)(
    img_size="${data.image_size}",
    patch_size=16,
    embed_dim=96,
    depth=4,
    num_heads=3,
    drop_path_rate=0.0,
    # Random weights: a LayerScale of 1e-6 is for blocks that are pretrained.
    layer_scale_init=None,
    # 256 pixels are 16 x 16 tokens: four windows without padding.
    window_size=8,
    global_block_indexes=[1, 3],
    use_rel_pos=True,
    pretrain_img_size=256,
    attention="fused",
    out_feature="last_feat",
)
model.backbone.net.large = L(AnchorViT)(
    img_size="${data.image_size}",
    patch_size=16,
    embed_dim=192,
    depth=8,
    num_heads=6,
    drop_path_rate=0.0,
    layer_scale_init=None,
    window_size=8,
    global_block_indexes=[1, 3, 5, 7],
    use_rel_pos=True,
    pretrain_img_size=256,
    attention="fused",
    out_feature="last_feat",
)

model.backbone.out_channels = 64

model.proposal_generator.head.in_channels = 64
model.proposal_generator.head.conv_dims = [-1]
# Images of 256 pixels: half of the sizes for 800 and more.
model.proposal_generator.anchor_generator.sizes = [[16], [32], [64], [128], [256]]
model.proposal_generator.batch_size_per_image = 128
model.proposal_generator.pre_nms_topk = [400, 200]
model.proposal_generator.post_nms_topk = [200, 100]

model.roi_heads.batch_size_per_image = 64
model.roi_heads.box_head.input_shape.channels = 64
model.roi_heads.box_head.conv_dims = [64]
model.roi_heads.box_head.fc_dims = [256]
model.roi_heads.box_predictor.input_shape.channels = 256
model.roi_heads.mask_head.input_shape.channels = 64
model.roi_heads.mask_head.conv_dims = [64, 64]
