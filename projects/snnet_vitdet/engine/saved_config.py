"""The config.yaml of a run: saved, read without running what it names, compared at a resume."""

import copy
import io
import logging
import os
from collections.abc import Iterator, Mapping

import yaml
from detectron2.config import LazyConfig
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

from snnet_vitdet.errors import InputError, first_line
from snnet_vitdet.files import write_atomically
from snnet_vitdet.validators import written

from .checkpoint import last_checkpoint
from .setting_checks import flat, holds_settings
from .settings import DEFAULTS, Config

__all__ = [
    "EARLIER_VALUES",
    "check_resumed_settings",
    "read_yaml",
    "save_config",
    "save_resumed_config",
]

logger = logging.getLogger(__name__)

EARLIER_VALUES = {**DEFAULTS, "sampler.grouping": "round"}
"""The values of keys that a saved config lacks."""

# The config of the paper has 10,000 bytes and 400 values.
_MOST_BYTES = 1_000_000
_MOST_VALUES = 100_000

# Settings that the checkpoint overrides, such as the size that its positions are stored for, and
# the number of images in its iterations.
_REFUSED = (*("optimizer", "data.masks", "data.image_size", "dataloader.train.total_batch_size"),)
# Settings that do not change the training from now on, even if they are in a group of _REFUSED.
_FREE = (
    # Kernels of the same step.
    *("optimizer.fused", "optimizer.foreach"),
    *("train.output_dir", "train.init_checkpoint", "train.device", "train.rehearsal", "train.ddp"),
    *("train.eval_period", "train.eval_stitches", "train.log_period", "train.checkpointer"),
    *("dataloader.test", "dataloader.evaluator", "dataloader.train.num_workers", "init", "sweep"),
    *("data.test_json", "data.test_images", "data.check", "data.prepare.num_test"),
)
# Value of a key that does not exist.
_ABSENT = object()


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


def read_yaml(path: str) -> Mapping[str, object]:
    """Reads the settings in a YAML file as plain values; calls nothing that the file names.

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


def check_resumed_settings(config: Config) -> None:
    """Refuses to resume ``train.output_dir`` with changed settings that its checkpoint overrides.

    Raises:
        InputError: If there are such settings, or the training's config.yaml cannot be read.
    """
    folder = config.train.output_dir
    if not last_checkpoint(folder):
        return
    changes = [
        change
        for change in _changes(folder, config)
        if _is_in(change[0], _REFUSED) and not _is_in(change[0], _FREE)
    ]
    if changes:
        raise InputError(
            f"the training in {folder} has {_text(changes, 0)}, which its checkpoint goes on with, "
            f"but the config now has {_text(changes, 1)}: resume it {_remedy(changes)}, or "
            "start another training from its checkpoint with train.init_checkpoint and a "
            "train.output_dir of its own"
        )


def save_resumed_config(config: Config, iteration: int) -> None:
    """Writes the config.yaml of a resumed training, and warns of changed settings.

    If a change affects the training, the earlier file stays as ``config_until_….yaml``. How the
    training was initialised stays on record.

    Args:
        config: The whole config.
        iteration: The first iteration with this config.

    Raises:
        InputError: If it cannot be written, or the earlier one cannot be read.
    """
    folder = config.train.output_dir
    path = os.path.join(folder, "config.yaml")
    all_changes = _changes(folder, config)
    changes = [change for change in all_changes if not _is_in(change[0], _FREE)]
    if changes:
        before = os.path.join(folder, f"config_until_{iteration:07d}.yaml")
        # A file of this name describes iterations that were trained; the current one does not yet.
        if not os.path.exists(before):
            with open(path, "rb") as file:
                write_atomically(before, file.read())
        logger.warning(
            "From iteration %d on, other settings than before: %s instead of %s. The earlier "
            "config is %s.",
            iteration,
            _text(changes, 1),
            _text(changes, 0),
            before,
        )
    config = copy.deepcopy(config)
    if os.path.isfile(path):
        start = [
            change
            for change in all_changes
            if change[0].startswith("init.") and change[2] not in (None, _ABSENT)
        ]
        given, saved = config.train.init_checkpoint, _read(path)
        config.train.init_checkpoint = saved.get("train", {}).get("init_checkpoint", "")
        if given and given != config.train.init_checkpoint:
            start.append(("train.init_checkpoint", config.train.init_checkpoint, given))
        if "init" in saved:
            config.init = saved["init"]
        if start:
            logger.warning(
                "%s %s no effect: the training goes on from its own last checkpoint.",
                _text(start, 1),
                "has" if len(start) == 1 else "have",
            )
    save_config(config, path)


def _changes(folder: str, config: Config) -> list[tuple[str, object, object]]:
    """Name, earlier value and current value of the settings that differ."""
    path = os.path.join(folder, "config.yaml")
    if not os.path.isfile(path):
        return []
    before = EARLIER_VALUES | dict(_flat(_read(path)))
    # Written and read back, so that both sides have the same types.
    now = EARLIER_VALUES | dict(_flat(parse_yaml(config_files(config).get("", b"{}"))))
    return [
        (key, before.get(key, _ABSENT), now.get(key, _ABSENT))
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]


def _read(path: str) -> Mapping[str, object]:
    try:
        content = read_yaml(path)
        # Keys are sorted: a file that was cut off between two lines lacks the last ones.
        if "stitch_scope" not in (content.get("train") or {}):
            raise ValueError("it is incomplete")
    except (OSError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({first_line(error)}), so that the current settings cannot be "
            "compared with those the training began with: restore it, or remove it to go on "
            "without comparing"
        ) from error
    return content


def _flat(node: Mapping) -> Iterator[tuple[str, object]]:
    """Dotted names and values of the settings, without the groups that hold them."""
    return ((key, value) for key, value in flat(node) if not holds_settings(value))


def _is_in(key: str, groups: tuple[str, ...]) -> bool:
    return any(key == group or key.startswith(f"{group}.") for group in groups)


def _text(changes: list[tuple[str, object, object]], place: int) -> str:
    return ", ".join(
        f"no {key}" if values[place] is _ABSENT else f"{key}={written(values[place])}"
        for key, *values in changes
    )


def _remedy(changes: list[tuple[str, object, object]]) -> str:
    """The overrides that restore the earlier values."""
    # + adds a key that the config does not have.
    given = [
        f"{'+' * (now is _ABSENT)}{key}={written(before)}"
        for key, before, now in changes
        if before is not _ABSENT
    ]
    left_out = [key for key, before, _ in changes if before is _ABSENT]
    ways = {"with": given, "without": left_out}
    return " and ".join(f"{word} {', '.join(keys)}" for word, keys in ways.items() if keys)
