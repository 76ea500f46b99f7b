"""LazyConfig files and overrides, with mistakes found before anything is built.

``LazyConfig.apply_overrides`` creates a key that does not exist, so a misspelt override would
change nothing and be noticed after the training, if ever.
"""

import contextlib
import copy
import difflib
import logging
import os
from collections.abc import Mapping, Sequence
from glob import glob

import yaml
from detectron2.config import LazyConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from snnet_vitdet.building import parameters_of
from snnet_vitdet.errors import InputError, first_line
from snnet_vitdet.files import write_atomically

from .checkpoint import last_checkpoint
from .masks import settle_masks
from .memory_files import files_in_memory
from .settings import check_like, check_settings
from .yaml_files import read_yaml

__all__ = ["EARLIER_GROUPING", "LATER_KEYS", "config_files", "load_config", "save_config"]

logger = logging.getLogger(__name__)

LATER_KEYS = {
    "data.masks": True,
    "train.amp.precision": "auto",
    "train.reference_batch_size": None,
    "train.clip_grad_norm": None,
    "train.tf32": False,
    "train.ema_decay": 0.0,
    "train.ends.period": 0,
    "train.ends.first": 0,
    "train.ends.stitches": "S,L",
    "train.distillation.weight": 0.0,
    "train.distillation.rpn_weight": 0.0,
    "train.distillation.every": 1,
    "sweep.mode": "one_pass",
    "sweep.subset": 0,
    "sweep.precision": "float32",
    "sweep.averaged": True,
    "sweep.overwrite": False,
}
"""Keys that a config.yaml saved by an earlier version has not, with the values of
configs/common/train.py; what it trained had masks."""
REMOVED_KEYS = ("model.backbone.net.exit_rank", "model.backbone.net.exit_norm")
"""Keys of earlier versions whose feature was removed; it was off at null."""
REMOVED_PARTS = {
    "model._target_": "snnet_vitdet.modeling.ExitAwareRCNN",
    "model.roi_heads.box_head._target_": "snnet_vitdet.modeling.ExitAdapterBoxHead",
}
"""Parts of earlier versions that were removed."""
EARLIER_GROUPING = "round"
"""How an earlier version grouped the stitches it drew, without a key (``sampler.grouping``)."""


