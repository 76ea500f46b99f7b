"""The data of a run: the same in all parts of its config, with or without masks, and at a resume.

Checks, class names and provenance use ``data.*``; images come from the data sets of the loaders,
and scores from the annotations of the evaluator. Images are numbered by their place in a file, so
those of two files would match by place and give a wrong AP without an error.
"""

import filecmp
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from omegaconf import OmegaConf

from snnet_vitdet.building import build, located
from snnet_vitdet.data import (
    check_coco_json,
    check_same_categories,
    coco_dicts,
    dataset_name,
    has_masks,
    num_categories,
)
from snnet_vitdet.data.fingerprint import difference, image_facts, sha256_of
from snnet_vitdet.errors import InputError, first_line
from snnet_vitdet.files import read_json, write_atomically
from snnet_vitdet.modeling import is_joined

from .settings import Config

__all__ = [
    "BOXES_ALONE",
    "check_data",
    "check_data_nodes",
    "note_training_data",
    "settle_masks",
]

logger = logging.getLogger(__name__)

BOXES_ALONE = (
    "The detector has no masks (data.masks=False, which auto means where no object of the training "
    "data has one): boxes alone are trained and scored."
)
"""The warning where ``data.masks`` is false."""

_TEST, _EVALUATOR = "dataloader.test.dataset", "dataloader.evaluator.dataset_name"
_TRAIN_MAPPER = "dataloader.train.mapper"
_FORMATS = (
    "model.input_format",
    f"{_TRAIN_MAPPER}.image_format",
    "dataloader.test.mapper.image_format",
)
_MASK_PARTS = ("mask_in_features", "mask_pooler", "mask_head")
_NOTE = "training_data.json"
# Images to look at, evenly spread: all of a large data set take minutes on network file systems,
# and a change rarely affects a single image.
_MOST_IMAGES = 5000


# ------------------------------------------------------------------------- parts of one config


def check_data_nodes(config: Config, *, training: bool) -> None:
    """Checks that no two parts of a config name different data, or different orders of colours.

    Data of other kinds, registered with detectron2 by name or made by a function, are compared by
    their names.

    Args:
        config: The whole config, without missing keys.
        training: Whether the training data are used.

    Raises:
        InputError: If two parts differ; with their names and values.
    """
    nodes = {_TEST: "test", _EVALUATOR: "test"}
    if training:
        nodes["dataloader.train.dataset"] = "train"
    sources = {name: _source(OmegaConf.select(config, name)) for name in nodes}
    for name, part in nodes.items():
        source = sources[name]
        if not isinstance(source, Mapping):
            continue
        for key, own, is_same in (
            ("json_file", f"data.{part}_json", _same_content),
            ("image_root", f"data.{part}_images", _same_path),
        ):
            here, there = source.get(key), OmegaConf.select(config, own)
            if here is not None and not is_same(str(here), str(there)):
                raise InputError(
                    f"{name} has {key}={here}, but {own} is {there}, which the checks, the class "
                    f"names and the scores are of: set {own} alone, which all parts follow"
                )
    test, evaluator = sources[_TEST], sources[_EVALUATOR]
    by_name = isinstance(test, str) or isinstance(evaluator, str)
    if by_name and None not in (test, evaluator) and test != evaluator:
        raise InputError(
            f"the test images are those of {_shown(test)} ({_TEST}), but they are scored against "
            f"{_shown(evaluator)} ({_EVALUATOR}): give both the same data"
        )
    if OmegaConf.select(config, f"{_TEST}.filter_empty"):
        raise InputError(
            f"{_TEST}.filter_empty=True leaves out images without objects, whose false detections "
            "lower the AP: set it to False"
        )
    formats = {name: OmegaConf.select(config, name) for name in _FORMATS}
    if len({value for value in formats.values() if value is not None}) > 1:
        said = ", ".join(f"{name}={value}" for name, value in formats.items())
        raise InputError(f"images are given in one order of colours and taken in another: {said}")


def _source(node: object) -> Mapping | str | None:
    """The node that has the path of the annotations, or the name of registered data, if any."""
    if isinstance(node, str):
        return node
    if OmegaConf.is_list(node):
        return _source(node[0]) if len(node) == 1 else None
    if not isinstance(node, Mapping):
        return None
    # detectron2's functions take the names of data.
    return node if "json_file" in node else _source(node.get("names"))


def _shown(source: Mapping | str) -> str:
    return source if isinstance(source, str) else source["json_file"]


def _same_path(path: str, other: str) -> bool:
    return os.path.realpath(path) == os.path.realpath(other)


def _same_content(path: str, other: str) -> bool:
    try:
        return _same_path(path, other) or filecmp.cmp(path, other, shallow=False)
    except OSError:
        return False


# --------------------------------------------------------------------------------------- masks


