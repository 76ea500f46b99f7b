"""SN-Netv2 on COCO, DINOv2 B and L instead of DeiT3's."""

from ..COCO.mask_rcnn_snnet_deit3_b_l_100ep import (
    data,
    dataloader,
    init,
    lr_multiplier,
    model,
    optimizer,
    sampler,
    sweep,
    train,
)
from ..common.models.families import dinov2_base, dinov2_large, dinov2_weights

model.backbone.net.small = dinov2_base
model.backbone.net.large = dinov2_large
init.weights = dinov2_weights
train.output_dir = "output/families/mask_rcnn_snnet_dinov2_b_l_100ep"
