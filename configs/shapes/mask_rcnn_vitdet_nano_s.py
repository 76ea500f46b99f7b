"""The small ViT of the nano model alone, on the same scenes; one of two detectors to join."""

from .mask_rcnn_snnet_nano import (
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

model.backbone.net = model.backbone.net.small
optimizer.params.lr_factor_func.depths = dict(net="${model.backbone.net.depth}")
optimizer.params.lr_factor_func.rates = dict(net=0.7)
init.weights = dict(net="vit_nano_s")
train.output_dir = "output/vitdet_nano_s"
