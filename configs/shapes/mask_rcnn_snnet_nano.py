"""The embedded default: small anchors on generated scenes, minutes on two CPU cores."""

from detectron2.config import LazyCall as L

from snnet_vitdet.data import generate_shapes
from snnet_vitdet.data.scenes import CATEGORIES

from ..custom.mask_rcnn_snnet_coco_json import (
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

# Known before the scenes are there: costs are listed without data.
model.roi_heads.num_classes = len(CATEGORIES)

data.prepare = L(generate_shapes)(
    root="datasets/shapes", num_train=400, num_test=80, image_size="${data.image_size}", seed=0
)
data.train_json = "${data.prepare.root}/train.json"
data.train_images = "${data.prepare.root}/train"
data.test_json = "${data.prepare.root}/test.json"
data.test_images = "${data.prepare.root}/test"

# A few minutes are too short to learn large changes of scale.
dataloader.train.mapper.augmentations[1].min_scale = 0.8
dataloader.train.mapper.augmentations[1].max_scale = 1.25

# Pretrained on other generated scenes by research/nano_vits.
init.weights = dict(small="vit_nano_s", large="vit_nano_l")
optimizer.params.lr_factor_func.rates = dict(small=0.7, large=0.8)

train.output_dir = "output/shapes_nano"
train.max_iter = 1200
