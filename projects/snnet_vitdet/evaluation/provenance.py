"""What the scores of a sweep depend on, so that one is resumed with its own data alone."""

import json
import os

from omegaconf import DictConfig, OmegaConf

from snnet_vitdet.data.fingerprint import image_facts, leaves, sha256_of

__all__ = ["provenance_of"]

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
    data = config.data
    # As it is in every recipe, it adds nothing to what data.test_json and data.test_images tell.
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
    # Where the data are is no setting, and what they are is seen by their content.
    paths = {config.data[key] for key in _DATA_PATHS if not OmegaConf.is_missing(config.data, key)}
    settings = {
        key: value
        for name, node in nodes.items()
        for key, value in leaves(name, _plain(node))
        if not (isinstance(value, str) and value in paths)
    }
    return {
        "precision": config.sweep.precision,
        # Of a checkpoint with both.
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
    # As the file keeps it.
    text = json.dumps(OmegaConf.to_container(node, resolve=True), default=_name)
    return json.loads(text, object_hook=_short_target)


def _short_target(node: dict) -> dict:
    # A .py file has functions and classes, the .yaml saved of it their dotted names.
    if isinstance(target := node.get("_target_"), str):
        node["_target_"] = target.rpartition(".")[2]
    return node


def _name(value: object) -> str:
    """A class or function in a config by its name; its own text may hold an address in memory."""
    return getattr(value, "__qualname__", None) or str(value)
