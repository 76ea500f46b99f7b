"""The two detectors of configs/shapes/mask_rcnn_vitdet_nano_{s,l}.py, joined."""

from snnet_vitdet.modeling import anchor_alone, join_configs

from ..shapes.mask_rcnn_snnet_nano import (
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
    anchor_alone(model, "small"), anchor_alone(model, "large"), max_cuts=2, kinds=None, lora_rank=8
)
# What is pretrained is frozen.
optimizer.params.lr_factor_func.rates = dict(small=1.0, large=1.0)

init.weights = dict(small=None, large=None)
init.detectors = dict(
    small="output/vitdet_nano_s/model_final.pth", large="output/vitdet_nano_l/model_final.pth"
)
# The fit alone; more iterations train the stitching layers.
train.max_iter = 0
train.output_dir = "output/join/nano"
