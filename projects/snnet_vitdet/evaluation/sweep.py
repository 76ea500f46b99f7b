"""Evaluating many stitches of one trained model, one after the other.

Each stitch goes through detectron2's ``inference_on_dataset`` with an evaluator of its own, so its
AP is what a run with that stitch alone gives. A row is written as soon as its stitch is finished.
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

from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.utils import comm
from torch import nn

from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import find_stitched_vit
from snnet_vitdet.stitching import Cost, Stitch, merged

from .results import METRICS, ResultsTable, StitchResult, write_atomically

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
        make_evaluator: Gives a fresh evaluator for every stitch.
        output_dir: Folder for ``stitches.csv`` and ``stitches.json``, written after every stitch.
        iteration: How many iterations the weights were trained for, if known.
        provenance: What the results depend on besides the stitch (weights, data, …), as plain JSON.
        resume: Whether to keep the rows that are already in ``output_dir``.

    Returns:
        All rows; on processes other than the main one, without scores.

    Raises:
        InputError: If rows are to be kept that another model or other data gave.
    """
    backbone = find_stitched_vit(model)
    stitches = [backbone.space[i] for i in stitch_ids] if backbone else [BASELINE]
    provenance = json.loads(json.dumps(provenance or {}))
    table = _open_table(output_dir, provenance, resume) if comm.is_main_process() else None
    finished = comm.all_gather(sorted(r.stitch_id for r in table) if table else [])[0]
    table = table or ResultsTable()
    open_stitches = [stitch for stitch in stitches if stitch.id not in finished]
    if num_kept := len(stitches) - len(open_stitches):
        logger.info("%d of %d stitches are there already.", num_kept, len(stitches))
    num_images = len(data_loader.dataset)
    start = time.perf_counter()
    with merged(model):
        for count, stitch in enumerate(open_stitches, start=1):
            began = time.perf_counter()
            with _quiet():
                evaluator = make_evaluator()
            metrics = evaluate_stitch(model, stitch, data_loader, evaluator)
            now = time.perf_counter()
            table.add(
                StitchResult(
                    stitch.id,
                    stitch.name,
                    stitch.kind,
                    stitch.cuts,
                    costs[stitch.id].gflops,
                    costs[stitch.id].params_m,
                    metrics,
                    iteration,
                )
            )
            if comm.is_main_process():
                table.write(output_dir)
            remaining = (now - start) / count * (len(open_stitches) - count)
            logger.info(
                "stitch %d of %d: %s (id %d), %.1f GFLOPs, box AP %.1f, mask AP %.1f, "
                "%.1f images/s, ETA %s",
                count,
                len(open_stitches),
                stitch.name,
                stitch.id,
                costs[stitch.id].gflops,
                metrics.get("bbox_AP", math.nan),
                metrics.get("segm_AP", math.nan),
                num_images / (now - began),
                datetime.timedelta(seconds=round(remaining)),
            )
    return table


def _open_table(output_dir: str, provenance: dict, resume: bool) -> ResultsTable:
    """The rows to go on from; notes in ``output_dir`` what they depend on."""
    path = Path(output_dir, _PROVENANCE)
    if resume and os.path.isfile(os.path.join(output_dir, "stitches.json")):
        try:
            with open(path, encoding="utf-8") as file:
                before = json.load(file)
        except (OSError, ValueError):
            before = None
        if before != provenance:
            raise InputError(
                f"the results in {output_dir} belong to other weights or data than these "
                f"({_difference(before, provenance)}): sweep without --resume, or into another "
                "train.output_dir"
            )
        return ResultsTable.read(output_dir)
    table = ResultsTable()
    # First of all the rows of an earlier sweep have to go: interrupted before its first own row,
    # this sweep would otherwise be resumed with theirs.
    table.write(output_dir)
    write_atomically(path, json.dumps(provenance, indent=1).encode())
    return table


def _difference(before: dict | None, now: dict) -> str:
    if before is None:
        return f"{_PROVENANCE} is missing or damaged"
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return ", ".join(f"{key}: {before.get(key)} then, {now.get(key)} now" for key in keys)


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
