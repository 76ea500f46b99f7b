"""Evaluators of the same annotations, however long after the start of a run they are made."""

import copy
from collections.abc import Callable

from detectron2.config import instantiate
from detectron2.evaluation import DatasetEvaluator
from omegaconf import DictConfig

from snnet_vitdet.data.coco_json import restore_copy

__all__ = ["evaluators_of"]


def evaluators_of(node: DictConfig) -> Callable[[], DatasetEvaluator]:
    """Makes evaluators of the annotations as they are now, which a data loader has numbers of.

    The copy of the annotations that they read is made at once: a full disk shows at the start.

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
        return instantiate(node)

    return make
