"""SN-Netv2 on COCO with Cascade Mask R-CNN's three box heads, as ViTDet's cascade variant."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
)

from .mask_rcnn_snnet_deit3_s_l_100ep import (
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

# What a cascade has three of.
for _key in ("box_head", "box_predictor", "proposal_matcher"):
    model.roi_heads.pop(_key)
model.roi_heads.update(
    _target_=CascadeROIHeads,
    box_heads=[
        L(FastRCNNConvFCHead)(
            input_shape=ShapeSpec(channels=256, height=7, width=7),
            conv_dims=[256, 256, 256, 256],
            fc_dims=[1024],
            conv_norm="LN",
        )
        for _ in range(3)
    ],
    box_predictors=[
        L(FastRCNNOutputLayers)(
            input_shape=ShapeSpec(channels=1024),
            test_score_thresh=0.05,
            box2box_transform=L(Box2BoxTransform)(weights=_weights),
            cls_agnostic_bbox_reg=True,
            num_classes="${...num_classes}",
        )
        for _weights in [(10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)]
    ],
    proposal_matchers=[
        L(Matcher)(thresholds=[_iou], labels=[0, 1], allow_low_quality_matches=False)
        for _iou in [0.5, 0.6, 0.7]
    ],
)

train.output_dir = "output/cascade_mask_rcnn_snnet_deit3_s_l_100ep"
