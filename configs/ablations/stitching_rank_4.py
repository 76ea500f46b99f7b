"""Rank 4 of the stitching layers' updates instead of 16 (Figure 17)."""

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

model.backbone.net.lora_rank = 4
train.output_dir = "output/ablations/stitching_rank_4"
