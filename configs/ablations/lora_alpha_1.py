"""The scale of the stitching layers' updates in the authors' code: alpha 1, a factor of 1/16."""

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

model.backbone.net.lora_alpha = 1.0
train.output_dir = "output/ablations/lora_alpha_1"
