"""Any COCO-format data, from the command line alone: small anchors from random weights.

Needs data.train_json, data.train_images, data.test_json and data.test_images. Trains anywhere, to
try data out; for accuracy start from pretrained anchors, mask_rcnn_snnet_deit3_s_l_coco_json.py.
"""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

from snnet_vitdet.data import num_categories
from snnet_vitdet.engine import InitSettings, as_config
from snnet_vitdet.stitching import ResourceConstrainedSampler

from ..common.data import data, dataloader
from ..common.models.mask_rcnn_snnet_nano import model
from ..common.optim import optimizer
from ..common.train import sweep, train

data.image_size = 256
model.roi_heads.num_classes = L(num_categories)(json_file="${data.train_json}")

dataloader.train.mapper.augmentations[1].min_scale = 0.5
dataloader.train.mapper.augmentations[1].max_scale = 1.5
# Takes polygons as well as RLE.
dataloader.train.mapper.instance_mask_format = "bitmask"
dataloader.train.total_batch_size = 4
dataloader.train.num_workers = 2
dataloader.test.num_workers = 2

train.output_dir = "output/custom"
train.max_iter = 900
train.eval_period = 0
train.checkpointer.period = 300

optimizer.lr = 5e-4
# All blocks are new.
optimizer.params.lr_factor_func.rates = dict(small=1.0, large=1.0)

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(
        # Of the training, whatever its length.
        values=[1.0, 0.1, 0.01],
        milestones=[80, 95],
        num_updates=100,
    ),
    warmup_length=0.05,
    warmup_factor=0.001,
)

# The stitches cost 0.2 to 0.9 GFLOPs.
sampler = L(ResourceConstrainedSampler)(step=0.1, seed="${train.seed}", grouping="gap")

init = as_config(InitSettings(weights=dict(small=None, large=None)))
