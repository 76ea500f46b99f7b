"""Evaluators of the same annotations, however long after the start of a run they are made."""

import copy
from collections.abc import Callable

from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators
from omegaconf import DictConfig

from snnet_vitdet.building import located
from snnet_vitdet.data.datasets import restore_copy

from .results import TASKS

__all__ = ["evaluators_of"]


def evaluators_of(node: DictConfig) -> Callable[[], DatasetEvaluator]:
    """Makes evaluators of the annotations as they are now, which a data loader has numbers of.

    The copy of the annotations that they read is made at once: a full disk shows at the start.
    COCO's scorer needs a mask of every object that it scores masks on. Where some objects have a
    box alone, masks are scored by an evaluator of their own, on
    :func:`snnet_vitdet.data.datasets.mask_truth`.

    Args:
        node: ``dataloader.evaluator`` of a config.

    Raises:
        InputError: If the annotations cannot be used or copied; the evaluators raise it, too, if
            the copy is gone and the annotations have changed.
    """
    node = copy.deepcopy(node)
    if "dataset_name" not in node:
        return lambda: instantiate(node)
    # Of an annotation file that changes there would be another name.
    name = node.dataset_name = instantiate(node.dataset_name)

    def make() -> DatasetEvaluator:
        restore_copy(name)
        of_masks = MetadataCatalog.get(name).get("mask_dataset")
        return instantiate(node) if of_masks is None else _with_masks_apart(node, of_masks)

    return make


def _with_masks_apart(node: DictConfig, of_masks: str) -> DatasetEvaluator:
    target = located(node._target_)
    if not (isinstance(target, type) and issubclass(target, COCOEvaluator)):
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
