"""detectron2's ViTDet Mask R-CNN on two stitched anchors."""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from snnet_vitdet.modeling import StitchedViT

from .deit3 import deit3_large, deit3_small

model = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
model.backbone.net = L(StitchedViT)(
    small=deit3_small,
    large=deit3_large,
    max_cuts=2,
    # Which kinds of stitches, None for all; ["S", "L", "FS"] is SN-Netv1's space.
    kinds=None,
    # Rank of the update a stitching layer learns; 0 trains the whole matrix.
    lora_rank=16,
    lora_alpha=None,
    out_feature="last_feat",
)
model.backbone.square_pad = "${data.image_size}"
