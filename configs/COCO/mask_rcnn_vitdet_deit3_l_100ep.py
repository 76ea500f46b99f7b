"""The baseline on COCO: ViTDet on DeiT3-L alone."""

from ..common.models.deit3 import deit3_large, large_weights
from .mask_rcnn_vitdet_deit3_s_100ep import (
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

model.backbone.net = deit3_large
optimizer.params.lr_factor_func.rates.net = 0.8
init.weights.net = large_weights
train.output_dir = "output/mask_rcnn_vitdet_deit3_l_100ep"
