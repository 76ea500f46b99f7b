"""Whether a detector learns masks: decided once, and then said by all of its config."""

import os

from omegaconf import DictConfig, OmegaConf

from snnet_vitdet.building import located
from snnet_vitdet.data import coco_dicts, dataset_name, has_masks
from snnet_vitdet.modeling import is_joined

__all__ = ["BOXES_ALONE", "settle_masks"]

BOXES_ALONE = (
    "The detector has no masks (data.masks=False, which auto means where no object of the training "
    "data has one): boxes alone are trained and scored."
)
"""Said where ``data.masks`` is false."""

_MASK_PARTS = ("mask_in_features", "mask_pooler", "mask_head")


def settle_masks(config: DictConfig) -> None:
    """Replaces ``data.masks=auto``, and makes a config without masks that of a Faster R-CNN.

    With ``auto``, masks are learnt if the model has a mask head and the training data have a mask
    or, where these are not there, the test data. Without the data it stays ``auto``, which is as
    with masks. Without masks, the RoI heads lose their mask head, and masks of the data are not
    read. Calling it again changes nothing.

    Args:
        config: The whole config, changed in place.

    Raises:
        InputError: If the annotation file cannot be read.
    """
    masks = OmegaConf.select(config, "data.masks")
    if masks == "auto":
        masks = _found_masks(config)
    if masks not in (True, False):
        return
    config.data.masks = bool(masks)
    if masks:
        return
    for heads in _heads(config.model):
        for key in _MASK_PARTS:
            heads.pop(key, None)
    mapper = config.dataloader.train.mapper
    if mapper.get("use_instance_mask"):
        mapper.use_instance_mask = False
        mapper.recompute_boxes = False  # of masks
    for path in ("train.dataset", "test.dataset", "evaluator.dataset_name"):
        node = OmegaConf.select(config.dataloader, path)
        # One's own function has its own way with masks.
        if OmegaConf.is_dict(node) and located(node.get("_target_")) in (coco_dicts, dataset_name):
            node.masks = False


def _heads(model_config: DictConfig) -> list[DictConfig]:
    heads = model_config.roi_heads
    return [heads.small, heads.large] if is_joined(model_config) else [heads]


def _found_masks(config: DictConfig) -> bool | str:
    if not all(heads.get("mask_head") for heads in _heads(config.model)):
        return False
    for key in ("train_json", "test_json"):
        if not OmegaConf.is_missing(config.data, key) and os.path.isfile(config.data[key]):
            return has_masks(config.data[key])
    return "auto"
