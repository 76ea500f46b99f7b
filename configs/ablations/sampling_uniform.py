"""Every stitch alike instead of resource-constrained sampling, with LoRA as it is."""

from detectron2.config import LazyCall as L

from snnet_vitdet.stitching import UniformSampler

from ..COCO.mask_rcnn_snnet_deit3_s_l_100ep import (
    data,
    dataloader,
    init,
    lr_multiplier,
    model,
    optimizer,
    sweep,
    train,
)

sampler = L(UniformSampler)(seed="${train.seed}")
train.output_dir = "output/ablations/sampling_uniform"
