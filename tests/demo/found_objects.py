"""Detections for tests of the page, without a model."""

import torch
from detectron2.structures import Boxes

from snnet_vitdet.deploy import ClassNames, Detections


def found_in(image, *objects):
    """Objects of (name, score) in an image, each with the same box and no mask."""
    names, scores = zip(*objects, strict=True) if objects else ((), ())
    return Detections(
        image.shape[:2],
        pred_boxes=Boxes(torch.tensor([[1.0, 1.0, 9.0, 9.0]]).repeat(len(objects), 1)),
        scores=torch.tensor(scores),
        pred_classes=torch.zeros(len(objects), dtype=torch.long),
        class_names=ClassNames(names),
    )
