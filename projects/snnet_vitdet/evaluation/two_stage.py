"""A sweep in two stages: all stitches on some images, then the best of them on all images."""

import logging
import os
from collections.abc import Callable, Iterable, Sequence

from detectron2.utils import comm

from .pareto import pareto_front
from .results import TASKS, ResultsTable, StitchResult
from .score_curves import ScoreCurves

__all__ = ["frontier_candidates", "two_stage_sweep"]

logger = logging.getLogger(__name__)


def frontier_candidates(results: Iterable[StitchResult]) -> list[int]:
    """Ids of the anchors and of all stitches that are on the frontier of box or of mask AP."""
    results = list(results)
    chosen = {result.stitch_id for result in results if not result.cuts}
    for task in TASKS:
        on_front = pareto_front(
            [result.gflops for result in results],
            [result.metrics[f"{task}_AP"] for result in results],
        )
        chosen |= {r.stitch_id for r, is_on in zip(results, on_front, strict=True) if is_on}
    return sorted(chosen)


def two_stage_sweep(
    sweep: Callable[[Sequence[int], str, int], ResultsTable],
    stitch_ids: Sequence[int],
    output_dir: str,
    subset: int,
) -> ResultsTable:
    """Scores all stitches on a subset, then those that may be on the frontier on everything.

    Args:
        sweep: Scores stitches (ids) into a folder on so many images, 0 for all.
        stitch_ids: Which stitches.
        output_dir: Folder of the results; those of the first stage go to ``subset/`` in it.
        subset: How many images the first stage takes.

    Returns:
        One row a stitch: of all images for the candidates, of the subset for the others, which
        ``num_images`` tells.
    """
    table = sweep(stitch_ids, os.path.join(output_dir, "subset"), subset)
    # Resumed, the table may have other stitches, too.
    first = [result for result in table if result.stitch_id in stitch_ids]
    # Only the main process has the scores.
    chosen = comm.all_gather(frontier_candidates(first) if comm.is_main_process() else [])[0]
    logger.info(
        "%d of %d stitches go on to all images: the anchors and the frontier on the subset.",
        len(chosen),
        len(stitch_ids),
    )
    table = sweep(chosen, output_dir, 0)
    if comm.is_main_process():
        # Resumed, the table may have rows of other sweeps: what is of more images stays.
        num_images = {result.stitch_id: result.num_images or 0 for result in table}
        for result in first:
            if num_images.get(result.stitch_id, 0) <= result.num_images:
                table.put(result)
        table.write(output_dir)
        _merge_curves(output_dir, [r.stitch_id for r in table if r.num_images == subset])
    return table


def _merge_curves(output_dir: str, of_the_subset: Sequence[int]) -> None:
    """Adds the score curves of the stitches whose scores are of the first stage."""
    curves = ScoreCurves.read(output_dir)
    curves.update(ScoreCurves.read(os.path.join(output_dir, "subset")), of_the_subset)
    if len(curves):
        curves.write(output_dir)
