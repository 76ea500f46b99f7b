"""SN-Netv2 on COCO, CLIP (OpenAI's) B and L instead of DeiT3's."""

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
from ..common.models.families import clip_base, clip_large, clip_weights

model.backbone.net.small = clip_base
model.backbone.net.large = clip_large
init.weights = clip_weights
train.output_dir = "output/families/mask_rcnn_snnet_clip_b_l_100ep"
