"""The large ViT of the proxy alone; everything else is as in the stitched recipe."""

from .mask_rcnn_snnet_proxy import (
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

model.backbone.net = model.backbone.net.large
optimizer.params.lr_factor_func.depths = dict(net="${model.backbone.net.depth}")
optimizer.params.lr_factor_func.rates = dict(net=0.8)
init.weights = dict(net=None)
train.output_dir = "output/proxy/vitdet_l"
