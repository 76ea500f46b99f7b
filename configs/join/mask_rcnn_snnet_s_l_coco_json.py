"""Any COCO-format data: configs/custom/mask_rcnn_vitdet_deit3_{s,l}_coco_json.py, joined."""

from snnet_vitdet.modeling import anchor_alone, join_configs

from ..custom.mask_rcnn_snnet_deit3_s_l_coco_json import (
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
    small="output/custom_vitdet_deit3_s/model_final.pth",
    large="output/custom_vitdet_deit3_l/model_final.pth",
)
# The fit alone; more iterations train the stitching layers.
train.max_iter = 0
train.output_dir = "output/join/custom_s_l"
