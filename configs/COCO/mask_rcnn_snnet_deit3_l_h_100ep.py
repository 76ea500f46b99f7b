"""SN-Netv2 on COCO, DeiT3-L and DeiT3-H: 24 stages, and 32 blocks that they do not divide."""

from ..common.models.deit3 import deit3_huge, deit3_large, huge_weights, large_weights
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

model.backbone.net.small = deit3_large
model.backbone.net.large = deit3_huge
# ViTDet's for L and H.
optimizer.params.lr_factor_func.rates = dict(small=0.8, large=0.9)
init.weights = dict(small=large_weights, large=huge_weights)
train.output_dir = "output/mask_rcnn_snnet_deit3_l_h_100ep"
