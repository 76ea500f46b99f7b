"""Checks of every value in a config, before anything is built or read.

The settings of this project have the validators of their dataclasses. Most arguments of objects of
detectron2 and torch are checked by these themselves; :mod:`.dry_run` builds and tries them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import get_args

from omegaconf import OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from snnet_vitdet.building import parameters_of
from snnet_vitdet.errors import InputError, first_line
from snnet_vitdet.validators import (
    FLAG,
    PATH,
    TEXT,
    Validator,
    check,
    is_number,
    number,
    numbers,
    one_of,
    or_null,
    whole,
    written,
)

from .settings import LEFT_TO_USER, OWN_VALIDATORS, SEED, SIDE, Config, Settings

__all__ = ["SETTINGS", "check_like", "check_present", "check_settings", "flat", "holds_settings"]

# More processes than a machine has cores.
_WORKERS = whole(0, 1024)

SETTINGS: dict[str, Validator] = {
    **OWN_VALIDATORS,
    "init.weights.*": or_null(TEXT),
    "init.detectors.*": or_null(TEXT),
    "data.prepare.root": PATH,
    "data.prepare.num_train": whole(1, 10**6),
    "data.prepare.num_test": whole(1, 10**6),
    "data.prepare.image_size": SIDE,
    "data.prepare.seed": SEED,
    "dataloader.train.total_batch_size": whole(1),
    "dataloader.train.num_workers": _WORKERS,
    "dataloader.train.seed": SEED,
    "dataloader.test.num_workers": _WORKERS,
    "dataloader.test.batch_size": whole(1),
    "dataloader.*.dataset.json_file": PATH,
    "dataloader.*.dataset.image_root": PATH,
    "dataloader.*.dataset.filter_empty": FLAG,
    "dataloader.train.mapper.is_train": one_of(True),
    "dataloader.test.mapper.is_train": one_of(False),
    "dataloader.*.mapper.use_instance_mask": FLAG,
    "dataloader.*.mapper.instance_mask_format": one_of("polygon", "bitmask"),
    "dataloader.*.mapper.recompute_boxes": FLAG,
    "dataloader.*.mapper.image_format": one_of("RGB", "BGR", "YUV-BT.601"),
    "dataloader.evaluator.dataset_name.json_file": PATH,
    "dataloader.evaluator.dataset_name.image_root": PATH,
    # detectron2 would take any number, and train or find nothing.
    "model.proposal_generator.batch_size_per_image": whole(1),
    "model.proposal_generator.positive_fraction": number(0, 1),
    "model.proposal_generator.nms_thresh": number(0, 1),
    "model.roi_heads.batch_size_per_image": whole(1),
    "model.roi_heads.positive_fraction": number(0, 1),
    "model.roi_heads.*.test_score_thresh": number(0, 1),
    "model.roi_heads.*.test_nms_thresh": number(0, 1),
    "model.roi_heads.*.test_topk_per_image": whole(-1),
    "model.pixel_mean": numbers(3, number()),
    "model.input_format": one_of("RGB", "BGR"),
    "model.pixel_std": numbers(3, number(above=0)),
    "optimizer.lr": number(above=0),
}
"""The validator of every key that has one; a ``*`` stands for any text.

