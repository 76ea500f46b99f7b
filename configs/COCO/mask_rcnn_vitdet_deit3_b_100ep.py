"""The baseline on COCO: ViTDet on DeiT3-B alone."""

from ..common.models.deit3 import base_weights, deit3_base
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

model.backbone.net = deit3_base

init.weights.net = base_weights
train.output_dir = "output/mask_rcnn_vitdet_deit3_b_100ep"
