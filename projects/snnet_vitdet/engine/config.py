"""Loads a config file, of this version or an earlier one, and applies overrides to it.

``LazyConfig.apply_overrides`` creates a key that does not exist. A misspelt override would change
nothing, and nobody would notice before the end of the training. Here it is an error.
"""

import argparse
import contextlib
import copy
import difflib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from glob import glob

import numpy as np
import yaml
from detectron2.config import LazyConfig
from detectron2.utils.logger import log_first_n
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from snnet_vitdet.building import parameters_of
from snnet_vitdet.errors import InputError, first_line

from .checkpoint import last_checkpoint
from .run_data import settle_masks
from .saved_config import EARLIER_VALUES, read_yaml
from .setting_checks import check_like, check_settings, flat
from .settings import GROUPS, Config, add_defaults

__all__ = ["load_config", "parse_with_overrides"]

logger = logging.getLogger(__name__)

# Keys of earlier versions whose feature was removed; it was off at null.
_REMOVED_KEYS = ("model.backbone.net.exit_rank", "model.backbone.net.exit_norm")
# Parts of earlier versions that were removed.
_REMOVED_PARTS = {
    "model._target_": "snnet_vitdet.modeling.ExitAwareRCNN",
    "model.roi_heads.box_head._target_": "snnet_vitdet.modeling.ExitAdapterBoxHead",
}


def load_config(config_file: str, overrides: Sequence[str] = ()) -> Config:
    """Loads a config file and applies ``key=value`` overrides.

    Settings of :mod:`.settings` that the file lacks have their defaults.

    Args:
        config_file: A LazyConfig ``.py`` file, or a ``.yaml`` that a run saved.
        overrides: Changes in detectron2's (hydra's) syntax. A key must exist in the config, or be a
            parameter of the callable its node describes; ``+key=value`` adds any other.

    Raises:
        InputError: If the file or a key does not exist, or an override cannot be parsed; for a key,
            names those that exist. If a setting has a value that is not allowed, or an override
            another type than the value that it replaces.
    """
    if not config_file:
        raise InputError("no config file is given: add --config-file configs/…")
    if not os.path.isfile(config_file):
        # The files in common/ are parts of configs.
        there = sorted(set(glob("configs/*/*.py")) - set(glob("configs/common/*.py")))
        near = difflib.get_close_matches(config_file, there, n=3, cutoff=0.5) or there
        hint = f"; there are {', '.join(near)}" if near else ""
        raise InputError(f"config file {config_file} does not exist{hint}")
    config = _loaded(config_file)
    lacking = [group for group in GROUPS if group.key not in config]
    if lacking and config_file.endswith(".py"):
        # LazyConfig drops what is not a dict, a dataclass for instance.
        key, name = lacking[0].key, lacking[0].__name__
        raise InputError(
            f"{config_file} has no group {key}: import it from another config, or write "
            f"{key} = as_config({name}(…)), both of snnet_vitdet.engine, or {key} = dict(…)"
        )
    add_defaults(config)
    _use_python_numbers(config)
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
    add_defaults(config)  # a group that an override has set to null is off
    for key in keys:
        check_like(key, before, config)
    check_settings(config)
    # A broken annotation file is reported where the data are checked.
    with contextlib.suppress(InputError):
        settle_masks(config)
    return config


def parse_with_overrides(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parses the command line of a tool, with overrides of the config anywhere in it.

    argparse would take an override for one more value of an option with several values before it.

    Args:
        parser: Its positional argument ``opts`` takes the overrides.
    """
    words = sys.argv[1:]
    overrides = [word for word in words if "=" in word and not word.startswith("-")]
    args = parser.parse_args([word for word in words if word not in overrides])
    args.opts = [*args.opts, *overrides]
    return args


def _loaded(config_file: str) -> Config:
    if config_file.endswith(".py"):
        return LazyConfig.load(config_file)
    # Few users expect a .yaml to run code. The warning comes before it is loaded, once for a file.
    log_first_n(
        logging.WARNING,
        f"{config_file} can run code: a config may name any function. If it is not your own, use "
        "an exported file instead (--exported of predict and demo), which runs nothing.",
        name=__name__,
        key="message",
    )
    try:
        read_yaml(config_file)  # refuses what would hang or fill the memory
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


def _use_python_numbers(config: Config) -> None:
    """Replaces the numbers of numpy, which the arithmetic in a config file may give."""
    for key, value in flat(OmegaConf.to_container(config, resolve=False)):
        parts = value if isinstance(value, list) else [value]
        if any(isinstance(part, np.generic) for part in parts):
            plain = [part.item() if isinstance(part, np.generic) else part for part in parts]
            OmegaConf.update(config, key, plain if isinstance(value, list) else plain[0])


def _drop_removed(config: Config) -> None:
    """Drops keys of removed features, where the features are off.

    Raises:
        InputError: If one of the features is on.
    """
    on = [key for key in _REMOVED_KEYS if OmegaConf.select(config, key) is not None]
    on += [key for key, part in _REMOVED_PARTS.items() if OmegaConf.select(config, key) == part]
    if on:
        raise InputError(
            f"{on[0]}={OmegaConf.select(config, on[0])} cannot be used: this feature was removed, "
            "as it gained no accuracy; a detector that was trained with it needs the version of "
            "this project that trained it"
        )
    for key in _REMOVED_KEYS:
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(config, parent)
        if node is not None:
            node.pop(name, None)


def _name_grouping(config: Config, config_file: str) -> None:
    """Sets how stitches are grouped, if a config leaves it to the default.

    The default has changed: a training that was saved without the key would be resumed with other
    stitches.
    """
    sampler = config.get("sampler") or {}
    target = sampler.get("_target_", "")
    name = target if isinstance(target, str) else target.__name__
    if name.endswith("ResourceConstrainedSampler") and "grouping" not in sampler:
        sampler.grouping = (
            "gap" if config_file.endswith(".py") else EARLIER_VALUES["sampler.grouping"]
        )


def _follow_folder(config: Config, config_file: str) -> None:
    """Points the config.yaml of a training to its own folder, which may have been moved.

    The file has the folder's path relative to where the training was started, and the checkpoint
    that it started from. A sweep, a resume or a prediction takes what the training has written.
    """
    folder, name = os.path.split(config_file)
    if name == "config.yaml" and last_checkpoint(folder):
        config.train.output_dir = folder or "."
        config.train.init_checkpoint = ""


def _checked_key(config: Config, override: str) -> str:
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
    is_target = last == "_target_" and isinstance(node, Mapping) and last in node
    if not is_target and last not in _keys(node) and last not in parameters_of(node):
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
