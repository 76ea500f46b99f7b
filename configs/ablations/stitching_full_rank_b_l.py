"""Stitching layers trained in full instead of by LoRA, DeiT3-B and L (Figure 11)."""

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

model.backbone.net.lora_rank = 0
train.output_dir = "output/ablations/stitching_full_rank_b_l"
