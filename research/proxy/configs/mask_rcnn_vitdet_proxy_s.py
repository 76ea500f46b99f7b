"""The small ViT of the proxy alone; everything else is as in the stitched recipe."""

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

model.backbone.net = model.backbone.net.small
optimizer.params.lr_factor_func.depths = dict(net="${model.backbone.net.depth}")
optimizer.params.lr_factor_func.rates = dict(net=0.7)
init.weights = dict(net=None)
train.output_dir = "output/proxy/vitdet_s"
