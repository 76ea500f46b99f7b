"""SN-Netv2 on COCO, DeiT3-S and DeiT3-B."""

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

model.backbone.net.large = deit3_base
optimizer.params.lr_factor_func.rates.large = 0.7
init.weights.large = base_weights
train.output_dir = "output/mask_rcnn_snnet_deit3_s_b_100ep"
