"""Any COCO-format data: ViTDet on DeiT3-S alone, one of two detectors to join."""

from ..common.models.deit3 import deit3_small, small_weights
from .mask_rcnn_snnet_deit3_s_l_coco_json import (
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

model.backbone.net = deit3_small
optimizer.params.lr_factor_func.depths = dict(net="${model.backbone.net.depth}")
optimizer.params.lr_factor_func.rates = dict(net=0.7)
init.weights = dict(net=small_weights)
# Every parameter is trained in every iteration.
train.ddp.find_unused_parameters = False
train.output_dir = "output/custom_vitdet_deit3_s"
