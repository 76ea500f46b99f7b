"""What the scores of a sweep depend on, so that one is resumed with its own data alone."""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping

from omegaconf import DictConfig, OmegaConf

from snnet_vitdet.data.coco_json import read_coco_json
from snnet_vitdet.data.image_folder import ImageFolder
from snnet_vitdet.errors import InputError

__all__ = ["difference", "provenance_of"]

_SHOWN = 3
_BLOCK = 1 << 20
# What masks change, the settings of the model say.
_NO_SETTINGS = ("prepare", "check", "masks")
_DATA_PATHS = ("train_json", "train_images", "test_json", "test_images")


def provenance_of(
    config: DictConfig, checkpoint: str | None, averaged: bool | None = None
) -> dict[str, object]:
    """What the scores of a stitch depend on, as plain values.

    Annotations and weights count by their content: the same files elsewhere are the same. Images
    count by their sizes and by their times in whole seconds, as reading them all would take long;
    a copy has to keep the times (``cp -a``, ``rsync -a``).

    Args:
        config: The whole config of the sweep.
        checkpoint: Path of the weights; None for those that a training starts from. What these
            depend on, except for the training images, is then part of it.
        averaged: Whether the weights are the moving average in it; None if it has none.

    Raises:
        InputError: If a file cannot be read.
    """
    files = {"test_json": config.data.test_json}
    nodes = {
        "model": config.model,
        "train.tf32": config.train.tf32,
        "dataloader.test.mapper": config.dataloader.test.mapper,
        "dataloader.evaluator": config.dataloader.evaluator,
        "data": {k: v for k, v in _plain(config.data).items() if k not in _NO_SETTINGS},
    }
    if checkpoint:
        files["checkpoint"] = checkpoint
    else:
        files["train_json"] = config.data.train_json
        nodes |= {"init": config.init, "dataloader.train.mapper": config.dataloader.train.mapper}
        nodes["train.seed"] = config.train.seed
    # Where the data are is no setting, and what they are is seen by their content.
    paths = {config.data[key] for key in _DATA_PATHS if not OmegaConf.is_missing(config.data, key)}
    settings = {
        key: value
        for name, node in nodes.items()
        for key, value in _leaves(name, _plain(node))
        if not (isinstance(value, str) and value in paths)
    }
    return {
        "precision": config.sweep.precision,
        # Of a checkpoint with both.
        **({} if averaged is None else {"averaged": averaged}),
        **{name: os.path.abspath(path) for name, path in files.items()},
        **{f"{name}_sha256": _digest(path) for name, path in files.items()},
        **{f"{name}_bytes": os.path.getsize(path) for name, path in files.items()},
        "test_image": _images(config.data.test_json, config.data.test_images),
        "settings": settings,
    }


def difference(before: Mapping[str, object], now: Mapping[str, object]) -> str:
    """What differs between two provenances; nothing if the scores of both can be in one table."""
    before, now = dict(_leaves("", before)), dict(_leaves("", now))
    keys = [
        key
        for key in {**before, **now}
        if before.get(key) != now.get(key)
        # A file that is the same elsewhere.
        and not (f"{key}_sha256" in before and f"{key}_sha256" in now)
    ]
    shown = ", ".join(f"{key}: {before.get(key)} then, {now.get(key)} now" for key in keys[:_SHOWN])
    return shown + (f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")


def _plain(node: object) -> object:
    if not OmegaConf.is_config(node):
        return node
    # As the file keeps it.
    return json.loads(json.dumps(OmegaConf.to_container(node, resolve=True), default=_name))


def _leaves(path: str, node: object) -> Iterator[tuple[str, object]]:
    if not isinstance(node, Mapping):
        yield path, node
        return
    for key, value in node.items():
        yield from _leaves(f"{path}.{key}" if path else str(key), value)


def _images(json_file: str, image_root: str) -> dict[str, str]:
    folder, facts = ImageFolder(image_root), {}
    for image in read_coco_json(json_file)["images"]:
        try:
            stat = os.stat(folder.path(image["file_name"]))
        except (OSError, ValueError):
            continue  # which the loader will name
        written = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(stat.st_mtime))
        facts[image["file_name"]] = f"{stat.st_size} bytes of {written}"
    return facts


def _digest(path: str) -> str:
    try:
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _name(value: object) -> str:
    """A class or function in a config by its name; its own text may hold an address in memory."""
    return getattr(value, "__qualname__", None) or str(value)
