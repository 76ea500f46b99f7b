"""detectron2's COCOEvaluator, with masks scored apart where some objects have none."""

import copy

from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators
from detectron2.utils.registry import locate
from omegaconf import DictConfig

from .results import TASKS

__all__ = ["build_evaluator"]


def build_evaluator(node: DictConfig) -> DatasetEvaluator:
    """Makes the evaluator of a config, ``dataloader.evaluator``.

    COCO's scorer needs a mask of every object that it scores masks on. Where some objects have a
    box alone, masks are scored by an evaluator of their own, on
    :func:`snnet_vitdet.data.mask_truth.mask_truth`.

    Args:
        node: Of the config; one that makes no COCOEvaluator is taken as it is.
    """
    target = node._target_
    target = locate(target) if isinstance(target, str) else target
    if not (isinstance(target, type) and issubclass(target, COCOEvaluator)):
        return instantiate(node)
    name = instantiate(node.dataset_name)
    of_masks = MetadataCatalog.get(name).get("mask_dataset")
    if of_masks is None:
        return instantiate(node)
    evaluators = []
    for task in node.get("tasks") or TASKS:
        own = copy.deepcopy(node)
        own.tasks = [task]
        if task == "segm":
            own.dataset_name = of_masks
        if evaluators:
            own.output_dir = None  # the same detections
        evaluators.append(instantiate(own))
    return DatasetEvaluators(evaluators)
