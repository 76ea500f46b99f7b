"""The least-squares fit on 10 images instead of 100 (section A.1)."""

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

init.num_images = 10
train.output_dir = "output/ablations/fit_10_images"
