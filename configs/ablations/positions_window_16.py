"""Windows of 16 tokens: 64 = 4 x 16, so the grid of 1024 pixels is not padded (not the paper)."""

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

model.backbone.net.small.window_size = model.backbone.net.large.window_size = 16
train.output_dir = "output/ablations/positions_window_16"
