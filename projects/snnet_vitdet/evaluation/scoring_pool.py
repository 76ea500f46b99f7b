"""Scores many operating points in several processes, which read the detections themselves."""

import multiprocessing
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

from detectron2.utils import comm

from snnet_vitdet.data.loader import worker_context

from .detections import DetectionStore
from .score_curves import ScoreCurve
from .scoring import CocoScorer
from .worker_processes import stay_with_parent, telling_of_a_kill

__all__ = ["available_workers", "score_points"]

Scores = tuple[dict[str, float], ScoreCurve]

# 134 stitches on COCO's 5,000 images then take about a minute. More processes would save seconds,
# and each takes up to 1 GB.
_MOST_WORKERS = 8


def available_workers() -> int:
    """Number of processes to score in: a share of the cores that this machine's processes have."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(_MOST_WORKERS, (cores or 1) // comm.get_local_size()))


def score_points(
    scorer: CocoScorer,
    store: DetectionStore,
    points: Sequence[str],
    image_ids: Collection[int] | None,
    workers: int,
) -> Iterator[Scores]:
    """Scores operating points.

    Args:
        scorer: Scorer of the annotations.
        store: Has the detections of the points.
        points: Names of the points.
        image_ids: The images to score; None for all images of the annotation file.
        workers: Number of processes to score in; 1 for this process alone, where hotcoco's threads
            take all cores. Where processes are not forked (macOS), it is always this one: another
            would first import torch and detectron2.

    Yields:
        For each point in turn, AP on 0–100 by the names in ``METRICS``, and the score curve.

    Raises:
        InputError: If a process was killed.
    """
    workers = min(workers, len(points))
    method = worker_context(workers)
    # Forked from a process that has started hotcoco's threads, a process would not have them, and
    # would wait for them forever.
    if workers < 2 or method is None or "hotcoco" in sys.modules:
        for point in points:
            yield _score(scorer, store, image_ids, point)
        return
    # They start in 0.1 s, which small sweeps do not notice.
    context = multiprocessing.get_context(method)
    with (
        telling_of_a_kill("scores detections", "set a smaller sweep.scoring_workers"),
        ProcessPoolExecutor(workers, context, _start, (scorer, store, image_ids)) as pool,
    ):
        yield from pool.map(_score_here, points)


def _score(
    scorer: CocoScorer, store: DetectionStore, image_ids: Collection[int] | None, point: str
) -> Scores:
    detections = store.arrays_of(point)
    return scorer.score(detections, image_ids), scorer.score_curve(point, detections, image_ids)


# In another process: what _score takes besides the point.
_job: tuple[CocoScorer, DetectionStore, Collection[int] | None]


def _start(*job: object) -> None:
    global _job
    _job = job
    # A core for each process; read when hotcoco starts its threads.
    os.environ["RAYON_NUM_THREADS"] = "1"
    stay_with_parent()


def _score_here(point: str) -> Scores:
    return _score(*_job, point)
