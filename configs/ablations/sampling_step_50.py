"""Resource-constrained sampling with groups of 50 GFLOPs instead of 10 (section 4.2)."""

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

sampler.step = 50.0
train.output_dir = "output/ablations/sampling_step_50"
