"""SN-Netv2 on COCO, DeiT3-B and DeiT3-L."""

from ..common.models.deit3 import base_weights, deit3_base
from .mask_rcnn_snnet_deit3_s_l_100ep import (
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

model.backbone.net.small = deit3_base
# The paper's rank for B/L.
model.backbone.net.lora_rank = 4
init.weights.small = base_weights
train.output_dir = "output/mask_rcnn_snnet_deit3_b_l_100ep"
