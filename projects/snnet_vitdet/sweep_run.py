"""A sweep from its config to its report: load, score the stitches, write tables and pictures.

This module stands above the folders: it joins the engine's model and checkpoints, the evaluation's
sweep, and the report of deploy.
"""

import logging
import os
from collections.abc import Iterable
from functools import cache, partial

import torch
from detectron2.config import instantiate
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from snnet_vitdet.data import category_names
from snnet_vitdet.deploy import LoadedDetector, Predictor, resizing, write_sweep_report
from snnet_vitdet.engine import (
    ClassNames,
    Config,
    StrictCheckpointer,
    at_image_size,
    build_model,
    check_image_size,
    checkpoint_to_evaluate,
    cost_aspect_ratio,
    initialise_weights,
)
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import (
    BASELINE,
    CocoScorer,
    StitchTable,
    evaluators_of,
    format_table,
    provenance_of,
    sweep,
    two_stage_sweep,
)
from snnet_vitdet.modeling import (
    baseline_cost,
    find_stitched_vit,
    most_proposals,
    point_costs,
    trained_with,
)
from snnet_vitdet.report import drawing, plot_pareto
from snnet_vitdet.stitching import Cost, OperatingPoint, operating_points, select_stitches

__all__ = ["costs_of", "load_for_sweep", "points_of", "report_sweep", "run_sweep"]

logger = logging.getLogger(__name__)


def run_sweep(config: Config, resume: bool) -> StitchTable:
    """Scores the operating points of a config, and writes tables, picture and page.

    Args:
        config: The whole config, checked.
        resume: Whether to keep the scores of an earlier sweep of the same weights and data.

    Raises:
        InputError: If weights or data cannot be used, or results cannot be written.
    """
    model = build_model(config)
    points = points_of(config, model)
    checkpoint, iteration, averaged = load_for_sweep(config, model)
    output_dir = os.path.join(config.train.output_dir, "sweep")
    scorer = None
    if find_stitched_vit(model) is not None and config.sweep.mode == "one_pass":
        scorer = CocoScorer(instantiate(config.dataloader.evaluator.dataset_name))
    loader_of = cache(partial(_loader_of, config))
    costs = costs_of(config, points)
    make_evaluator = evaluators_of(config.dataloader.evaluator)
    provenance = provenance_of(config, checkpoint, averaged)

    def run(points, folder, subset):
        return sweep(
            model,
            points,
            lambda point: costs[point.name],
            loader_of,
            make_evaluator,
            folder,
            scorer=scorer,
            subset=subset,
            aspect_ratio=cost_aspect_ratio(config),
            precision=config.sweep.precision,
            iteration=iteration,
            scoring_workers=config.sweep.scoring_workers,
            provenance=provenance,
            resume=resume,
        )

    if 0 < config.sweep.subset < len(loader_of(points[0].image_size).dataset):
        table = two_stage_sweep(run, points, output_dir, config.sweep.subset)
    else:
        table = run(points, output_dir, 0)
    if comm.is_main_process():
        logger.info("Results in %s:\n%s", output_dir, format_table(table.rows()))
        picture = os.path.join(output_dir, "pareto.png")
        try:
            with drawing(picture):
                plot_pareto(table.rows(), picture)
        except InputError as error:
            logger.warning("There is no picture: %s", error)
        report_sweep(config, model)
    return table


def _loader_of(config: Config, image_size: int) -> DataLoader:
    node = at_image_size(config, image_size).dataloader.test
    size = config.sweep.batch_size
    return instantiate({**node, "batch_size": size} if size > 1 else node)


def points_of(config: Config, model: nn.Module) -> list[OperatingPoint]:
    """The points of ``sweep.stitch_ids``, ``sweep.image_sizes`` and ``sweep.proposals``.

    Raises:
        InputError: If the config selects stitches or image sizes that the model does not have.
    """
    backbone = find_stitched_vit(model)
    stitches = [BASELINE]
    if backbone is not None:
        ids = select_stitches(config.sweep.stitch_ids, backbone.space)
        stitches = [backbone.space[i] for i in ids]
    sizes, proposals = config.sweep.image_sizes or [], config.sweep.proposals or []
    for size in sizes:
        check_image_size(config, size)
    for stitch in stitches if proposals else ():
        if max(proposals) > (most := most_proposals(model, stitch)):
            raise InputError(
                f"sweep.proposals={list(proposals)}: the RPN gives at most {most} proposals to "
                f"{stitch.name}"
            )
    return list(operating_points(stitches, sizes, proposals, partial(trained_with, model)))


def costs_of(config: Config, points: Iterable[OperatingPoint]) -> dict[str, Cost]:
    """Costs of operating points, by name, with the padding of the config's sweep.

    Args:
        config: The whole config.
        points: Points of its model.
    """
    points, model_config = list(points), config.model
    ratio = cost_aspect_ratio(config)
    if any(point.stitch is BASELINE for point in points):
        return {
            point.name: baseline_cost(model_config, point.image_size, 0, point.num_proposals, ratio)
            for point in points
        }
    sizes = sorted({point.image_size for point in points})
    counts = sorted({point.num_proposals for point in points})
    tables = point_costs(model_config, sizes, counts, aspect_ratio=ratio)
    return {p.name: tables[p.image_size, p.num_proposals][p.stitch.id] for p in points}


def load_for_sweep(config: Config, model: nn.Module) -> tuple[str | None, int | None, bool | None]:
    """Loads the weights of a sweep into a model.

    Returns:
        Path of the checkpoint, None at initialisation; its number of iterations, None if it has
        none; whether the weights are the moving average, None if the checkpoint has none.

    Raises:
        InputError: If there is no checkpoint, or it is of another model or other classes.
    """
    if config.sweep.at_initialisation:
        precision = getattr(torch, config.sweep.precision)
        initialise_weights(config, model, instantiate(config.dataloader.train), precision)
        return None, 0, None
    classes = ClassNames(category_names(config.data.test_json))
    checkpoint = checkpoint_to_evaluate(config.train.init_checkpoint, config.train.output_dir)
    averaged = config.sweep.averaged
    rest = StrictCheckpointer(model, classes=classes).load(checkpoint, averaged=averaged)
    # The checkpoint has the index of the last iteration.
    iteration = rest["trainer"]["iteration"] + 1 if "trainer" in rest else None
    return checkpoint, iteration, averaged if "ema" in rest else None


def report_sweep(config: Config, model: nn.Module) -> None:
    """Writes report.html with sample detections of the model, which cannot be used afterwards."""

    def predictor(table: StitchTable) -> Predictor:
        mapper = config.dataloader.test.mapper
        names = category_names(config.data.test_json)
        return Predictor(
            LoadedDetector(
                *(model, names, *resizing(mapper)), config=config, padding=config.sweep.padding
            ),
            table=table,
            device=config.train.device,
            precision=config.sweep.precision,
        )

    try:
        with drawing("report.html"):
            write_sweep_report(config, predictor)
    except InputError as error:
        # The scores, hours of work, are saved already.
        logger.warning("There is no report: %s", error)
