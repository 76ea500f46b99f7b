"""Evaluating many operating points of one trained model, each with the AP that it has alone.

In one pass, every image goes through all stitches together, once for each image size. Separately,
each point goes through detectron2's ``inference_on_dataset`` with its own evaluator. The APs are
the same. A row is written as soon as its point is scored.
"""

import contextlib
import datetime
import io
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.utils import comm
from torch import nn

from snnet_vitdet.data.fingerprint import difference
from snnet_vitdet.errors import InputError, cannot_write
from snnet_vitdet.files import read_json, write_atomically
from snnet_vitdet.modeling import find_stitched_vit, operating_at, running_in
from snnet_vitdet.stitching import Cost, OperatingPoint, Stitch, merged

from .one_pass import evaluate_in_one_pass, fixed_subset
from .results import METRICS, SCORES, TASKS, StitchResult, counted_points, on_frontier, padding_of
from .score_curves import CURVES_FILE, ScoreCurve
from .scoring import CocoScorer, restore_ids
from .scoring_pool import available_workers
from .table import MEASURED_CSV, StitchTable

__all__ = ["evaluate_stitch", "frontier_candidates", "sweep", "two_stage_sweep"]

logger = logging.getLogger(__name__)

_PROVENANCE = "sweep.json"


def evaluate_stitch(
    model: nn.Module,
    stitch: Stitch,
    data_loader: Sequence,
    evaluator: DatasetEvaluator,
) -> dict[str, float]:
    """Scores one stitch and keeps the stitch in effect. All processes must call this.

    Args:
        model: A detector; in evaluation mode during the call.
        stitch: A stitch of its space, or :data:`BASELINE` for a detector without stitches.
        data_loader: A test loader as detectron2 builds it.
        evaluator: detectron2's COCOEvaluator, or one with the same results.

    Returns:
        AP on 0–100 by the names in ``METRICS`` on the main process, nothing on others.
    """
    backbone = find_stitched_vit(model)
    using = backbone.using_stitch(stitch.id) if backbone else contextlib.nullcontext()
    with using, _quiet():
        results = inference_on_dataset(model, data_loader, evaluator)
    if comm.is_main_process():
        restore_ids(evaluator)
    flat = {
        f"{task}_{name}": float(value)
        for task, values in results.items()
        for name, value in values.items()
    }
    return {name: flat[name] for name in METRICS if name in flat}


