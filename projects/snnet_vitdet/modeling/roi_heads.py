"""What detectron2's RoI heads lack: objects without a mask, results in float32, fewer proposals."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    FastRCNNOutputLayers,
    ROIHeads,
    StandardROIHeads,
)
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn

__all__ = [
    "detect_with_counts",
    "postprocessed",
    "rows_with_count",
    "running_in",
    "train_on_given_masks",
]

_Array = TypeVar("_Array", torch.Tensor, np.ndarray)

# Which class of which proposal a detection is.
_KEY = "proposal_and_class"


def train_on_given_masks(model: nn.Module) -> None:
    """Trains the mask head of a detector on the objects that have a mask, not on boxes alone.

    ``CheckedMapper`` marks the objects by ``gt_has_mask``. Proposals without a mask do not reach
    the mask head; if none is left, its loss and gradients are 0.

    Args:
        model: A detectron2 R-CNN, with or without a mask head.
    """
    for module in model.modules():
        if isinstance(module, BaseMaskRCNNHead):
            module.register_forward_pre_hook(_drop_boxes_alone)


def _drop_boxes_alone(
    head: nn.Module, given: tuple[torch.Tensor, list[Instances]]
) -> tuple[torch.Tensor, list[Instances]] | None:
    # Features are (proposals of all images, C, H, W), proposals are per image.
    features, proposals = given
    if not head.training or not any(each.has("gt_has_mask") for each in proposals):
        return None
    keep = [
        each.gt_has_mask
        if each.has("gt_has_mask")
        else torch.ones(len(each), dtype=torch.bool, device=features.device)
        for each in proposals
    ]
    chosen = [each[kept] for each, kept in zip(proposals, keep, strict=True)]
    return features[torch.cat(keep)], chosen


@contextmanager
def running_in(model: nn.Module, precision: torch.dtype) -> Iterator[None]:
    """Runs a detector under autocast and turns its results into float32 before they are processed.

    detectron2 pastes masks into the image in the type of the mask head's output. In bfloat16 the
    sampling positions are rounded to 1/256 of the box, which moves the edges of the masks.

    Args:
        model: A detectron2 model in evaluation mode.
        precision: float16 or bfloat16; float32 changes nothing.
    """
    if precision == torch.float32:
        yield
        return
    # A joined detector has two.
    heads = [module for module in model.modules() if isinstance(module, ROIHeads)]
    hooks = [each.register_forward_hook(_in_float32) for each in heads]
    try:
        with torch.autocast(next(model.parameters()).device.type, dtype=precision):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _in_float32(
    heads: nn.Module,
    given: tuple[object, ...],
    output: tuple[list[Instances], dict[str, torch.Tensor]],
) -> None:
    _turn_to_float32(output[0])


def _turn_to_float32(results: list[Instances]) -> None:
    for instances in results:
        fields = instances.get_fields()
        for name, value in fields.items():
            if isinstance(value, Boxes):
                fields[name] = Boxes(value.tensor.float())
            elif isinstance(value, torch.Tensor) and value.is_floating_point():
                fields[name] = value.float()


@torch.no_grad()
def detect_with_counts(
    heads: ROIHeads,
    images: ImageList,
    features: Mapping[str, torch.Tensor],
    proposals: Sequence[Instances],
    counts: Sequence[int],
) -> list[Instances]:
    """What RoI heads detect with several numbers of proposals.

    Proposals are sorted by score, so fewer of them are the first ones. detectron2's box heads treat
    each proposal alone: they run once, on all of them. NMS runs for each number. Most detections
    are the same with several numbers, and their masks are computed once.

    Args:
        heads: RoI heads in evaluation mode.
        images: The images, as the heads take them.
        features: The pyramid's levels by name.
        proposals: The RPN's proposals for each image.
        counts: Numbers of proposals.

    Returns:
        For each image, the detections with any of the numbers, in no order. ``places``,
        (detections, counts), has their places in the results with each number, -1 where it is not
        among them; see :func:`rows_with_count`.
    """
    predictors = getattr(heads, "box_predictor", None)
    predictors = list(predictors) if isinstance(predictors, nn.ModuleList) else [predictors]
    is_known = type(heads) in (StandardROIHeads, CascadeROIHeads) and all(
        type(predictor) is FastRCNNOutputLayers for predictor in predictors
    )
    if len(counts) == 1 or not is_known:
        found = (heads(images, features, [p[:n] for p in proposals], None)[0] for n in counts)
        return [_united(of_image) for of_image in zip(*found, strict=True)]
    boxes, scores = _box_outputs(heads, features, proposals, predictors)
    last, sizes = predictors[-1], [each.image_size for each in proposals]
    limits = (last.test_score_thresh, last.test_nms_thresh, last.test_topk_per_image)
    of_images: list[list[Instances]] = [[] for _ in proposals]
    for count in counts:
        fewer = ([each[:count] for each in part] for part in (boxes, scores))
        for found, instances, kept in zip(
            of_images, *fast_rcnn_inference(*fewer, sizes, *limits), strict=True
        ):
            instances.set(_KEY, kept * last.num_classes + instances.pred_classes)
            found.append(instances)
    results = heads.forward_with_given_boxes(features, [_united(found) for found in of_images])
    _turn_to_float32(results)
    return results


def rows_with_count(places: _Array, index: int) -> _Array:
    """Rows of the detections with one number of proposals, best score first.

    Args:
        places: Those of the detections of :func:`detect_with_counts`, or of some of them.
        index: Index of the number in ``counts``.
    """
    places = places[:, index]
    order = places.argsort()
    return order[places[order] >= 0]


def postprocessed(found: Instances, height: int, width: int) -> Instances:
    """detectron2's ``detector_postprocess``, without pasting masks into the image.

    Args:
        found: Detections in pixels of the model's image; they are changed.
        height: Height of the image in pixels.
        width: Width of the image in pixels.

    Returns:
        The detections in pixels of the image, with ``mask_probabilities`` in their boxes,
        (N, 1, M, M), in place of ``pred_masks``.
    """
    if found.has("pred_masks"):
        # detectron2 does not paste masks of another name.
        found.mask_probabilities = found.pred_masks
        found.remove("pred_masks")
    return detector_postprocess(found, height, width)


def _united(found: Sequence[Instances]) -> Instances:
    """The detections in an image with any number of proposals; those of the same key are one."""
    if len(found) == 1:
        found[0].places = torch.arange(len(found[0]), device=found[0].scores.device)[:, None]
        return found[0]
    every = Instances.cat(list(found))
    device = every.scores.device
    place = torch.cat([torch.arange(len(each), device=device) for each in found])
    count = torch.cat([torch.full_like(each.pred_classes, i) for i, each in enumerate(found)])
    keys = every.get(_KEY) if every.has(_KEY) else torch.arange(len(every), device=device)
    unique, which = keys.unique(return_inverse=True)
    # Detections of the same key are equal: any of them will do.
    one_of_each = torch.empty_like(unique).scatter_(
        0, which, torch.arange(len(every), device=device)
    )
    places = unique.new_full((len(unique), len(found)), -1)
    places[which, count] = place
    united = every[one_of_each]
    united.places = places
    if united.has(_KEY):
        united.remove(_KEY)
    return united


def _box_outputs(
    heads: StandardROIHeads,
    features: Mapping[str, torch.Tensor],
    proposals: Sequence[Instances],
    predictors: Sequence[FastRCNNOutputLayers],
) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]:
    """Boxes and scores of each image's proposals, before NMS, as the heads compute them."""
    levels = [features[name] for name in heads.box_in_features]
    if not isinstance(heads, CascadeROIHeads):
        pooled = heads.box_pooler(levels, [each.proposal_boxes for each in proposals])
        outputs = heads.box_predictor(heads.box_head(pooled))
        (predictor,) = predictors
        boxes = predictor.predict_boxes(outputs, proposals)
        return boxes, predictor.predict_probs(outputs, proposals)
    sizes = [each.image_size for each in proposals]
    scores = []
    for stage, predictor in enumerate(predictors):
        if stage:
            proposals = heads._create_proposals_from_boxes(boxes, sizes)
        outputs = heads._run_stage(levels, proposals, stage)
        boxes = predictor.predict_boxes(outputs, proposals)
        scores.append(predictor.predict_probs(outputs, proposals))
    # As detectron2: the mean score of all stages, summed in their order.
    return boxes, [sum(each) * (1.0 / len(scores)) for each in zip(*scores, strict=True)]
