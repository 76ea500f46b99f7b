"""SN-Netv2 on COCO, DeiT3-S and DeiT3-L: the recipe of the paper cut from 100 epochs to 12."""

from .mask_rcnn_snnet_deit3_s_l_100ep import (
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

train.output_dir = "output/mask_rcnn_snnet_deit3_s_l_12ep"
# detectron2's 100 epochs are 184375 iterations at a batch of 64: 184375 * 8 * 12 / 100 at 8.
train.max_iter = 177000
# Every 2 epochs, and every half of one.
train.eval_period = 29500
train.checkpointer.period = 7375

# The usual "1x": drops after epochs 8 and 11 of 12, as in MMDetection's schedule_1x.py.
# detectron2's lr_multiplier_1x has the second one earlier, at 80000/90000, which is 10.7 of 12.
lr_multiplier.scheduler.milestones = [8, 11]
lr_multiplier.scheduler.num_updates = 12
# Over the 16000 images of the 100 epochs: 250 iterations at 64, 2000 at 8.
lr_multiplier.warmup_length = 250 * 8 / 177000