def sweep(
    model: nn.Module,
    points: Sequence[OperatingPoint],
    cost_of: Callable[[OperatingPoint], Cost],
    loader_of: Callable[[int], Sequence],
    make_evaluator: Callable[[], DatasetEvaluator],
    output_dir: str,
    *,
    scorer: CocoScorer | None = None,
    subset: int = 0,
    aspect_ratio: float | None = None,
    precision: str = "float32",
    iteration: int | None = None,
    provenance: Mapping[str, object] | None = None,
    resume: bool = False,
    scoring_workers: int | None = None,
) -> StitchTable:
    """Scores many operating points, with LoRA updates merged. All processes must call this.

    Args:
        model: A detector with trained weights.
        points: The points; for a detector without stitches those of :data:`BASELINE`.
        cost_of: Returns the cost of a point.
        loader_of: Returns a test loader as detectron2 builds it, for an image size.
        make_evaluator: Returns a new evaluator for each point that is evaluated separately.
        output_dir: Folder for the files of the table, written after every point.
        scorer: Scores the detections of one pass over all stitches. None, or a detector without
            stitches, evaluates each point separately.
        subset: Number of images to score on, always the same ones; 0 for all. Needs one pass.
        aspect_ratio: Longer over shorter side of the image that costs are counted for; padding is
            then tight, see :func:`.operating_at`. None for square padding.
        precision: ``float32``, or ``float16`` or ``bfloat16`` for autocast; masks are pasted in
            float32.
        iteration: Number of training iterations of the weights, if known.
        provenance: What the results depend on besides the point (weights, data, …), as plain JSON.
        resume: Whether to keep the rows in ``output_dir`` and the detections of an interrupted
            pass.
        scoring_workers: Number of processes to score one pass in; None for a number that suits the
            cores.

    Returns:
        All rows; without scores on processes other than the main one.

    Raises:
        InputError: If the rows to keep are of another model or other data.
    """
    backbone = find_stitched_vit(model)
    if subset and (scorer is None or backbone is None):
        raise InputError("sweep.subset needs sweep.mode=one_pass and a stitched detector")
    provenance = json.loads(json.dumps(provenance or {}))
    padding = padding_of(aspect_ratio)
    is_main = comm.is_main_process()
    table = _open_table(output_dir, provenance, resume) if is_main else StitchTable()
    all_trained, count = all(point.is_trained for point in points), 0
    for image_size in dict.fromkeys(point.image_size for point in points):
        data_loader = loader_of(image_size)
        images = fixed_subset(len(data_loader.dataset), subset) if subset else None
        num_images = len(data_loader.dataset if images is None else images)
        # A row scored on other images, such as those of the first of two stages, does not count.
        kept = [entry.name for entry in table if entry.result.num_images == num_images]
        kept = comm.all_gather(kept)[0]
        of_size = [point for point in points if point.image_size == image_size]
        open_points = [point for point in of_size if point.name not in kept]
        if num_kept := len(of_size) - len(open_points):
            count += num_kept
            logger.info("Already scored: %d of %s.", num_kept, _counted(of_size))
        if scorer is None or backbone is None:
            scores = _evaluate_separately(model, open_points, data_loader, make_evaluator, padding)
        else:
            # A folder for each size, so that a resumed sweep finds those of an interrupted pass.
            trained = any(point.is_trained for point in of_size)
            folder = os.path.join(
                output_dir, "detections" if trained else f"detections_{image_size}"
            )
            scores = evaluate_in_one_pass(
                model,
                open_points,
                data_loader,
                scorer,
                folder,
                provenance,
                images,
                resume,
                padding,
                scoring_workers or available_workers(),
            )
        with merged(model), running_in(model, getattr(torch, precision)):
            for point, metrics, curve in scores:
                count += 1
                stitch, cost = point.stitch, cost_of(point)
                result = StitchResult(
                    stitch_id=stitch.id,
                    name=point.name,
                    kind=stitch.kind,
                    cuts=stitch.cuts,
                    gflops=cost.gflops,
                    params_m=cost.params_m,
                    metrics=metrics,
                    iteration=iteration,
                    num_images=num_images,
                    image_size=point.image_size,
                    num_proposals=point.num_proposals,
                    aspect_ratio=aspect_ratio,
                )
                table.put(result, curve)
                if is_main:
                    table.write(output_dir)
                logger.info(
                    "%s %d of %d: %s (id %d), %.4g GFLOPs, %s",
                    "stitch" if all_trained else "operating point",
                    count,
                    len(points),
                    point.name,
                    stitch.id,
                    cost.gflops,
                    _in_words(metrics),
                )
    return table


def frontier_candidates(table: StitchTable) -> list[str]:
    """Names of the trained ViTs alone and of all points on the frontier of box AP or of mask AP."""
    rows = table.rows()
    chosen = {row["name"] for row in rows if not row["cuts"] and "@" not in row["name"]}
    for task in TASKS:
        on_front = on_frontier(rows, f"{task}_AP")
        chosen |= {row["name"] for row, is_on in zip(rows, on_front, strict=True) if is_on}
    return sorted(chosen)


