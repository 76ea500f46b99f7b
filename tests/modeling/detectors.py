"""Small detectors from the project's own configs, and what they are fed."""

from pathlib import Path

import torch
from detectron2 import model_zoo
from detectron2.config import LazyConfig
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.structures import BitMasks, Boxes, Instances
from omegaconf import DictConfig

CONFIGS = Path(__file__).parents[2] / "configs"
SIZE = 128


def nano_config(num_classes: int = 80, image_size: int = SIZE) -> DictConfig:
    """The nano Mask R-CNN; keeps its parent, in which its image size is."""
    config = LazyConfig.load(str(CONFIGS / "custom" / "mask_rcnn_snnet_coco_json.py"))
    config.model.roi_heads.num_classes = num_classes
    config.data.image_size = image_size
    return config.model


def cascade_config(num_classes: int = 80, image_size: int = SIZE) -> DictConfig:
    """The same with the RoI heads of detectron2's Cascade Mask R-CNN, made as small."""
    model = nano_config(num_classes, image_size)
    cascade = model_zoo.get_config("common/models/cascade_rcnn.py").model.roi_heads
    for key in ("box_head", "box_predictor", "proposal_matcher"):
        model.roi_heads.pop(key)
    model.roi_heads.update(
        _target_=CascadeROIHeads,
        **{key: cascade[key] for key in ("box_heads", "box_predictors", "proposal_matchers")},
    )
    for head, predictor in zip(
        model.roi_heads.box_heads, model.roi_heads.box_predictors, strict=True
    ):
        head.input_shape.channels = model.backbone.out_channels
        head.fc_dims = [32]
        predictor.input_shape.channels = 32
    return model


def picture(size: int = SIZE) -> torch.Tensor:
    """A random image, (3, size, size), 0 … 255."""
    return 255 * torch.rand(3, size, size, generator=torch.Generator().manual_seed(6))


def instances(size: int = SIZE) -> Instances:
    """Two objects with boxes, classes and masks."""
    found = Instances((size, size))
    found.gt_boxes = Boxes([[8.0, 8.0, 56.0, 72.0], [40.0, 30.0, 120.0, 100.0]])
    found.gt_classes = torch.tensor([1, 4])
    masks = torch.zeros(2, size, size, dtype=torch.bool)
    masks[0, 8:72, 8:56] = masks[1, 30:100, 40:120] = True
    found.gt_masks = BitMasks(masks)
    return found
