"""The 12 epochs on one GPU: the batch of 8 as 8 micro-batches of one image and one stitch each.

Computes what 8 GPUs do with train.stitch_scope=process, one after the other. A larger GPU takes
more images at once with train.accumulation.steps=4, 2 or 1 (2, 4 or 8 images), which is faster but
trains fewer stitches an iteration. The batch, and with it the schedule, stays the same.
"""

from .mask_rcnn_snnet_deit3_s_l_12ep import (
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

train.output_dir = "output/mask_rcnn_snnet_deit3_s_l_12ep_1gpu"
train.accumulation.steps = 8
# An iteration takes about as long as 8 do on 8 GPUs: a checkpoint every tenth of an epoch.
train.checkpointer.period = 1475