def two_stage_sweep(
    score: Callable[[Sequence[OperatingPoint], str, int], StitchTable],
    points: Sequence[OperatingPoint],
    output_dir: str,
    subset: int,
) -> StitchTable:
    """Scores all points on a subset, then those that may be on the frontier on all images.

    Args:
        score: Scores points into a folder on a number of images, 0 for all.
        points: The points.
        output_dir: Folder of the results; those of the first stage go to ``subset/`` in it.
        subset: Number of images of the first stage.

    Returns:
        One row per point: scored on all images for the candidates, on the subset for the others,
        as ``num_images`` says.
    """
    first = score(points, os.path.join(output_dir, "subset"), subset)
    # A resumed table may have other points, too.
    names = {point.name for point in points}
    first = [entry for entry in first if entry.name in names]
    # Only the main process has the scores.
    is_main = comm.is_main_process()
    chosen = frontier_candidates(StitchTable(entry.result for entry in first)) if is_main else []
    chosen = comm.all_gather(chosen)[0]
    logger.info(
        "All images: %d of %s, the trained ViTs alone and the frontier on the subset.",
        len(chosen),
        _counted(points),
    )
    table = score([point for point in points if point.name in chosen], output_dir, 0)
    if is_main:
        # A resumed table may have rows of other sweeps: those of more images stay.
        num_images = {entry.name: entry.result.num_images or 0 for entry in table}
        for entry in first:
            if num_images.get(entry.name, 0) <= entry.result.num_images:
                table.put(entry.result, entry.curve)
        table.write(output_dir)
    return table


def _counted(points: Sequence[OperatingPoint]) -> str:
    return counted_points([point.name for point in points])


def _in_words(metrics: Mapping[str, float]) -> str:
    aps = {word: metrics.get(name, math.nan) for word, name in SCORES.items()}
    shown = [f"{word} AP {ap:.1f}" for word, ap in aps.items() if not math.isnan(ap)]
    return ", ".join(shown) or "nothing to score"


def _evaluate_separately(
    model: nn.Module,
    points: Sequence[OperatingPoint],
    data_loader: Sequence,
    make_evaluator: Callable[[], DatasetEvaluator],
    padding: str,
) -> Iterator[tuple[OperatingPoint, dict[str, float], ScoreCurve | None]]:
    start = time.perf_counter()
    for count, point in enumerate(points, start=1):
        with _quiet():
            evaluator = make_evaluator()
        with operating_at(model, point.image_size, point.num_proposals, padding):
            scores = evaluate_stitch(model, point.stitch, data_loader, evaluator)
        yield point, scores, None
        remaining = (time.perf_counter() - start) / count * (len(points) - count)
        if remaining:
            logger.info("ETA %s", datetime.timedelta(seconds=round(remaining)))


def _open_table(output_dir: str, provenance: dict, resume: bool) -> StitchTable:
    """The table to go on from; writes to ``sweep.json`` what its rows depend on."""
    path = Path(output_dir, _PROVENANCE)
    if resume and os.path.lexists(os.path.join(output_dir, "stitches.json")):
        table = StitchTable.read_results(output_dir)
        try:
            before = read_json(path)
            differs = difference(before, provenance) if isinstance(before, Mapping) else None
        except (OSError, RecursionError, ValueError):
            differs = None
        # Without rows, a missing sweep.json does no harm.
        if differs is None and len(table):
            raise InputError(
                f"what the results in {output_dir} belong to is not known ({_PROVENANCE} is "
                "missing or damaged): sweep anew with sweep.overwrite=True, or into another "
                "train.output_dir"
            )
        if differs:
            raise InputError(
                f"the results in {output_dir} belong to other weights, data or settings than these "
                f"({differs}): sweep anew with sweep.overwrite=True, or into another "
                "train.output_dir"
            )
        if len(table):
            # A killed sweep may have written only one of the two files of a row.
            table.write(output_dir)
            return table
    table = StitchTable(source=output_dir)
    # Before anything else, the rows of an earlier sweep are deleted: otherwise this sweep, if
    # interrupted before its first row, would be resumed with them.
    for name in ("stitches.json", "stitches.csv", MEASURED_CSV, CURVES_FILE):
        try:
            Path(output_dir, name).unlink(missing_ok=True)
        except OSError as error:  # such as a folder of this name
            raise cannot_write(Path(output_dir, name), error) from error
    write_atomically(path, json.dumps(provenance, indent=1).encode())
    table.write(output_dir)
    return table


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences what detectron2 and pycocotools print for every single stitch."""
    chatty = [logging.getLogger(name) for name in ("detectron2.evaluation", "detectron2.data")]
    levels = [log.level for log in chatty]
    try:
        for log in chatty:
            log.setLevel(logging.ERROR)
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for log, level in zip(chatty, levels, strict=True):
            log.setLevel(level)
