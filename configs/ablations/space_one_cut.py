"""No round trips: the anchors, FS and SF, 24 networks (Figures 13 and 15)."""

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

model.backbone.net.max_cuts = 1
train.output_dir = "output/ablations/space_one_cut"
