"""SN-Netv2 on COCO, MAE B and L instead of DeiT3's (Figure 12b)."""

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
from ..common.models.families import mae_base, mae_large, mae_weights

model.backbone.net.small = mae_base
model.backbone.net.large = mae_large
init.weights = mae_weights
train.output_dir = "output/families/mask_rcnn_snnet_mae_b_l_100ep"
