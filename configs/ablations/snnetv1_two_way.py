"""Two-way stitching alone: SN-Netv1's sampling and stitching layers (Figures 10a, 10b)."""

from .sampling_uniform import (
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

model.backbone.net.lora_rank = 0
train.output_dir = "output/ablations/snnetv1_two_way"