def load_config(config_file: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Loads a config file and applies ``key=value`` overrides.

    Args:
        config_file: A LazyConfig ``.py`` file, or a ``.yaml`` that a run saved.
        overrides: In detectron2's (hydra's) syntax. A key must exist in the config, or be a
            parameter of the callable its node describes; ``+key=value`` adds any other.

    Raises:
        InputError: If the file or a key does not exist, or an override cannot be parsed; for a key,
            says which there are. If a setting is none of those that it may be (:mod:`.settings`),
            or an override of another type than what it takes the place of.
    """
    if not config_file:
        raise InputError("no config file is given: add --config-file configs/…")
    if not os.path.isfile(config_file):
        # What is in common/ is no config of its own.
        there = sorted(set(glob("configs/*/*.py")) - set(glob("configs/common/*.py")))
        near = difflib.get_close_matches(config_file, there, n=3, cutoff=0.5) or there
        hint = f"; there are {', '.join(near)}" if near else ""
        raise InputError(f"config file {config_file} does not exist{hint}")
    config = _loaded(config_file)
    for key, value in LATER_KEYS.items():
        if key.partition(".")[0] in config and OmegaConf.select(config, key) is None:
            OmegaConf.update(config, key, value, force_add=True)
    _drop_removed(config)
    _name_grouping(config, config_file)
    _follow_folder(config, config_file)
    keys = [_checked_key(config, override) for override in overrides]
    before = copy.deepcopy(config)
    try:
        config = LazyConfig.apply_overrides(config, [o.removeprefix("+") for o in overrides])
    except (OmegaConfBaseException, KeyError, NotImplementedError) as error:
        raise InputError(
            f"overrides {list(overrides)} cannot be applied: {first_line(error)}"
        ) from error
    # A group that is set to null is off, as it is where a config lacks it.
    groups = ("train.ends", "train.distillation")
    null = tuple(f"{g}." for g in groups if OmegaConf.select(config, g, default="") is None)
    for key, value in LATER_KEYS.items():
        if key.startswith(null):
            OmegaConf.update(config, key, value, force_add=True)
    for key in keys:
        check_like(key, before, config)
    check_settings(config)
    # An annotation file that cannot be read is told of where the data are checked.
    with contextlib.suppress(InputError):
        settle_masks(config)
    return config


def save_config(config: DictConfig, path: str) -> None:
    """Writes a config as detectron2's ``LazyConfig.save`` does, as a whole or not at all.

    Raises:
        InputError: If it cannot be written.
    """
    for name, content in config_files(config).items():
        write_atomically(f"{path}{name}", content)


def config_files(config: DictConfig) -> dict[str, bytes]:
    """What is saved of a config, by what is added to the name of its file.

    Besides the readable one, which has the key ``""``, there is a pickled one where something is in
    the config that YAML cannot hold.

    Raises:
        InputError: If it can be saved in no way.
    """
    # In memory: where it cannot write, detectron2 says nothing and leaves half of a file.
    with files_in_memory() as (folder, files):
        LazyConfig.save(config, f"{folder}config")
    if not files:
        raise InputError(
            "the config cannot be saved, neither as YAML nor pickled: give it functions and "
            "classes of a module, and plain values"
        )
    return {name.removeprefix("config"): content for name, content in files.items()}


def _loaded(config_file: str) -> DictConfig:
    if config_file.endswith(".py"):
        return LazyConfig.load(config_file)
    # Everybody expects it of a .py file, and nobody of a .yaml. Said before it happens.
    logger.warning(
        "%s can run code: a config may name any function. If it is not your own, use an exported "
        "file instead (--exported of predict and demo), which runs nothing.",
        config_file,
    )
    try:
        # Nothing in it may hang or fill the memory.
        read_yaml(config_file)
        config = LazyConfig.load(config_file)
        if missing := sorted({"data", "dataloader", "model", "train"} - set(config)):
            raise ValueError(f"it has no {', '.join(missing)}")
    except (
        *(OSError, OmegaConfBaseException, RecursionError, TypeError, ValueError),
        yaml.YAMLError,
    ) as error:
        raise InputError(
            f"config file {config_file} cannot be read ({first_line(error)}): it is damaged or no "
            "config that a run has saved; give the .py file that the training began with"
        ) from error
    return config


def _drop_removed(config: DictConfig) -> None:
    """Drops keys of removed features, where the features are off.

    Raises:
        InputError: If one of the features is on.
    """
    on = [key for key in REMOVED_KEYS if OmegaConf.select(config, key) is not None]
    on += [key for key, part in REMOVED_PARTS.items() if OmegaConf.select(config, key) == part]
    if on:
        raise InputError(
            f"{on[0]}={OmegaConf.select(config, on[0])} cannot be used: this feature was removed, "
            "as it gained no accuracy; a detector that was trained with it needs the version of "
            "this project that trained it"
        )
    for key in REMOVED_KEYS:
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(config, parent)
        if node is not None:
            node.pop(name, None)


def _name_grouping(config: DictConfig, config_file: str) -> None:
    """Writes down how stitches are grouped, where a config leaves it to the default.

    The default has changed: a training that was saved without the key would be resumed with other
    stitches.
    """
    sampler = config.get("sampler", {})
    target = sampler.get("_target_", "")
    name = target if isinstance(target, str) else target.__name__
    if name.endswith("ResourceConstrainedSampler") and "grouping" not in sampler:
        sampler.grouping = "gap" if config_file.endswith(".py") else EARLIER_GROUPING


def _follow_folder(config: DictConfig, config_file: str) -> None:
    """A training's own config.yaml means the folder it lies in, wherever that has been moved to.

    Saved is the folder's path as seen from where the training was started, and the checkpoint that
    it was started from: what is scored, resumed and predicted with is what it has trained since.
    """
    folder, name = os.path.split(config_file)
    if name == "config.yaml" and last_checkpoint(folder):
        config.train.output_dir = folder or "."
        config.train.init_checkpoint = ""


def _checked_key(config: DictConfig, override: str) -> str:
    """The key of an override that can be applied."""
    if override.startswith("-"):
        raise InputError(f"option {override!r} comes after an override: options go before them")
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException as error:
        raise InputError(
            f"override {override!r} cannot be read: write key=value, with quotes around values "
            "that hold spaces, commas or brackets, or begin with ~"
        ) from error
    if parsed.is_sweep_override():  # hydra's own use of commas, to start many runs
        key, _, value = override.partition("=")
        raise InputError(
            f"override {override!r} has commas outside quotes: write \"{key}='{value}'\" for one "
            f'text, or "{key}=[{value}]" for a list (with the double quotes, in a shell)'
        )
    if parsed.is_add():
        return parsed.key_or_group
    node: object = OmegaConf.to_container(config, resolve=False)
    *parents, last = parsed.key_or_group.split(".")
    path = ""
    for part in parents:
        if part not in _keys(node):
            raise _unknown(override, part, path, node)
        node = node[int(part)] if isinstance(node, list) else node[part]
        path = f"{path}.{part}" if path else part
    if last == "_target_" and isinstance(node, Mapping) and last in node:
        return parsed.key_or_group
    if last not in _keys(node) and last not in parameters_of(node):
        raise _unknown(override, last, path, node)
    return parsed.key_or_group


def _keys(node: object) -> list[str]:
    if isinstance(node, Mapping):
        return [str(key) for key in node if key != "_target_"]
    if isinstance(node, list):
        return [str(index) for index in range(len(node))]
    return []


def _unknown(override: str, key: str, path: str, node: object) -> InputError:
    known = sorted({*_keys(node), *parameters_of(node)})
    where = path or "the config"
    if not known:
        return InputError(f"override {override!r}: {where} is a value, it has no key {key!r}")
    near = difflib.get_close_matches(key, known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return InputError(f"override {override!r}: {where} has no key {key!r}{hint}; it has {known}")
