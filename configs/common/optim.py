"""ViTDet's AdamW, with the layer-wise learning-rate decay of each anchor."""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from snnet_vitdet.engine import LayerwiseDecay

optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.params.overrides = {
    "pos_embed": {"weight_decay": 0.0},
    "pos_embed_global": {"weight_decay": 0.0},
    # BEiT's recipe does not decay its tables.
    "rel_pos_table": {"weight_decay": 0.0},
    # LayerScale; DeiT3's recipe decays no parameter of one dimension.
    "gamma": {"weight_decay": 0.0},
}
optimizer.params.lr_factor_func = L(LayerwiseDecay)(
    depths=dict(
        small="${model.backbone.net.small.depth}", large="${model.backbone.net.large.depth}"
    ),
    rates=dict(small=0.7, large=0.8),
)
