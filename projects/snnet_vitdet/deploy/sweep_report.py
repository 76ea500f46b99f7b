"""Writes the report of a sweep from the files in its folder and a predictor of its model."""

import logging
from collections.abc import Callable
from pathlib import Path

from snnet_vitdet.data import category_names, coco_dicts
from snnet_vitdet.engine import Config
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import StitchTable
from snnet_vitdet.report import Samples, drawing, read_training, write_report

from .predictor import Predictor
from .samples import sample_detections, stitches_to_show

__all__ = ["REPORT_FILE", "write_sweep_report"]

logger = logging.getLogger(__name__)

REPORT_FILE = "report.html"
"""The file beside a sweep's results."""


def write_sweep_report(
    config: Config, make_predictor: Callable[[StitchTable], Predictor] | None
) -> Path:
    """Writes ``report.html`` beside the results of a sweep.

    Without test images or weights, the page has no sample detections and says why.

    Args:
        config: Config of the training.
        make_predictor: Returns a predictor of the swept model with the table, or raises
            InputError; None for a page without sample detections.

    Returns:
        The page's path.

    Raises:
        InputError: If there is no sweep, or the page cannot be written.
    """
    folder = Path(config.train.output_dir, "sweep")
    table = _read(folder)
    samples, reason = None, "None were asked for."
    if make_predictor is not None:
        try:
            with drawing("their pictures"):
                samples, reason = _samples(config, table, make_predictor), ""
        except InputError as error:
            reason = f"There are none: {str(error).rstrip('.')}."
            logger.warning("The report has no sample detections: %s", error)
    path = folder / REPORT_FILE
    write_report(
        path,
        table.rows(),
        title=config.train.output_dir,
        facts=_facts(config, table),
        training=read_training(Path(config.train.output_dir, "metrics.json")),
        samples=samples,
        no_samples=reason,
    )
    return path


def _read(folder: Path) -> StitchTable:
    try:
        return StitchTable.read(folder)
    except InputError as error:
        # Measurements of an earlier sweep, for instance, must not prevent a page without them.
        table = StitchTable.read_results(folder)
        logger.warning("The report has no latency and memory: %s", error)
        return table


def _samples(
    config: Config, table: StitchTable, make_predictor: Callable[[StitchTable], Predictor]
) -> Samples:
    images = coco_dicts(config.data.test_json, config.data.test_images, filter_empty=False)
    names = category_names(config.data.test_json)
    rows = stitches_to_show(table.rows())
    return sample_detections(make_predictor(table), rows, images, names)


def _facts(config: Config, table: StitchTable) -> list[tuple[str, str]]:
    net = config.model.backbone.net
    vits = [net[anchor] for anchor in ("small", "large")] if "small" in net else [net]
    facts = []
    if all("depth" in vit and "embed_dim" in vit for vit in vits):
        sizes = " + ".join(f"{vit.depth} × {vit.embed_dim}" for vit in vits)
        facts.append(("ViT blocks × width", sizes))
    side = config.data.image_size
    facts.append(("Image size", f"{side} × {side} pixels"))
    if table.device is not None:
        facts.append(("Latency and memory on", table.device))
    return facts
