"""SN-Netv2 on COCO, a mixed pair: DINOv2-S and DeiT3-L."""

from ..COCO.mask_rcnn_snnet_deit3_s_l_100ep import (
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
from ..common.models.families import dinov2_small, dinov2_small_weights

model.backbone.net.small = dinov2_small
init.weights.small = dinov2_small_weights
train.output_dir = "output/families/mask_rcnn_snnet_dinov2_s_deit3_l_100ep"