def settle_masks(config: Config) -> None:
    """Replaces ``data.masks=auto``, and makes a config without masks that of a Faster R-CNN.

    With ``auto``, masks are learnt if the model has a mask head and the training data have a mask,
    or the test data if those do not exist. Without data it stays ``auto``, which counts as
    with masks. Without masks, the RoI heads lose their mask head, and masks in the data are not
    read.

    Args:
        config: The whole config, changed in place; calling it again changes nothing.

    Raises:
        InputError: If the annotation file cannot be read.
    """
    masks = OmegaConf.select(config, "data.masks")
    if masks == "auto":
        masks = _found_masks(config)
    if masks not in (True, False):
        return
    config.data.masks = bool(masks)
    if masks:
        return
    for heads in _heads(config.model):
        for key in _MASK_PARTS:
            heads.pop(key, None)
    mapper = OmegaConf.select(config, _TRAIN_MAPPER)
    if mapper and mapper.get("use_instance_mask"):
        mapper.use_instance_mask = False
        mapper.recompute_boxes = False  # it needs masks
    for path in ("dataloader.train.dataset", _TEST, _EVALUATOR):
        node = OmegaConf.select(config, path)
        # A function of the user has its own way with masks.
        if OmegaConf.is_dict(node) and located(node.get("_target_")) in (coco_dicts, dataset_name):
            node.masks = False


def _heads(model_config: Mapping) -> list:
    heads = model_config.roi_heads
    return [heads.small, heads.large] if is_joined(model_config) else [heads]


def _found_masks(config: Config) -> bool | str:
    if not all(heads.get("mask_head") for heads in _heads(config.model)):
        return False
    for key in ("train_json", "test_json"):
        if not OmegaConf.is_missing(config.data, key) and os.path.isfile(config.data[key]):
            return has_masks(config.data[key])
    return "auto"


# ----------------------------------------------------------------------- the annotation files


def check_data(config: Config, *, training: bool) -> None:
    """Checks the annotation files, and that the model has their classes and masks.

    Args:
        config: The whole config, its masks settled.
        training: Whether the training data are used.

    Raises:
        InputError: If the data cannot be used, or are not what the model is for.
    """
    count = _num_categories(config, training)
    own = config.model.roi_heads.num_classes
    own = build("model.roi_heads.num_classes", own) if OmegaConf.is_dict(own) else own
    if own != count:
        raise InputError(
            f"model.roi_heads.num_classes is {own}, but the data has {count} categories: set it to "
            "that"
        )
    if not config.data.masks:
        logger.warning(BOXES_ALONE)
    elif not all(heads.get("mask_head") for heads in _heads(config.model)):
        raise InputError(
            "data.masks=True, but the model of this config has no mask head, which it was saved "
            "without: set data.masks=false, or give the .py file that it was made from"
        )


def _num_categories(config: Config, training: bool) -> int:
    data = config.data
    if not data.check:
        return num_categories(data.test_json)
    test = check_coco_json(data.test_json, data.test_images, for_evaluation=True, masks=data.masks)
    logger.info("Test data: %s", test)
    if not training:
        return len(test.categories)
    train = check_coco_json(
        data.train_json, data.train_images, for_evaluation=False, masks=data.masks
    )
    logger.info("Training data: %s", train)
    check_same_categories(data.train_json, data.test_json)
    return len(train.categories)


# ------------------------------------------------------------------------------ at a later start


def note_training_data(config: Config, iteration: int, *, resume: bool) -> None:
    """Writes ``training_data.json``, and warns if a training goes on with other data.

    Annotations count by their content, images by their sizes and times. If anything has changed,
    the earlier file is kept as ``training_data_until_….json``.

    Args:
        config: The whole config.
        iteration: The first iteration that is trained with these data.
        resume: Whether a training goes on; one of an earlier version has no such file.

    Raises:
        InputError: If the annotations cannot be read, or the file cannot be written.
    """
    path = os.path.join(config.train.output_dir, _NOTE)
    annotations, images = config.data.train_json, config.data.train_images
    facts = {
        "train_json": os.path.abspath(annotations),
        "train_json_sha256": sha256_of(annotations),
        "train_image": image_facts(annotations, images, _MOST_IMAGES),
    }
    if resume and os.path.lexists(path):
        _warn_of_changes(path, facts, iteration)
    write_atomically(path, json.dumps(facts, indent=1).encode())


def _warn_of_changes(path: str, facts: Mapping[str, object], iteration: int) -> None:
    try:
        before = read_json(path)
        if not isinstance(before, Mapping):
            raise ValueError("it holds no facts")
        changed = difference(before, facts)
    except (OSError, RecursionError, ValueError) as error:
        logger.warning(
            "%s cannot be read (%s), so it is not known whether the training data have changed.",
            path,
            first_line(error),
        )
        return
    if changed:
        earlier = f"{path.removesuffix('.json')}_until_{iteration:07d}.json"
        # A file of this name describes data that were trained with; the current one does not yet.
        if not os.path.exists(earlier):
            write_atomically(earlier, Path(path).read_bytes())
        logger.warning(
            "From iteration %d on, other training data than before (%s). The earlier data are "
            "described in %s.",
            iteration,
            changed,
            earlier,
        )
