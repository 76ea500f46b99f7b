"""A sweep from its config to its report: load, score the stitches, write tables and pictures.

This module stands above the folders: it joins the engine's model and checkpoints, the evaluation's
sweep, and the report of deploy.
"""

import logging
import os

import torch
from detectron2.config import instantiate
from detectron2.utils import comm
from torch import nn

from snnet_vitdet.data import category_names
from snnet_vitdet.deploy import Predictor, write_sweep_report
from snnet_vitdet.engine import (
    ClassNames,
    Config,
    StrictCheckpointer,
    build_model,
    checkpoint_to_evaluate,
    initialise_weights,
)
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import (
    CocoScorer,
    StitchTable,
    evaluators_of,
    format_table,
    provenance_of,
    sweep,
    two_stage_sweep,
)
from snnet_vitdet.modeling import baseline_cost, find_stitched_vit, stitch_costs
from snnet_vitdet.report import drawing, plot_pareto
from snnet_vitdet.stitching import select_stitches

__all__ = ["load_for_sweep", "report_sweep", "run_sweep"]

logger = logging.getLogger(__name__)


def run_sweep(config: Config, resume: bool) -> StitchTable:
    """Scores the stitches of ``sweep.stitch_ids``, and writes tables, picture and page.

    Args:
        config: The whole config, checked.
        resume: Whether to keep the scores of an earlier sweep of the same weights and data.

    Raises:
        InputError: If weights or data cannot be used, or results cannot be written.
    """
    model = build_model(config)
    checkpoint, iteration, averaged = load_for_sweep(config, model)
    backbone = find_stitched_vit(model)
    output_dir = os.path.join(config.train.output_dir, "sweep")
    scorer = None
    if backbone is not None and config.sweep.mode == "one_pass":
        scorer = CocoScorer(instantiate(config.dataloader.evaluator.dataset_name))
    data_loader = instantiate(config.dataloader.test)
    costs = [baseline_cost(config.model)] if backbone is None else stitch_costs(config.model)
    make_evaluator = evaluators_of(config.dataloader.evaluator)
    provenance = provenance_of(config, checkpoint, averaged)

    def run(stitch_ids, folder, subset):
        return sweep(
            model,
            stitch_ids,
            costs,
            data_loader,
            make_evaluator,
            folder,
            scorer=scorer,
            subset=subset,
            precision=config.sweep.precision,
            iteration=iteration,
            provenance=provenance,
            resume=resume,
        )

    ids = select_stitches(config.sweep.stitch_ids, backbone.space) if backbone else [0]
    if 0 < config.sweep.subset < len(data_loader.dataset):
        table = two_stage_sweep(run, ids, output_dir, config.sweep.subset)
    else:
        table = run(ids, output_dir, 0)
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
        return Predictor.from_model(
            model,
            category_names(config.data.test_json),
            config.dataloader.test.mapper,
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
