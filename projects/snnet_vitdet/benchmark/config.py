"""Configs of what is measured, without data."""

from collections.abc import Sequence

from omegaconf import DictConfig

from snnet_vitdet.engine import load_config

__all__ = ["load_without_data"]

_COCO_CLASSES = 80


def load_without_data(config_file: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Loads a config; where it reads the number of classes from a file of data, it has COCO's.

    Raises:
        InputError: As :func:`snnet_vitdet.engine.load_config`.
    """
    config = load_config(config_file, overrides)
    if not isinstance(config.model.roi_heads.num_classes, int):
        config.model.roi_heads.num_classes = _COCO_CLASSES
    return config
