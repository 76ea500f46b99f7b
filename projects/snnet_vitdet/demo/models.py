"""Loads what the page runs: the model of a training, or exported stitches."""

import argparse
import copy
import os
from pathlib import Path

from omegaconf.errors import OmegaConfBaseException

from snnet_vitdet.deploy import (
    ExportInfo,
    Predictor,
    exported_table,
    image_files,
    read_export,
)
from snnet_vitdet.engine import (
    Config,
    cost_aspect_ratio,
    load_config,
    set_float32_arithmetic,
)
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import StitchTable
from snnet_vitdet.modeling import stitch_costs
from snnet_vitdet.stitching import Cost

from .answers import Answers
from .choices import Choices

__all__ = ["from_exports", "from_training"]

_NUM_EXAMPLES = 6


def from_training(config_file: str, args: argparse.Namespace) -> tuple[Answers, str, list[str]]:
    """Loads all stitches of a training.

    Args:
        config_file: Its config.
        args: The command line.

    Returns:
        The answers, the page's heading, and paths of examples.

    Raises:
        InputError: If something cannot be used.
    """
    config = load_config(config_file, args.opts)
    set_float32_arithmetic(config.train.tf32)
    predictor = Predictor(config, args.weights, device=args.device, precision=args.precision)
    if not predictor.stitches:
        raise InputError("this model is a baseline: it has no stitches to choose from")
    beside = [os.path.dirname(args.weights) or "."] if args.weights else []
    table = None
    for folder in (*beside, config.train.output_dir):
        if table is None and Path(folder, "sweep", "stitches.json").is_file():
            table = StitchTable.read(folder)
            table.warn_unless_of(predictor.source, predictor.iterations)
            predictor.check_table(table)
    model_config = copy.deepcopy(config.model)
    model_config.roi_heads.num_classes = len(predictor.class_names)
    ratio = cost_aspect_ratio(config)
    # Stitches that were not swept are beside those that were.
    ratio = next((entry.result.aspect_ratio for entry in table), ratio) if table else ratio
    costs = stitch_costs(model_config, aspect_ratio=ratio)
    choices = Choices(predictor.stitches, costs, table)
    answers = Answers(
        lambda image, name: predictor(image, stitch=name),
        choices,
        int(args.max_megapixels * 1e6),
    )
    name = Path(config.train.output_dir).name
    heading = f"{name}: {len(choices.rows)} detectors in one model"
    return answers, heading, _examples(args.examples, config)


def from_exports(args: argparse.Namespace) -> tuple[Answers, str, list[str]]:
    """Loads exported stitches; the files are data, and nothing in them is run.

    Args:
        args: The command line; ``args.exported`` is an exported file, or a folder of such files of
            one training.

    Returns:
        The answers, the page's heading, and paths of examples.

    Raises:
        InputError: If there is none, one cannot be used, or they are not of one training.
    """
    path = args.exported
    files = sorted(Path(path).glob("*.safetensors")) if os.path.isdir(path) else [Path(path)]
    if not files:
        raise InputError(f"folder {path} has no exported files (.safetensors)")
    by_name: dict[str, tuple[Path, ExportInfo]] = {}
    for file in files:
        info = read_export(file)
        if info.stitch is None:
            raise InputError(f"{file} is a baseline: it has no stitches to choose from")
        earlier, _ = by_name.setdefault(info.name, (file, info))
        if earlier != file:
            raise InputError(
                f"{file} and {earlier} both have stitch {info.name}: give one of them alone, or "
                "another folder"
            )
    found = sorted(by_name.values(), key=lambda each: (each[1].stitch.id, each[1].gflops))
    infos = [info for _, info in found]
    if len({info.class_names for info in infos}) > 1:
        raise InputError(
            f"the files in {path} are not of one training, their classes differ: give one of them "
            "alone, or another folder"
        )
    if len({info.aspect_ratio for info in infos}) > 1:
        raise InputError(
            f"the files in {path} have different padding or aspect ratios, so their costs cannot "
            "be compared: give one of them alone, or another folder"
        )
    costs = [Cost(info.gflops * 1e9, info.params_m * 1e6) for info in infos]
    choices = Choices(
        [info.stitch for info in infos],
        costs,
        exported_table(infos, path),
        [info.name for info in infos],
    )
    options = dict(device=args.device, precision=args.precision)
    predictors = {info.name: Predictor.from_file(file, **options) for file, info in found}
    answers = Answers(
        lambda image, name: predictors[name](image),
        choices,
        int(args.max_megapixels * 1e6),
    )
    heading = f"{Path(path).stem}: {len(infos)} exported detector{'s' * (len(infos) > 1)}"
    return answers, heading, _examples(args.examples, None)


def _examples(folder: str | None, config: Config | None) -> list[str]:
    """Some images of the named folder, or of the config's test data."""
    if folder is not None:
        return image_files(folder)[:_NUM_EXAMPLES]
    if config is None:
        return []
    try:
        return image_files(config.data.test_images)[:_NUM_EXAMPLES]
    except (InputError, OmegaConfBaseException):
        # The data of a training need not be here, and its config may leave their place open.
        return []
