"""SN-Netv1's space, the anchors and fast-to-slow stitches: 13 networks, with ROS and LoRA."""

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
model.backbone.net.kinds = ["S", "L", "FS"]
train.output_dir = "output/ablations/space_snnetv1"