Besides the settings of this project, these are arguments that nobody else checks.
"""

# Anything but a group of settings would fail in another place, without the name of the key.
_GROUPS = (
    *(group.key for group in Settings.__subclasses__()),
    *("dataloader", "lr_multiplier", "model", "optimizer", "optimizer.params", "sampler"),
    *("model.backbone", "model.backbone.net", "model.proposal_generator", "model.roi_heads"),
    *("dataloader.train", "dataloader.test", "dataloader.evaluator", "init.weights"),
    *("dataloader.train.mapper", "dataloader.test.mapper"),
)
# Parts of a config that have no default.
_PARTS = (
    "dataloader.test",
    "dataloader.evaluator",
    "model.backbone",
    "model.roi_heads.num_classes",
)
_TRAINING_PARTS = ("dataloader.train", "lr_multiplier", "optimizer", "init.weights")

# Besides its own kind; an object may replace the value that names it.
_MAY_BECOME = {
    "a number": ("a list of numbers", "a group of settings"),
    "a text": ("a group of settings",),
    "a list": ("a list of numbers",),
    "another object": ("a group of settings", "a text"),
}
_ABSENT = object()


def check_present(config: Config, *, training: bool) -> None:
    """Checks that a config has the parts that a run needs.

    Raises:
        InputError: If it lacks one.
    """
    for key in (*_PARTS, *(_TRAINING_PARTS if training else ())):
        if _value_at(config, key) is _ABSENT:
            raise InputError(
                f"the config has no {key}: begin with a config of configs/, which has all keys"
            )


def check_settings(config: Config) -> None:
    """Checks the groups of a config and every setting in it, except those left to the user.

    Raises:
        InputError: If a setting has a value that is not allowed; names the first one.
    """
    for group in _GROUPS:
        value = _value_at(config, group)
        if value is not _ABSENT and not isinstance(value, Mapping):
            raise InputError(
                f"{group}={written(value)} must be a group of settings: leave it as it is, and "
                "change settings in it one by one"
            )
    for key, value in _settings(config):
        for validator in _validators(key):
            check(key, value, validator)
        if any(isinstance(part, float) and not math.isfinite(part) for part in _parts(value)):
            raise InputError(f"{key}={written(value)} must be a finite number")


def check_like(key: str, before: Config, after: Config) -> None:
    """Checks that an override without a validator has the type of the value that it replaces.

    Null may replace anything, and anything may replace null: the object that takes the value checks
    it. A list of numbers may replace a number, as several image sizes may replace one.

    Args:
        key: The key of the override.
        before: The config without the override.
        after: The config with the override.

    Raises:
        InputError: If the types differ.
    """
    old, new = _value_at(before, key), _value_at(after, key)
    if _ABSENT is old or _ABSENT is new or None in (old, new) or _validators(key):
        return
    must_be, kind = _kind(old), _kind(new)
    is_object = isinstance(old, Mapping) and "_target_" in old  # may be given as it is
    is_text = kind == "a text" and _takes_text(after, key)
    if kind not in (must_be, *_MAY_BECOME.get(must_be, ())) and not is_object and not is_text:
        raise InputError(f"{key}={written(new)} must be {must_be}, as {written(old)} is")


def _kind(value: object) -> str:
    if isinstance(value, Mapping):
        return "a group of settings"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, str):
        return "a text"
    if is_number(value):
        return "a number"
    if isinstance(value, Sequence):
        return "a list of numbers" if all(map(is_number, _parts(value))) else "a list"
    return "another object"


def _takes_text(config: Config, key: str) -> bool:
    """Whether the parameter of a key may be a text besides something else, such as a flag."""
    node, _, name = key.rpartition(".")
    parameter = parameters_of(OmegaConf.select(config, node)).get(name)
    return parameter is not None and str in get_args(parameter.annotation)


def _validators(key: str) -> list[Validator]:
    return [validator for pattern, validator in SETTINGS.items() if fnmatchcase(key, pattern)]


def flat(node: Mapping | list, path: str = "") -> Iterator[tuple[str, object]]:
    """Yields dotted name and value of everything in plain groups and lists of groups."""
    for name, value in node.items() if isinstance(node, Mapping) else enumerate(node):
        key = f"{path}.{name}" if path else str(name)
        yield key, value
        if holds_settings(value):
            yield from flat(value, key)


def holds_settings(value: object) -> bool:
    """Returns whether a value is a group or a list of groups, not a setting itself."""
    return isinstance(value, Mapping) or (
        isinstance(value, list) and any(isinstance(part, Mapping) for part in value)
    )


def _settings(config: Config) -> Iterator[tuple[str, object]]:
    """Yields dotted name and value of everything in a config, except what is left to the user.

    Keys that refer to others come last, so that an error names the key that has the wrong value.

    Raises:
        InputError: If a key with a validator refers to a key that does not exist.
    """
    referring = []
    for key, value in flat(OmegaConf.to_container(config, resolve=False)):
        if any(isinstance(part, str) and "${" in part for part in _parts(value)):
            referring.append(key)
        elif value != LEFT_TO_USER:
            yield key, value
    for key in referring:
        try:
            value = OmegaConf.select(config, key)
            if OmegaConf.is_config(value):
                value = OmegaConf.to_container(value, resolve=True)
        except InterpolationToMissingValueError:
            continue
        except OmegaConfBaseException as error:
            # Other keys are reported by the part that uses them.
            if _validators(key) or key in _GROUPS:
                raise InputError(
                    f"{key} refers to what is not there ({first_line(error)}): correct it"
                ) from error
            continue
        yield key, value


def _value_at(config: Config, key: str) -> object:
    """The plain value of a key, or _ABSENT."""
    try:
        value = OmegaConf.select(config, key, default=_ABSENT, throw_on_missing=True)
        is_list = OmegaConf.is_list(value)
        plain = OmegaConf.is_config(value)
        return OmegaConf.to_container(value, resolve=is_list) if plain else value
    except OmegaConfBaseException:
        return _ABSENT


def _parts(value: object) -> Iterator[object]:
    """All that is in a list of lists, or the value itself."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        for part in value:
            yield from _parts(part)
    else:
        yield value
