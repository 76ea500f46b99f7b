"""What the scores of a sweep depend on, so that one is resumed with its own settings alone."""

import hashlib
import json
import os

from omegaconf import DictConfig, OmegaConf

__all__ = ["provenance_of"]


def provenance_of(
    config: DictConfig, checkpoint: str | None, averaged: bool | None = None
) -> dict[str, object]:
    """What the scores of a stitch depend on, as plain values.

    Args:
        config: The whole config of the sweep.
        checkpoint: Path of the weights; None for those that a training starts from.
        averaged: Whether the weights are the moving average in it; None if it has none.
    """
    files = {"test_json": config.data.test_json}
    nodes = [config.model, config.dataloader.test.mapper, config.data]
    if checkpoint:
        files["checkpoint"] = checkpoint
    else:
        nodes += [config.init, config.dataloader.train.mapper]
    stats = {name: os.stat(path) for name, path in files.items()}
    settings = "\n".join(
        json.dumps(OmegaConf.to_container(node, resolve=True), sort_keys=True, default=_name)
        for node in nodes
    )
    return {
        "precision": config.sweep.precision,
        # Of a checkpoint with both.
        **({} if averaged is None else {"averaged": averaged}),
        **{name: os.path.abspath(path) for name, path in files.items()},
        **{f"{name}_bytes": stat.st_size for name, stat in stats.items()},
        **{f"{name}_mtime": stat.st_mtime for name, stat in stats.items()},
        "settings_sha256": hashlib.sha256(settings.encode()).hexdigest(),
    }


def _name(value: object) -> str:
    """A class or function in a config by its name; its own text may hold an address in memory."""
    return getattr(value, "__qualname__", None) or str(value)
