"""What settings may be, most of them our own: checked before anything is read.

What the parts of detectron2 and torch take is theirs to say: :mod:`.dry_run` builds and tries them.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import get_args

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from snnet_vitdet.building import parameters_of
from snnet_vitdet.errors import InputError, first_line
from snnet_vitdet.values import (
    FLAG,
    PATH,
    STITCHES,
    TEXT,
    Kind,
    check,
    is_number,
    number,
    numbers,
    one_of,
    or_null,
    whole,
    written,
)

__all__ = [
    "ACCUMULATION_STITCHES",
    "HIGHEST_SEED",
    "SCOPES",
    "SETTINGS",
    "check_like",
    "check_settings",
    "needed",
]

SCOPES = ("shared", "process")
ACCUMULATION_STITCHES = ("own", "same")
HIGHEST_SEED = 2**32 - 1
"""numpy takes no higher one."""
_SEED = whole(0, HIGHEST_SEED)
# Below, there is hardly a patch; above, no memory holds the attention of so many.
_SIDE = whole(32, 16384)
# More processes than any machine has cores.
_WORKERS = whole(0, 1024)

SETTINGS = {
    "data.train_json": PATH,
    "data.train_images": PATH,
    "data.test_json": PATH,
    "data.test_images": PATH,
    "data.image_size": _SIDE,
    "data.check": FLAG,
    "data.masks": one_of("auto", True, False),
    "data.prepare.root": PATH,
    "data.prepare.num_train": whole(1, 10**6),
    "data.prepare.num_test": whole(1, 10**6),
    "data.prepare.image_size": _SIDE,
    "data.prepare.seed": _SEED,
    "dataloader.train.total_batch_size": whole(1),
    "dataloader.train.num_workers": _WORKERS,
    "dataloader.train.seed": _SEED,
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
    "init.weights.*": or_null(TEXT),
    "init.detectors.*": or_null(TEXT),
    "init.stitching_layers": one_of("least_squares", "random"),
    "init.num_images": whole(1),
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
    "train.output_dir": PATH,
    "train.init_checkpoint": or_null(TEXT),
    "train.device": TEXT,
    "train.seed": _SEED,
    "train.max_iter": whole(0),
    "train.eval_period": whole(0),
    "train.log_period": whole(1),
    "train.eval_stitches": STITCHES,
    "train.checkpointer.period": whole(1),
    "train.checkpointer.max_to_keep": or_null(whole(1)),
    "train.amp.enabled": FLAG,
    "train.amp.precision": one_of("auto", "float16", "bfloat16"),
    "train.tf32": FLAG,
    "train.clip_grad_norm": or_null(number(above=0)),
    "train.ema_decay": number(0, below=1),
    "train.ddp.broadcast_buffers": FLAG,
    "train.ddp.find_unused_parameters": FLAG,
    "train.ddp.fp16_compression": FLAG,
    "train.stitch_scope": one_of(*SCOPES),
    "train.accumulation.steps": whole(1),
    "train.accumulation.stitch": one_of(*ACCUMULATION_STITCHES),
    "train.reference_batch_size": or_null(whole(1)),
    "train.freeze_anchors": whole(0),
    "train.ends.period": whole(0),
    "train.ends.first": whole(0),
    "train.ends.stitches": STITCHES,
    "train.distillation.weight": number(0),
    "train.distillation.rpn_weight": number(0),
    "train.distillation.every": whole(1),
    "train.rehearsal": FLAG,
    "sweep.stitch_ids": STITCHES,
    "sweep.mode": one_of("one_pass", "separate"),
    "sweep.subset": whole(0),
    "sweep.precision": one_of("float32", "float16", "bfloat16"),
    "sweep.averaged": FLAG,
    "sweep.overwrite": FLAG,
    "sweep.at_initialisation": FLAG,
}
"""What may be said of each of our own keys."""

_GROUPS = (
    *("data", "dataloader", "init", "lr_multiplier", "model", "optimizer", "sampler", "sweep"),
    *("model.backbone", "model.backbone.net", "model.proposal_generator", "model.roi_heads"),
    "optimizer.params",
    *("train", "dataloader.train", "dataloader.test", "dataloader.evaluator", "init.weights"),
    *("train.accumulation", "train.amp", "train.checkpointer", "train.ddp"),
    *("train.distillation", "train.ends", "dataloader.train.mapper", "dataloader.test.mapper"),
)


# Of those that a run cannot do without.
_NODES = (
    "dataloader.test",
    "dataloader.evaluator",
    "model.backbone",
    "model.roi_heads.num_classes",
)
_TRAINING_NODES = ("dataloader.train", "lr_multiplier", "optimizer", "init.weights")
_START = ("train.output_dir", "train.init_checkpoint", "train.device", "train.seed")
_OPTIONAL = ("train.checkpointer.max_to_keep", "train.ddp.", "init.weights.", "init.detectors.")

_ABSENT = object()


def needed(training: bool) -> tuple[str, ...]:
    """Groups and settings that a config must have.

    Args:
        training: Whether it is for a training; a sweep takes what an earlier version saved, which
            has fewer.
    """
    sweep = tuple(key for key in SETTINGS if key.startswith("sweep."))
    if not training:
        return (*_NODES, *_START, *sweep)
    own = (
        key
        for key in SETTINGS
        if key.startswith(("train.", "init.")) and not key.startswith(_OPTIONAL)
    )
    return (*_NODES, *_TRAINING_NODES, *own, *sweep)


def check_settings(config: DictConfig, required: Iterable[str] = ()) -> None:
    """Checks the groups of a config, and in them every setting that is there.

    What is still left to the user (``???``) is not looked at.

    Args:
        config: The whole config.
        required: What must be there.

    Raises:
        InputError: For the first setting that cannot be; names it.
    """
    for group in _GROUPS:
        value = _at(config, group)
        if value is not _ABSENT and not isinstance(value, Mapping):
            raise InputError(
                f"{group}={written(value)} must be a group of settings: leave it as it is, and "
                "change settings in it one by one"
            )
    # What is referred to before what refers to it, which would be blamed for it.
    for key, value, _ in sorted(_settings(config), key=lambda setting: setting[2]):
        for kind in _kinds(key):
            check(key, value, kind)
        if not isinstance(value, DictConfig) and not all(map(_is_finite, _parts(value))):
            raise InputError(f"{key}={written(value)} must be a finite number")
    absent = [key for key in required if _at(config, key) is _ABSENT]
    if absent:
        raise InputError(
            f"the config has no {absent[0]}: begin with a config of configs/, which has all keys"
        )


def check_like(key: str, before: DictConfig, after: DictConfig) -> None:
    """Checks that an override is of the type of what it takes the place of.

    Null and anything in the place of null are left to whatever takes them. A number may become a
    list, as a size of images that becomes several.

    Args:
        key: Of the override.
        before: The config without it.
        after: The config with it.

    Raises:
        InputError: If it is not.
    """
    old, new = _at(before, key), _at(after, key)
    if old is _ABSENT or new is _ABSENT or _kinds(key):
        return
    if must_be := _must_be(old, new, texts=_takes_text(after, key)):
        raise InputError(f"{key}={written(new)} must be {must_be}, as {written(old)} is")


def _must_be(old: object, new: object, texts: bool) -> str:
    """What a value must be to take the place of another; empty if it is that."""
    if old is None or new is None or callable(old):
        return ""
    if isinstance(old, Mapping):
        # What is built may as well be given.
        fits = isinstance(new, Mapping) or "_target_" in old
        return "" if fits else "a group of settings"
    if isinstance(old, bool):
        return "" if isinstance(new, bool) or (texts and isinstance(new, str)) else "true or false"
    if isinstance(old, str):
        return "" if isinstance(new, str | Mapping) else "a text"
    of_numbers = all(map(is_number, _parts(old)))
    if isinstance(old, Sequence):
        if not isinstance(new, Sequence) or isinstance(new, str):
            return "a list"
        if not of_numbers:
            return ""
        return "" if all(map(is_number, _parts(new))) else "a list of numbers"
    return "" if isinstance(new, Mapping) or all(map(is_number, _parts(new))) else "a number"


def _kinds(key: str) -> list[Kind]:
    """What is said of a key; nothing of keys that are not ours."""
    return [kind for pattern, kind in SETTINGS.items() if fnmatchcase(key, pattern)]


def _settings(node: object, path: str = "") -> Iterator[tuple[str, object, bool]]:
    """Dotted names and values of all that is in a config, and whether they refer to other keys."""
    names = range(len(node)) if isinstance(node, ListConfig) else node
    for name in names:
        key = f"{path}.{name}" if path else str(name)
        if OmegaConf.is_missing(node, name):
            continue
        try:
            value = node[name]
            if isinstance(value, ListConfig) and not _has_nodes(value):
                value = OmegaConf.to_container(value, resolve=True)
        except InterpolationToMissingValueError:
            continue
        except OmegaConfBaseException as error:
            # Of other keys, whatever uses them will say it, if anything does.
            if _kinds(key) or key in _GROUPS:
                raise InputError(
                    f"{key} refers to what is not there ({first_line(error)}): correct it"
                ) from error
            continue
        yield key, value, OmegaConf.is_interpolation(node, name)
        if isinstance(value, DictConfig | ListConfig):
            yield from _settings(value, key)


def _has_nodes(value: ListConfig) -> bool:
    return any(isinstance(part, Mapping) for part in OmegaConf.to_container(value, resolve=False))


def _at(config: DictConfig, key: str) -> object:
    try:
        value = OmegaConf.select(config, key, default=_ABSENT, throw_on_missing=True)
        if isinstance(value, DictConfig):
            return OmegaConf.to_container(value, resolve=False)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_list(value) else value
    except OmegaConfBaseException:
        return _ABSENT


def _takes_text(config: DictConfig, key: str) -> bool:
    """Whether the parameter of a key is a text or something else, such as a flag."""
    node, _, name = key.rpartition(".")
    parameter = parameters_of(OmegaConf.select(config, node)).get(name)
    return parameter is not None and str in get_args(parameter.annotation)


def _parts(value: object) -> Iterator[object]:
    """All that is in a list of lists, or the value itself."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        for part in value:
            yield from _parts(part)
    else:
        yield value


def _is_finite(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
