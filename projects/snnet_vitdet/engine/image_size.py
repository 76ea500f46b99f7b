"""The config of a detector at another image size than that of its training."""

import copy

from detectron2.config import instantiate
from omegaconf import OmegaConf

from snnet_vitdet.data import TrainLoader
from snnet_vitdet.errors import InputError
from snnet_vitdet.validators import check

from .settings import SIDE, Config

__all__ = ["at_image_size", "check_image_size", "cost_aspect_ratio", "vary_image_size"]


def at_image_size(config: Config, image_size: int) -> Config:
    """A config with images of another size.

    A model keeps its parameters: only what pads and resizes images follows the new config.

    Args:
        config: The whole config; not changed.
        image_size: Side in pixels of the square that the model pads images to.

    Returns:
        The config itself if this is its own size.
    """
    if image_size == config.model.backbone.square_pad:
        return config
    changed = copy.deepcopy(config)
    changed.data.image_size = image_size
    return changed


def check_image_size(config: Config, image_size: int, loader: str = "test") -> None:
    """Checks whether a detector can run at another image size.

    Args:
        config: The whole config.
        image_size: The size.
        loader: The loader that is to give images of this size: ``test`` or ``train``.

    Raises:
        InputError: If the size is out of range or no multiple of the patch size, or if the config
            has sizes that do not follow ``data.image_size``.
    """
    check("image_size", image_size, SIDE)
    net = config.model.backbone.net
    patch_size = net.get("patch_size") or net.small.patch_size
    if image_size % patch_size:
        raise InputError(
            f"image size {image_size} is not a multiple of the patch size {patch_size}"
        )
    own, other = config, at_image_size(config, image_size)
    if own is other:
        return
    for key in ("model.backbone.square_pad", f"dataloader.{loader}.mapper.augmentations"):
        if _resolved(own, key) == _resolved(other, key):
            raise InputError(
                f"{key} does not follow data.image_size, so the detector cannot run at "
                f"{image_size} pixels: let it refer to ${{data.image_size}}"
            )


def _resolved(config: Config, key: str) -> object:
    value = OmegaConf.select(config, key)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def cost_aspect_ratio(config: Config) -> float | None:
    """Aspect ratio that a sweep's costs are counted for; None if images are padded to squares."""
    return config.sweep.aspect_ratio if config.sweep.padding == "tight" else None


def vary_image_size(config: Config, data_loader: TrainLoader) -> None:
    """Lets a loader draw an image size of ``train.image_sizes`` for each iteration.

    Args:
        config: The whole config.
        data_loader: The loader of the training.
    """
    sizes = config.train.image_sizes
    data_loader.vary_image_size(
        sizes,
        {size: instantiate(at_image_size(config, size).dataloader.train.mapper) for size in sizes},
    )
