"""The settings of a resumed training, beside those it began with."""

import copy
import logging
import os
from collections.abc import Iterator, Mapping

import torch
from omegaconf import DictConfig

from snnet_vitdet.errors import InputError, first_line
from snnet_vitdet.files import write_atomically
from snnet_vitdet.text import listed, shown

from .checkpoint import last_checkpoint
from .config import EARLIER_VALUES, config_files, parse_yaml, read_yaml, save_config

__all__ = ["check_resumed_optimizer", "check_resumed_settings", "save_resumed_config"]

logger = logging.getLogger(__name__)

# What the checkpoint has, so that a config that says otherwise would not be followed; and the
# number of images that an iteration of the checkpoint stands for.
_REFUSED = ("optimizer", "data.masks", "dataloader.train.total_batch_size")
# Without influence on what is trained from now on.
_FREE = (
    *("train.output_dir", "train.init_checkpoint", "train.device", "train.rehearsal", "train.ddp"),
    *("train.eval_period", "train.eval_stitches", "train.log_period", "train.checkpointer"),
    *("dataloader.test", "dataloader.evaluator", "dataloader.train.num_workers", "init", "sweep"),
    *("data.test_json", "data.test_images", "data.check", "data.prepare.num_test"),
)
# In the place of the value of a key that is not there.
_ABSENT = object()


def check_resumed_settings(config: DictConfig) -> None:
    """Refuses to go on with settings that the checkpoint overrides.

    Args:
        config: The whole config of a run that resumes ``train.output_dir``.

    Raises:
        InputError: If there are such settings, by name, or the training's config.yaml is broken.
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
    """Refuses to go on with a checkpoint whose optimizer has other settings than the config gave.

    This holds whatever a config.yaml says, which somebody may have edited.

    Args:
        optimizer: As the config has built it.
        state: Of the checkpoint's optimizer, which would replace these settings.

    Raises:
        InputError: If a number of a group differs, or what the optimizer keeps of a parameter is
            of another shape or not finite.
    """
    # What each parameter that has been trained has.
    wanted = {key for kept in state["state"].values() for key in kept}
    if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        wanted |= {"step", "exp_avg", "exp_avg_sq"}
    for own, saved in zip(optimizer.param_groups, state["param_groups"], strict=False):
        # The schedule changes the one, and keeps the other.
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
            if kept and (missing := sorted(wanted - kept.keys())):
                raise InputError(
                    f"the optimizer of the checkpoint is damaged: of a parameter of the shape "
                    f"{tuple(parameter.shape)} it has no {listed(missing)}; resume from an earlier "
                    "checkpoint, or start another training from this one with "
                    "train.init_checkpoint"
                )
            for key, value in kept.items():
                if fault := _fault(value, parameter):
                    raise InputError(
                        f"the optimizer of the checkpoint is damaged: its {shown(key)} of a "
                        f"parameter of the shape {tuple(parameter.shape)} {fault}; resume from an "
                        "earlier checkpoint, or start another training from this one with "
                        "train.init_checkpoint"
                    )


def _fault(value: object, parameter: torch.Tensor) -> str:
    """What is wrong with what an optimizer keeps of a parameter, if anything."""
    if not torch.is_tensor(value):
        return "" if value is None or isinstance(value, int | float) else "is no tensor"
    if value.is_nested:
        return "is a nested tensor"
    # One number is a count of steps.
    if value.ndim and value.shape != parameter.shape:
        return f"has the shape {tuple(value.shape)}"
    if value.layout != torch.strided or value.is_meta or not torch.isfinite(value.float()).all():
        return "has other than finite values"
    return ""


def _same(own: object, saved: object) -> bool:
    return list(own) == list(saved) if isinstance(own, tuple | list) else own == saved


def save_resumed_config(config: DictConfig, iteration: int) -> None:
    """Writes the config.yaml of a training that goes on, and says what it changes.

    If anything that matters is changed, the one of before stays as ``config_until_….yaml``.

    Args:
        config: The whole config.
        iteration: The first one that is trained with it.

    Raises:
        InputError: If it cannot be written, or that of before cannot be read.
    """
    folder = config.train.output_dir
    path = os.path.join(folder, "config.yaml")
    changes = [change for change in _changes(folder, config) if not _is_in(change[0], _FREE)]
    if changes:
        before = os.path.join(folder, f"config_until_{iteration:07d}.yaml")
        # One that is there has had iterations, and that of now has not had any.
        if not os.path.exists(before):
            with open(path, "rb") as file:
                write_atomically(before, file.read())
        logger.warning(
            "From iteration %d on, other settings than before: %s instead of %s. Those of before "
            "are in %s.",
            iteration,
            _text(changes, 1),
            _text(changes, 0),
            before,
        )
    # What the training was started from stays on record.
    config = copy.deepcopy(config)
    if os.path.isfile(path):
        given = config.train.init_checkpoint
        config.train.init_checkpoint = _read(path).get("train", {}).get("init_checkpoint", "")
        if given and given != config.train.init_checkpoint:
            logger.warning(
                "train.init_checkpoint=%s has no effect: the training goes on from its own last "
                "checkpoint.",
                given,
            )
    save_config(config, path)


def _changes(folder: str, config: DictConfig) -> list[tuple[str, object, object]]:
    """Name, value before and value now of what differs."""
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
        # Its keys are sorted: a file that was cut off between two lines has not the last ones.
        if "stitch_scope" not in (content.get("train") or {}):
            raise ValueError("it is incomplete")
    except (OSError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({first_line(error)}), so that the settings of now cannot be "
            "compared with those the training began with: restore it, or remove it to go on "
            "without comparing"
        ) from error
    return content


def _flat(node: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Dotted names and values."""
    if isinstance(node, Mapping):
        children = node.items()
    elif isinstance(node, list) and any(isinstance(child, Mapping) for child in node):
        children = enumerate(node)
    else:
        yield path, node
        return
    for key, value in children:
        yield from _flat(value, f"{path}.{key}" if path else str(key))


def _is_in(key: str, groups: tuple[str, ...]) -> bool:
    return any(key == group or key.startswith(f"{group}.") for group in groups)


def _text(changes: list[tuple[str, object, object]], place: int) -> str:
    return ", ".join(
        f"no {key}" if values[place] is _ABSENT else f"{key}={values[place]}"
        for key, *values in changes
    )


def _remedy(changes: list[tuple[str, object, object]]) -> str:
    """How to have the values of before."""
    # What the config has not, + adds.
    given = [
        f"{'+' * (now is _ABSENT)}{key}={before}"
        for key, before, now in changes
        if before is not _ABSENT
    ]
    left_out = [key for key, before, _ in changes if before is _ABSENT]
    ways = {"with": given, "without": left_out}
    return " and ".join(f"{word} {', '.join(keys)}" for word, keys in ways.items() if keys)
