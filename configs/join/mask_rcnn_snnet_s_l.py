"""The two detectors of configs/COCO/mask_rcnn_vitdet_deit3_{s,l}_100ep.py, joined."""

from snnet_vitdet.modeling import anchor_alone, join_configs

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

model = join_configs(
    anchor_alone(model, "small"), anchor_alone(model, "large"), max_cuts=2, kinds=None, lora_rank=16
)

# What is pretrained is frozen.
optimizer.params.lr_factor_func.rates = dict(small=1.0, large=1.0)

# Two whole detectors, ViTs included.
init.weights = dict(small=None, large=None)
init.detectors = dict(
    small="output/mask_rcnn_vitdet_deit3_s_100ep/model_final.pth",
    large="output/mask_rcnn_vitdet_deit3_l_100ep/model_final.pth",
)
# The fit alone; more iterations train the stitching layers.
train.max_iter = 0
train.output_dir = "output/join/mask_rcnn_snnet_s_l"
