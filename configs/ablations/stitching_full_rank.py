"""Stitching layers trained in full instead of by LoRA (Figures 10c, 11 and 17)."""

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

model.backbone.net.lora_rank = 0
train.output_dir = "output/ablations/stitching_full_rank"
