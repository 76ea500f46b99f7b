"""The proxy: the paper's recipe in small, with ViTs that differ clearly, in minutes on a CPU.

init.weights takes the checkpoints of detectors that were trained with each ViT alone, by
mask_rcnn_vitdet_proxy_s.py and …_l.py. `python -m research.proxy` runs them all.
"""

from ....configs.shapes.mask_rcnn_snnet_nano import (
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

data.image_size = 128
data.prepare.root = "datasets/shapes_proxy"
data.prepare.num_train = 1500
data.prepare.num_test = 300

# 128 pixels are 8 x 8 tokens: four windows.
for _anchor in (model.backbone.net.small, model.backbone.net.large):
    _anchor.window_size = 4
    _anchor.pretrain_img_size = 128
    # With so few tokens, a fused kernel costs more time than it saves.
    _anchor.attention = "reference"
model.backbone.net.small.embed_dim = 64
model.backbone.net.small.num_heads = 2
model.backbone.net.small.depth = 6
model.backbone.net.small.global_block_indexes = [1, 3, 5]
model.backbone.net.large.embed_dim = 128
model.backbone.net.large.num_heads = 4
model.backbone.net.large.depth = 12
model.backbone.net.large.global_block_indexes = [2, 5, 8, 11]
# Relative to the width, as the paper's rank 16 is to 384.
model.backbone.net.lora_rank = 4
model.proposal_generator.anchor_generator.sizes = [[8], [16], [32], [64], [128]]
model.proposal_generator.pre_nms_topk = [200, 100]
model.proposal_generator.post_nms_topk = [60, 40]
model.roi_heads.mask_head.conv_dims = [32]

dataloader.train.total_batch_size = 4
dataloader.train.num_workers = 1
dataloader.test.num_workers = 1

# There are many small parameters.
optimizer.fused = True

# Fifteen groups; S and L are alone in two of them. The figures in README.md are with rounding.
sampler.step = 0.002
sampler.grouping = "round"

# Enough of each kind to see a frontier.
sweep.stitch_ids = "S,L,FS,SF,SFS-1-3,SFS-2-4,SFS-3-5,FSF-1-3,FSF-2-4,FSF-3-5"

init.weights = dict(small=None, large=None)
train.output_dir = "output/proxy/snnet"
train.max_iter = 2000
train.checkpointer.period = 500
train.eval_period = 0
