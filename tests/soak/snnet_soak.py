"""What soak.py trains: the smallest detector with all parts, 0.1 s per iteration on a CPU."""

from ...configs.shapes.mask_rcnn_snnet_nano import (
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

data.image_size = 64
data.prepare.root = "${train.output_dir}_scenes"
data.prepare.num_train = 12
# More than the 50 images of a file of detections, so that an interrupted sweep can be resumed.
data.prepare.num_test = 52

# Other widths than those of the bundled weights.
init.weights = dict(small=None, large=None)
optimizer.params.lr_factor_func.rates = dict(small=1.0, large=1.0)

model.backbone.net.lora_rank = 4
model.backbone.net.small.embed_dim = 32
model.backbone.net.small.num_heads = 2
model.backbone.net.large.embed_dim = 48
model.backbone.net.large.num_heads = 3
for _anchor in (model.backbone.net.small, model.backbone.net.large):
    # 64 pixels are 4 x 4 tokens.
    _anchor.window_size = 2
    _anchor.pretrain_img_size = 64
    # Randomness inside the model has to be resumed, too.
    _anchor.drop_path_rate = 0.2

model.proposal_generator.pre_nms_topk = [60, 40]
model.proposal_generator.post_nms_topk = [40, 20]
model.roi_heads.batch_size_per_image = 16
model.roi_heads.box_head.fc_dims = [64]
model.roi_heads.box_predictor.input_shape.channels = 64
# After so short a training, all scores are low.
model.roi_heads.box_predictor.test_score_thresh = 0.01
model.roi_heads.box_predictor.test_topk_per_image = 10

# The stitches differ by hundredths of a GFLOP.
sampler.step = 0.002

dataloader.train.total_batch_size = 2
dataloader.train.num_workers = 2
dataloader.test.num_workers = 2

train.device = "cpu"
train.output_dir = "output/soak/training"
train.max_iter = 30
train.checkpointer.period = 5
train.log_period = 1
train.eval_period = 0
train.eval_stitches = [0]

sweep.stitch_ids = "S,L,FS-1,SF-3,FSF-1-2"
