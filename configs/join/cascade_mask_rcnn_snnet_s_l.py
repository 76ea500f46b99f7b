"""Two Cascade Mask R-CNNs on DeiT3-S and DeiT3-L alone, joined.

Name their checkpoints: init.detectors.small=… init.detectors.large=…
"""

from snnet_vitdet.modeling import anchor_alone, join_configs

from ..COCO.cascade_mask_rcnn_snnet_deit3_s_l_100ep import model
from .mask_rcnn_snnet_s_l import (
    data,
    dataloader,
    init,
    lr_multiplier,
    optimizer,
    sampler,
    sweep,
    train,
)

model = join_configs(
    anchor_alone(model, "small"), anchor_alone(model, "large"), max_cuts=2, kinds=None, lora_rank=16
)

init.detectors = dict(small=None, large=None)
train.output_dir = "output/join/cascade_mask_rcnn_snnet_s_l"
