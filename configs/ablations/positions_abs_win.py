"""Absolute-win positions, relative ones in global blocks (arXiv 2311.05613, not the paper)."""

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

for _anchor in (model.backbone.net.small, model.backbone.net.large):
    _anchor.abs_pos = "win"
    _anchor.use_rel_pos = "global"
train.output_dir = "output/ablations/positions_abs_win"
