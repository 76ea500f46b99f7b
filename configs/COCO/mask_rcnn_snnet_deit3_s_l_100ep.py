"""SN-Netv2 on COCO, DeiT3-S and DeiT3-L: the paper's recipe (section 5.4)."""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

from snnet_vitdet.engine import InitSettings, as_config
from snnet_vitdet.stitching import ResourceConstrainedSampler

from ..common.data import data, dataloader
from ..common.models.deit3 import large_weights, small_weights
from ..common.models.mask_rcnn_snnet import model
from ..common.optim import optimizer
from ..common.train import sweep, train

# detectron2's layout: $DETECTRON2_DATASETS/coco, by default datasets/coco.
_root = "${oc.env:DETECTRON2_DATASETS,datasets}/coco"
data.train_json = f"{_root}/annotations/instances_train2017.json"
data.train_images = f"{_root}/train2017"
data.test_json = f"{_root}/annotations/instances_val2017.json"
data.test_images = f"{_root}/val2017"
# Known: "auto" would take ten seconds to read it.
data.masks = True

train.output_dir = "output/mask_rcnn_snnet_deit3_s_l_100ep"
# 100 epochs: 184375 iterations at ViTDet's batch of 64, 8 times as many at the paper's batch of 8.
train.max_iter = 1475000
train.eval_period = 40000
train.checkpointer.period = 10000
train.checkpointer.max_to_keep = 5

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(
        values=[1.0, 0.1, 0.01],
        # ViTDet's milestones, 8 times: 8/9 and 26/27 of the training, whatever its length.
        milestones=[163889 * 8, 177546 * 8],
        num_updates=1475000,
    ),
    warmup_length=250 / 184375,
    warmup_factor=0.001,
)

sampler = L(ResourceConstrainedSampler)(step=10.0, seed="${train.seed}", grouping="gap")

init = as_config(InitSettings(weights=dict(small=small_weights, large=large_weights)))
