"""Compares the settings of a resumed training with those it began with."""

import copy
import logging
import os
from collections.abc import Iterator, Mapping

import torch

from snnet_vitdet.errors import InputError, first_line
from snnet_vitdet.files import write_atomically
from snnet_vitdet.text import listed, shown

from .checkpoint import last_checkpoint
from .config import EARLIER_VALUES, config_files, parse_yaml, read_yaml, save_config
from .setting_checks import flat, holds_settings
from .settings import Config

__all__ = ["check_resumed_optimizer", "check_resumed_settings", "save_resumed_config"]

logger = logging.getLogger(__name__)

# Settings that the checkpoint overrides, and the number of images in its iterations.
_REFUSED = ("optimizer", "data.masks", "dataloader.train.total_batch_size")
# Settings that do not change the training from now on.
_FREE = (
    *("train.output_dir", "train.init_checkpoint", "train.device", "train.rehearsal", "train.ddp"),
    *("train.eval_period", "train.eval_stitches", "train.log_period", "train.checkpointer"),
    *("dataloader.test", "dataloader.evaluator", "dataloader.train.num_workers", "init", "sweep"),
    *("data.test_json", "data.test_images", "data.check", "data.prepare.num_test"),
)
# Value of a key that does not exist.
_ABSENT = object()


def check_resumed_settings(config: Config) -> None:
    """Refuses to resume ``train.output_dir`` with changed settings that its checkpoint overrides.

    Raises:
        InputError: If there are such settings, or the training's config.yaml cannot be read.
    """
    folder = config.train.output_dir
    if not last_checkpoint(folder):
        return
    changes = [change for change in _changes(folder, config) if _is_in(change[0], _REFUSED)]
    if changes:
        raise InputError(
            f"the training in {folder} has {_text(changes, 0)}, which its checkpoint goes on with, "
            f"but the config now has {_text(changes, 1)}: resume it {_remedy(changes)}, or "
            "start another training from its checkpoint with train.init_checkpoint and a "
            "train.output_dir of its own"
        )


def check_resumed_optimizer(optimizer: torch.optim.Optimizer, state: Mapping) -> None:
    """Refuses a checkpoint whose optimizer has other settings than the config, or is damaged.

    In contrast to config.yaml, which can be edited, this state is what would be used.

    Args:
        optimizer: The optimizer that the config builds.
        state: State of the checkpoint's optimizer, which would replace the settings.

    Raises:
        InputError: If a setting of a group differs, or the state of a parameter is incomplete, of
            another shape or not finite.
    """
    # Keys that every trained parameter has.
    wanted = {key for kept in state["state"].values() for key in kept}
    if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        wanted |= {"step", "exp_avg", "exp_avg_sq"}
    for own, saved in zip(optimizer.param_groups, state["param_groups"], strict=False):
        # The schedule changes lr and keeps initial_lr.
        saved = {**saved, "lr": saved.get("initial_lr", saved.get("lr"))}
        for key in ("lr", "weight_decay", "betas", "momentum", "eps"):
            if key in own and key in saved and not _same(own[key], saved[key]):
                raise InputError(
                    f"the optimizer of the checkpoint has {key}={saved[key]} where the config has "
                    f"{key}={own[key]}, for the same parameters: resume it with the optimizer.* "
                    "it began with, or start another training from the checkpoint with "
                    "train.init_checkpoint and a train.output_dir of its own"
                )
        for parameter, index in zip(own["params"], saved["params"], strict=False):
            kept = state["state"].get(index, {})
            missing = sorted(wanted - kept.keys()) if kept else []
            faults = [f"it has no {listed(missing)}"] if missing else []
            faults += [
                f"its {shown(key)} {fault}"
                for key, value in kept.items()
                if (fault := _fault(value, parameter))
            ]
            if faults:
                raise InputError(
                    f"the optimizer of the checkpoint is damaged: of a parameter of the shape "
                    f"{tuple(parameter.shape)} {faults[0]}; resume from an earlier checkpoint, or "
                    "start another training from this one with train.init_checkpoint"
                )


def _fault(value: object, parameter: torch.Tensor) -> str:
    """What is wrong with a value in the optimizer's state of a parameter, if anything."""
    if not torch.is_tensor(value):
        return "" if value is None or isinstance(value, int | float) else "is no tensor"
    if value.is_nested:
        return "is a nested tensor"
    # A single number is the count of steps.
    if value.ndim and value.shape != parameter.shape:
        return f"has the shape {tuple(value.shape)}"
    if value.layout != torch.strided or value.is_meta or not torch.isfinite(value.float()).all():
        return "has other than finite values"
    return ""


def _same(own: object, saved: object) -> bool:
    return list(own) == list(saved) if isinstance(own, tuple | list) else own == saved


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
        # A file that exists was used in an iteration; the current one was not.
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
    # As it is read when it has been written.
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
        f"no {key}" if values[place] is _ABSENT else f"{key}={values[place]}"
        for key, *values in changes
    )


def _remedy(changes: list[tuple[str, object, object]]) -> str:
    """The overrides that restore the earlier values."""
    # + adds a key that the config does not have.
    given = [
        f"{'+' * (now is _ABSENT)}{key}={before}"
        for key, before, now in changes
        if before is not _ABSENT
    ]
    left_out = [key for key, before, _ in changes if before is _ABSENT]
    ways = {"with": given, "without": left_out}
    return " and ".join(f"{word} {', '.join(keys)}" for word, keys in ways.items() if keys)
