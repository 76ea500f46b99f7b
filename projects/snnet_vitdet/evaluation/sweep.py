"""Evaluating many stitches of one trained model, each as if it were alone.

In one pass, images go through all stitches together; separately, each stitch goes through
detectron2's ``inference_on_dataset`` with an evaluator of its own. The APs are the same. A row is
written as soon as its stitch is scored.
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
from contextlib import contextmanager
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

from .one_pass import evaluate_in_one_pass, fixed_subset
from .result_files import give_back_ids
from .results import MEASURED_CSV, METRICS, SCORES, ResultsTable, StitchResult
from .score_curves import CURVES_FILE, ScoreCurve, ScoreCurves
from .scoring import CocoScorer

__all__ = ["BASELINE", "evaluate_stitch", "sweep"]

logger = logging.getLogger(__name__)

BASELINE = Stitch(id=0, kind="baseline", cuts=(), segments=(), transitions=())
"""Stands for the one network of a detector without stitches."""

_PROVENANCE = "sweep.json"


def evaluate_stitch(
    model: nn.Module,
    stitch: Stitch,
    data_loader: Sequence,
    evaluator: DatasetEvaluator,
) -> dict[str, float]:
    """Scores one stitch, and leaves the stitch in effect as it was. All processes must call it.

    Args:
        model: A detector; put into evaluation mode for the while.
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
        give_back_ids(evaluator)
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
) -> ResultsTable:
    """Scores many stitches; LoRA updates are merged for the while. All processes must call it.

    Args:
        model: A detector with trained weights.
        stitch_ids: Which stitches; ``[0]`` for a detector without stitches.
        costs: Cost of every stitch of the model's space, by id.
        data_loader: A test loader as detectron2 builds it.
        make_evaluator: Gives a fresh evaluator for every stitch that is evaluated separately.
        output_dir: Folder for ``stitches.csv`` and ``stitches.json``, written after every stitch,
            and ``score_curves.json``, which one pass adds.
        scorer: Scores what one pass over all stitches detects. None, or a detector without
            stitches, evaluates each separately.
        subset: Scores on so many of the images, always the same ones; 0 for all. In one pass only.
        precision: ``float32``, or ``float16`` or ``bfloat16`` for autocast to it; masks are
            pasted in float32.
        iteration: How many iterations the weights were trained for, if known.
        provenance: What the results depend on besides the stitch (weights, data, …), as plain JSON.
        resume: Whether to keep the rows that are already in ``output_dir``, and the detections of
            an interrupted pass.

    Returns:
        All rows; on processes other than the main one, without scores.

    Raises:
        InputError: If rows are to be kept that another model or other data gave.
    """
    backbone = find_stitched_vit(model)
    stitches = [backbone.space[i] for i in stitch_ids] if backbone else [BASELINE]
    provenance = json.loads(json.dumps(provenance or {}))
    table = _open_table(output_dir, provenance, resume) if comm.is_main_process() else None
    num_images = len(data_loader.dataset)
    images = fixed_subset(num_images, subset) if subset else None
    num_images = num_images if images is None else len(images)
    # A row of a sweep over other images, such as the first of two stages, is none of this one.
    kept = [r.stitch_id for r in table or () if r.num_images == num_images]
    finished = comm.all_gather(kept)[0]
    table = table or ResultsTable()
    curves = ScoreCurves.read(output_dir) if resume else ScoreCurves()
    open_stitches = [stitch for stitch in stitches if stitch.id not in finished]
    if num_kept := len(stitches) - len(open_stitches):
        logger.info("%d of %d stitches are there already.", num_kept, len(stitches))
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
            cost = costs[stitch.id]
            table.put(
                StitchResult(
                    stitch.id,
                    stitch.name,
                    stitch.kind,
                    stitch.cuts,
                    cost.gflops,
                    cost.params_m,
                    metrics,
                    iteration,
                    num_images,
                )
            )
            if comm.is_main_process():
                # First the curve: resumed, a stitch that has a row is not scored again.
                if curve is not None:
                    curves.put(stitch.id, curve)
                    curves.write(output_dir)
                table.write(output_dir)
            logger.info(
                "stitch %d of %d: %s (id %d), %.1f GFLOPs, %s",
                count,
                len(open_stitches),
                stitch.name,
                stitch.id,
                cost.gflops,
                _in_words(metrics),
            )
    return table


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


def _open_table(output_dir: str, provenance: dict, resume: bool) -> ResultsTable:
    """The rows to go on from; notes in ``output_dir`` what they depend on."""
    path = Path(output_dir, _PROVENANCE)
    if resume and os.path.lexists(os.path.join(output_dir, "stitches.json")):
        table = ResultsTable.read(output_dir)
        try:
            before = read_json(path)
            differs = difference(before, provenance) if isinstance(before, Mapping) else None
        except (OSError, RecursionError, ValueError):
            differs = None
        # Without rows, and without what would say of what, there is nothing to be mixed up.
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
            # Killed between the two files of a row, it has only one of them.
            table.write(output_dir)
            return table
    table = ResultsTable()
    # First of all the rows of an earlier sweep have to go: interrupted before its first own row,
    # this sweep would otherwise be resumed with theirs.
    for name in ("stitches.json", "stitches.csv", MEASURED_CSV, CURVES_FILE):
        try:
            Path(output_dir, name).unlink(missing_ok=True)
        except OSError as error:  # of a folder in its place
            raise cannot_write(Path(output_dir, name), error) from error
    write_atomically(path, json.dumps(provenance, indent=1).encode())
    table.write(output_dir)
    return table


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what detectron2 and pycocotools say of every single stitch off the screen."""
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
