"""Parameter-efficient tuning: LoRA of rank 4 on frozen anchors, DeiT3-B and L (Figure 12a)."""

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

model.backbone.net.small.lora_rank = model.backbone.net.large.lora_rank = 4
# Frozen at zero they would cost and do nothing.
model.backbone.net.small.use_rel_pos = model.backbone.net.large.use_rel_pos = False
train.output_dir = "output/ablations/tuning_lora_4_b_l"
