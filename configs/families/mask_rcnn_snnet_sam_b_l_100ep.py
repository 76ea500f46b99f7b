"""SN-Netv2 on COCO, SAM B and L instead of DeiT3's (Figure 12b)."""

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
from ..common.models.families import sam_base, sam_large, sam_weights

model.backbone.net.small = sam_base
model.backbone.net.large = sam_large
init.weights = sam_weights
train.output_dir = "output/families/mask_rcnn_snnet_sam_b_l_100ep"
