"""Config files: loaded with overrides, saved, and read without running what they name.

``LazyConfig.apply_overrides`` creates a key that does not exist. A misspelt override would change
nothing, and nobody would notice before the end of the training. Here it is an error.
"""

import contextlib
import copy
import difflib
import io
import logging
import os
from collections.abc import Mapping, Sequence
from glob import glob

import yaml
from detectron2.config import LazyConfig
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from iopath.common.file_io import PathHandler
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from snnet_vitdet.building import parameters_of
from snnet_vitdet.errors import InputError, first_line
from snnet_vitdet.files import write_atomically

from .checkpoint import last_checkpoint
from .run_data import settle_masks
from .setting_checks import check_like, check_settings
from .settings import DEFAULTS, GROUPS, Config, add_defaults

__all__ = [
    "EARLIER_VALUES",
    "config_files",
    "load_config",
    "parse_yaml",
    "read_yaml",
    "save_config",
]

_EARLIER_GROUPING = "round"
EARLIER_VALUES = {**DEFAULTS, "sampler.grouping": _EARLIER_GROUPING}
"""What it means that a saved config does not have a key."""
REMOVED_KEYS = ("model.backbone.net.exit_rank", "model.backbone.net.exit_norm")
"""Keys of earlier versions whose feature was removed; it was off at null."""
REMOVED_PARTS = {
    "model._target_": "snnet_vitdet.modeling.ExitAwareRCNN",
    "model.roi_heads.box_head._target_": "snnet_vitdet.modeling.ExitAdapterBoxHead",
}
"""Parts of earlier versions that were removed."""

# The config of the paper has 10,000 bytes and 400 values.
_MOST_BYTES = 1_000_000
_MOST_VALUES = 100_000


def load_config(config_file: str, overrides: Sequence[str] = ()) -> Config:
    """Loads a config file and applies ``key=value`` overrides.

    Settings of :mod:`.settings` that the file lacks have their defaults.

    Args:
        config_file: A LazyConfig ``.py`` file, or a ``.yaml`` that a run saved.
        overrides: In detectron2's (hydra's) syntax. A key must exist in the config, or be a
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


def save_config(config: Config, path: str) -> None:
    """Writes a config as detectron2's ``LazyConfig.save`` does, completely or not at all.

    Raises:
        InputError: If it cannot be written.
    """
    for name, content in config_files(config).items():
        write_atomically(f"{path}{name}", content)


def config_files(config: Config) -> dict[str, bytes]:
    """Returns the files that a config is saved in, by what is added to the path.

    The key ``""`` is the readable YAML file. A pickled file comes with it if the config has
    something that YAML cannot hold.

    Raises:
        InputError: If the config can be saved in neither form.
    """
    # In memory: if detectron2 cannot write, it leaves half of a file and raises nothing.
    _MEMORY.files = {}
    LazyConfig.save(config, _MEMORY.prefix)
    if not _MEMORY.files:
        raise InputError(
            "the config cannot be saved, neither as YAML nor pickled: give it functions and "
            "classes of a module, and plain values"
        )
    return {name: file.getvalue() for name, file in _MEMORY.files.items()}


class _Memory(PathHandler):
    """Keeps the files that detectron2 writes below a prefix."""

    prefix = "snnet-memory://"
    files: dict[str, io.BytesIO]

    def _get_supported_prefixes(self) -> list[str]:
        return [self.prefix]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **_: object) -> io.IOBase:
        file = self.files[path.removeprefix(self.prefix)] = io.BytesIO()
        file.close = lambda: None
        return file if "b" in mode else io.TextIOWrapper(file, encoding="utf-8", write_through=True)


_MEMORY = _Memory()
PathManager.register_handler(_MEMORY)


def _loaded(config_file: str) -> Config:
    if config_file.endswith(".py"):
        return LazyConfig.load(config_file)
    # Everybody knows it of a .py file, and few of a .yaml. The warning comes before it happens.
    # Once in a process: a program may load many configs.
    log_first_n(
        logging.WARNING,
        f"{config_file} can run code: a config may name any function. If it is not your own, use "
        "an exported file instead (--exported of predict and demo), which runs nothing.",
        name=__name__,
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


def _drop_removed(config: Config) -> None:
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


def _name_grouping(config: Config, config_file: str) -> None:
    """Sets how stitches are grouped, if a config leaves it to the default.

    The default has changed: a training that was saved without the key would be resumed with other
    stitches.
    """
    sampler = config.get("sampler", {})
    target = sampler.get("_target_", "")
    name = target if isinstance(target, str) else target.__name__
    if name.endswith("ResourceConstrainedSampler") and "grouping" not in sampler:
        sampler.grouping = "gap" if config_file.endswith(".py") else _EARLIER_GROUPING


def _follow_folder(config: Config, config_file: str) -> None:
    """Makes the config.yaml of a training mean the folder it is in, which may have been moved.

    Saved in it are the folder's path as seen from where the training was started, and the
    checkpoint that it started from. What is swept, resumed or predicted with is what it trained.
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


def read_yaml(path: str) -> Mapping[str, object]:
    """Reads the settings in a YAML file as plain values. Nothing in it is called or can grow.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not a YAML file of settings, or too large.
    """
    if (size := os.path.getsize(path)) > _MOST_BYTES:
        raise ValueError(f"it has {size} bytes, of which {_MOST_BYTES} are read")
    with open(path, "rb") as file:
        return parse_yaml(file.read())


def parse_yaml(text: bytes) -> Mapping[str, object]:
    """Parses the settings in a YAML text, see :func:`read_yaml`.

    Raises:
        ValueError: If it is not a YAML text of settings, or too large with aliases written out.
    """
    try:
        content = yaml.load(text, _Loader)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError) as error:
        # All but the first are raised for scalars that are not what their tags say.
        raise ValueError(str(error) or type(error).__name__) from error
    if not isinstance(content, Mapping):
        raise ValueError("it holds no settings")
    # Aliases of aliases can stand for billions of values, or for themselves.
    left, nodes = _MOST_VALUES, [content]
    while nodes:
        node = nodes.pop()
        left -= 1
        if left < 0:
            raise ValueError(f"it has more than {_MOST_VALUES} values, with aliases written out")
        if isinstance(node, Mapping):
            nodes.extend(node.values())
        elif isinstance(node, (list, tuple, set)):
            nodes.extend(node)
    return content


class _Loader(yaml.SafeLoader):
    """Calls nothing that a file names, unlike detectron2's loading of a config."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merges nothing: merges of merges can be billions, and no saved config has one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Refuses a key that is there twice, of which YAML would take the last one."""
        keys = [str(key.value) for key, _ in node.value]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise ValueError(
                f"it has {twice[0]} twice, in line {node.start_mark.line + 1} and below"
            )
        return super().construct_mapping(node, deep)


def _as_text(loader: yaml.Loader, suffix: str, node: yaml.Node) -> str:
    return yaml.serialize(node)


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", _as_text)
