"""Whether the parts of a config that name the same data agree.

Checks, class names and provenance are of ``data.*``; images come from the data sets of the loaders,
and scores from the evaluator's annotations. Images are numbered by their place in a file: those of
two files match by place, and would give a wrong AP without a word.
"""

import filecmp
import os
from collections.abc import Mapping

from omegaconf import DictConfig, OmegaConf

from snnet_vitdet.errors import InputError

__all__ = ["check_data_nodes"]

_TEST, _EVALUATOR = "dataloader.test.dataset", "dataloader.evaluator.dataset_name"
_FORMATS = (
    "model.input_format",
    "dataloader.train.mapper.image_format",
    "dataloader.test.mapper.image_format",
)


def check_data_nodes(config: DictConfig, *, training: bool) -> None:
    """Refuses a config of which two parts name different data, or different orders of colours.

    Data of another kind than this project's, which are registered with detectron2 by name or made
    by a function, are compared by their names alone.

    Args:
        config: The whole config, without missing keys.
        training: Whether the training data are used.

    Raises:
        InputError: If two parts differ, by their names and values.
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
            f"the images to score are of {_shown(test)} ({_TEST}), but the scores of "
            f"{_shown(evaluator)} ({_EVALUATOR}): give both the same data"
        )
    if OmegaConf.select(config, f"{_TEST}.filter_empty"):
        raise InputError(
            f"{_TEST}.filter_empty=True leaves images without objects out, in which whatever is "
            "found is wrong and counts: set it to False"
        )
    formats = {name: OmegaConf.select(config, name) for name in _FORMATS}
    if len({value for value in formats.values() if value is not None}) > 1:
        said = ", ".join(f"{name}={value}" for name, value in formats.items())
        raise InputError(f"images are given in one order of colours and taken in another: {said}")


def _source(node: object) -> Mapping | str | None:
    """What has the path of the annotations, or a name that somebody has registered data by.

    It is None if neither can be seen.
    """
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
