"""The ViTDet B and L of detectron2's model zoo, pretrained by MAE, joined.

They are the Mask R-CNNs with the model ids 325346929 and 325599698 of detectron2's
projects/ViTDet/README.md. Name the .pkl files: init.detectors.small=… init.detectors.large=…
"""

from snnet_vitdet.modeling import anchor_alone, join_configs

from ..families.mask_rcnn_snnet_mae_b_l_100ep import model
from .mask_rcnn_snnet_s_l import (
    data,
    dataloader,
    init,
    lr_multiplier,
    optimizer,
    sampler,
    sweep,
    train,
)

model = join_configs(
    anchor_alone(model, "small"), anchor_alone(model, "large"), max_cuts=2, kinds=None, lora_rank=4
)

init.detectors = dict(small=None, large=None)
train.output_dir = "output/join/mask_rcnn_snnet_mae_b_l"
