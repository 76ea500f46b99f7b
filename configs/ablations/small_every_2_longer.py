"""S alone in every second iteration, 1.4 times as long, at the paper's cost (docs/accuracy.md)."""

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

train.ends.period = 2
train.ends.stitches = "S"
# An iteration is 0.71 times as dear. The learning rate's milestones are shares of the length.
train.max_iter = 2065000
train.output_dir = "output/ablations/small_every_2_longer"
