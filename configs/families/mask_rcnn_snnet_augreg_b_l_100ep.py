"""SN-Netv2 on COCO, AugReg B and L instead of DeiT3's (Figure 12b)."""

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
from ..common.models.families import augreg_base, augreg_large, augreg_weights

model.backbone.net.small = augreg_base
model.backbone.net.large = augreg_large
init.weights = augreg_weights
train.output_dir = "output/families/mask_rcnn_snnet_augreg_b_l_100ep"
