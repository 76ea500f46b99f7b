"""Any COCO-format data, from the command line alone: pretrained DeiT3-S and DeiT3-L.

Needs data.train_json, data.train_images, data.test_json and data.test_images. The schedule suits
some thousands of images; set train.max_iter to about 50 times their number over the batch size.
"""

from detectron2.config import LazyCall as L

from snnet_vitdet.data import num_categories

from ..COCO.mask_rcnn_snnet_deit3_s_l_100ep import (
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

data.train_json = data.train_images = data.test_json = data.test_images = "???"
data.masks = "auto"
model.roi_heads.num_classes = L(num_categories)(json_file="${data.train_json}")
# Takes polygons as well as RLE.
dataloader.train.mapper.instance_mask_format = "bitmask"

train.output_dir = "output/custom_deit3_s_l"
train.max_iter = 20000
train.eval_period = 5000
train.checkpointer.period = 2500
lr_multiplier.warmup_length = 250 / 20000
