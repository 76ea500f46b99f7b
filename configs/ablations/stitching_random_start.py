"""Stitching layers that start from random weights instead of the least-squares fit."""

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

init.stitching_layers = "random"
train.output_dir = "output/ablations/stitching_random_start"
