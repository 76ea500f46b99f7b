"""SN-Netv1 as a whole: its space, uniform sampling, full stitching layers (Figures 4, 10a, 16)."""

from detectron2.config import LazyCall as L

from snnet_vitdet.stitching import UniformSampler

from .space_snnetv1 import (
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
model.backbone.net.lora_rank = 0
train.output_dir = "output/ablations/snnetv1"
