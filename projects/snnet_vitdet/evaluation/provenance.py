"""What the scores of a sweep depend on: a sweep is only resumed with the same weights and data."""

import json
import os
from typing import Any

from omegaconf import OmegaConf

from snnet_vitdet.data.fingerprint import image_facts, leaves, sha256_of

__all__ = ["provenance_of"]

# The effect of data.masks is part of the model's settings.
_NO_SETTINGS = ("prepare", "check", "masks")
_DATA_PATHS = ("train_json", "train_images", "test_json", "test_images")


def provenance_of(
    config: Any, checkpoint: str | None, averaged: bool | None = None
) -> dict[str, object]:
    """What the scores of a stitch depend on, as plain values.

    Annotations and weights are compared by content, so the same files elsewhere are the same.
    Images are compared by size and by modification time in whole seconds, because reading all of
    them would take long; a copy must keep the times (``cp -a``, ``rsync -a``).

    Args:
        config: The whole config of the sweep.
        checkpoint: Path of the weights; None for the weights at the start of a training. The
            result then has what these depend on, except for the training images.
        averaged: Whether the weights are the checkpoint's moving average; None if it has none.

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
    data = config.data
    # As in every recipe, it would only repeat data.test_json and data.test_images.
    usual = (data.test_json, data.test_images, False)
    dataset = config.dataloader.test.dataset
    if tuple(dataset.get(k) for k in ("json_file", "image_root", "filter_empty")) != usual:
        nodes["dataloader.test.dataset"] = dataset
    if checkpoint:
        files["checkpoint"] = checkpoint
    else:
        files["train_json"] = config.data.train_json
        nodes |= {"init": config.init, "dataloader.train.mapper": config.dataloader.train.mapper}
        nodes["train.seed"] = config.train.seed
    # Paths of data are not settings: the content of the data is compared.
    paths = {config.data[key] for key in _DATA_PATHS if not OmegaConf.is_missing(config.data, key)}
    settings = {
        key: value
        for name, node in nodes.items()
        for key, value in leaves(name, _plain(node))
        if not (isinstance(value, str) and value in paths)
    }
    is_tight = config.sweep.padding == "tight"
    padding = {key: config.sweep[key] for key in ("padding", "aspect_ratio")} if is_tight else {}
    return {
        "precision": config.sweep.precision,
        **padding,
        # Only for a checkpoint that has both.
        **({} if averaged is None else {"averaged": averaged}),
        **{name: os.path.abspath(path) for name, path in files.items()},
        **{f"{name}_sha256": sha256_of(path) for name, path in files.items()},
        **{f"{name}_bytes": os.path.getsize(path) for name, path in files.items()},
        "test_image": image_facts(config.data.test_json, config.data.test_images),
        "settings": settings,
    }


def _plain(node: object) -> object:
    if not OmegaConf.is_config(node):
        return node
    # In the form that sweep.json keeps.
    text = json.dumps(OmegaConf.to_container(node, resolve=True), default=_name)
    return json.loads(text, object_hook=_short_target)


def _short_target(node: dict) -> dict:
    # A .py config has functions and classes, its saved .yaml their dotted names.
    if isinstance(target := node.get("_target_"), str):
        node["_target_"] = target.rpartition(".")[2]
    return node


def _name(value: object) -> str:
    """The name of a class or function in a config; its repr may contain a memory address."""
    return getattr(value, "__qualname__", None) or str(value)
