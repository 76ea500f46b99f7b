"""Evaluating many stitches of one trained model, each with the AP that it has alone.

In one pass, every image goes through all stitches together. Separately, each stitch goes through
detectron2's ``inference_on_dataset`` with its own evaluator. The APs are the same. A row is written
as soon as its stitch is scored.
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
from snnet_vitdet.modeling import find_stitched_vit, running_in
from snnet_vitdet.stitching import Cost, Stitch, merged
from snnet_vitdet.text import counted

from .one_pass import evaluate_in_one_pass, fixed_subset
from .results import BASELINE, METRICS, SCORES, TASKS, StitchResult, on_frontier
from .score_curves import CURVES_FILE, ScoreCurve
from .scoring import CocoScorer, restore_ids
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
    stitch_ids: Sequence[int],
    costs: Sequence[Cost],
    data_loader: Sequence,
    make_evaluator: Callable[[], DatasetEvaluator],
    output_dir: str,
    *,
    scorer: CocoScorer | None = None,
    subset: int = 0,
    precision: str = "float32",
    iteration: int | None = None,
    provenance: Mapping[str, object] | None = None,
    resume: bool = False,
) -> StitchTable:
    """Scores many stitches, with LoRA updates merged during the call. All processes must call this.

    Args:
        model: A detector with trained weights.
        stitch_ids: Ids of the stitches; ``[0]`` for a detector without stitches.
        costs: Cost of every stitch of the model's space, by id.
        data_loader: A test loader as detectron2 builds it.
        make_evaluator: Returns a new evaluator for each stitch that is evaluated separately.
        output_dir: Folder for the files of the table, written after every stitch.
        scorer: Scores the detections of one pass over all stitches. None, or a detector without
            stitches, evaluates each stitch separately.
        subset: Number of images to score on, always the same ones; 0 for all. Needs one pass.
        precision: ``float32``, or ``float16`` or ``bfloat16`` for autocast; masks are pasted in
            float32.
        iteration: Number of training iterations of the weights, if known.
        provenance: What the results depend on besides the stitch (weights, data, …), as plain JSON.
        resume: Whether to keep the rows in ``output_dir`` and the detections of an interrupted
            pass.

    Returns:
        All rows; without scores on processes other than the main one.

    Raises:
        InputError: If the rows to keep are of another model or other data.
    """
    backbone = find_stitched_vit(model)
    stitches = [backbone.space[i] for i in stitch_ids] if backbone else [BASELINE]
    provenance = json.loads(json.dumps(provenance or {}))
    is_main = comm.is_main_process()
    table = _open_table(output_dir, provenance, resume) if is_main else StitchTable()
    num_images = len(data_loader.dataset)
    images = fixed_subset(num_images, subset) if subset else None
    num_images = num_images if images is None else len(images)
    # A row scored on other images, such as those of the first of two stages, does not count.
    kept = [entry.id for entry in table if entry.result.num_images == num_images]
    finished = comm.all_gather(kept)[0]
    open_stitches = [stitch for stitch in stitches if stitch.id not in finished]
    if num_kept := len(stitches) - len(open_stitches):
        logger.info("Already scored: %d of %s.", num_kept, _stitches(len(stitches)))
    if scorer is None or backbone is None:
        if subset:
            raise InputError("sweep.subset needs sweep.mode=one_pass and a stitched detector")
        scores = _evaluate_separately(model, open_stitches, data_loader, make_evaluator)
    else:
        folder = os.path.join(output_dir, "detections")
        scores = evaluate_in_one_pass(
            model, open_stitches, data_loader, scorer, folder, provenance, images, resume
        )
    with merged(model), running_in(model, getattr(torch, precision)):
        for count, (stitch, metrics, curve) in enumerate(scores, start=1):
            gflops, params_m = costs[stitch.id].gflops, costs[stitch.id].params_m
            which = (stitch.id, stitch.name, stitch.kind, stitch.cuts)
            result = StitchResult(*which, gflops, params_m, metrics, iteration, num_images)
            table.put(result, curve)
            if is_main:
                table.write(output_dir)
            logger.info(
                "stitch %d of %d: %s (id %d), %.1f GFLOPs, %s",
                count,
                len(open_stitches),
                stitch.name,
                stitch.id,
                gflops,
                _in_words(metrics),
            )
    return table


def frontier_candidates(table: StitchTable) -> list[int]:
    """Ids of the anchors and of all stitches on the frontier of box AP or of mask AP."""
    rows = table.rows()
    chosen = {row["stitch_id"] for row in rows if not row["cuts"]}
    for task in TASKS:
        on_front = on_frontier(rows, f"{task}_AP")
        chosen |= {row["stitch_id"] for row, is_on in zip(rows, on_front, strict=True) if is_on}
    return sorted(chosen)


def two_stage_sweep(
    sweep: Callable[[Sequence[int], str, int], StitchTable],
    stitch_ids: Sequence[int],
    output_dir: str,
    subset: int,
) -> StitchTable:
    """Scores all stitches on a subset, then those that may be on the frontier on all images.

    Args:
        sweep: Scores stitches (ids) into a folder on a number of images, 0 for all.
        stitch_ids: Ids of the stitches.
        output_dir: Folder of the results; those of the first stage go to ``subset/`` in it.
        subset: Number of images of the first stage.

    Returns:
        One row per stitch: scored on all images for the candidates, on the subset for the others,
        as ``num_images`` says.
    """
    first = sweep(stitch_ids, os.path.join(output_dir, "subset"), subset)
    # A resumed table may have other stitches, too.
    first = [entry for entry in first if entry.id in stitch_ids]
    # Only the main process has the scores.
    is_main = comm.is_main_process()
    chosen = frontier_candidates(StitchTable(entry.result for entry in first)) if is_main else []
    chosen = comm.all_gather(chosen)[0]
    logger.info(
        "All images: %d of %s, the anchors and the frontier on the subset.",
        len(chosen),
        _stitches(len(stitch_ids)),
    )
    table = sweep(chosen, output_dir, 0)
    if is_main:
        # A resumed table may have rows of other sweeps: those of more images stay.
        num_images = {entry.id: entry.result.num_images or 0 for entry in table}
        for entry in first:
            if num_images.get(entry.id, 0) <= entry.result.num_images:
                table.put(entry.result, entry.curve)
        table.write(output_dir)
    return table


def _stitches(count: int) -> str:
    return counted(count, "stitch", "stitches")


def _in_words(metrics: Mapping[str, float]) -> str:
    aps = {word: metrics.get(name, math.nan) for word, name in SCORES.items()}
    shown = [f"{word} AP {ap:.1f}" for word, ap in aps.items() if not math.isnan(ap)]
    return ", ".join(shown) or "nothing to score"


def _evaluate_separately(
    model: nn.Module,
    stitches: Sequence[Stitch],
    data_loader: Sequence,
    make_evaluator: Callable[[], DatasetEvaluator],
) -> Iterator[tuple[Stitch, dict[str, float], ScoreCurve | None]]:
    start = time.perf_counter()
    for count, stitch in enumerate(stitches, start=1):
        with _quiet():
            evaluator = make_evaluator()
        yield stitch, evaluate_stitch(model, stitch, data_loader, evaluator), None
        remaining = (time.perf_counter() - start) / count * (len(stitches) - count)
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
