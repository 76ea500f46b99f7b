"""A stitched Mask R-CNN small enough to train on two CPU cores."""

from detectron2.config import LazyCall as L

from snnet_vitdet.modeling import AnchorViT

from .mask_rcnn_snnet import model

model.backbone.net.small = L(AnchorViT)(
    img_size="${data.image_size}",
    patch_size=16,
    embed_dim=32,
    depth=4,
    num_heads=2,
    drop_path_rate=0.0,
    layer_scale_init=None,
    # 256 pixels are 16 x 16 tokens: four windows without padding.
    window_size=8,
    global_block_indexes=[1, 3],
    use_rel_pos=True,
    # The bundled weights are of 128 pixels; the demo has 256.
    pretrain_img_size=128,
    attention="fused",
    out_feature="last_feat",
)
model.backbone.net.large = L(AnchorViT)(
    img_size="${data.image_size}",
    patch_size=16,
    embed_dim=144,
    depth=8,
    num_heads=4,
    drop_path_rate=0.0,
    layer_scale_init=None,
    window_size=8,
    global_block_indexes=[1, 3, 5, 7],
    use_rel_pos=True,
    # The bundled weights are of 128 pixels; the demo has 256.
    pretrain_img_size=128,
    attention="fused",
    out_feature="last_feat",
)

# Light heads; otherwise they would take most of the time.
model.backbone.out_channels = 32

model.proposal_generator.head.in_channels = 32
model.proposal_generator.head.conv_dims = [-1]
# Images of 256 pixels: half of the sizes for 800 and more.
model.proposal_generator.anchor_generator.sizes = [[16], [32], [64], [128], [256]]
model.proposal_generator.batch_size_per_image = 64
model.proposal_generator.pre_nms_topk = [400, 200]
model.proposal_generator.post_nms_topk = [200, 100]

model.roi_heads.batch_size_per_image = 32
model.roi_heads.box_head.input_shape.channels = 32
model.roi_heads.box_head.conv_dims = [32]
model.roi_heads.box_head.fc_dims = [128]
model.roi_heads.box_predictor.input_shape.channels = 128
model.roi_heads.mask_head.input_shape.channels = 32
model.roi_heads.mask_head.conv_dims = [32, 32]
