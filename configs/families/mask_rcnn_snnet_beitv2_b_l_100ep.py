"""SN-Netv2 on COCO, BEiTv2 B and L instead of DeiT3's (Figure 12b)."""

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
from ..common.models.families import beitv2_base, beitv2_large, beitv2_weights

# A global block materialises its bias: heads x 4096 x 4096 numbers, 0.5 GB in half precision.
model.backbone.net.small = beitv2_base
model.backbone.net.large = beitv2_large
init.weights = beitv2_weights
train.output_dir = "output/families/mask_rcnn_snnet_beitv2_b_l_100ep"
