"""Rows of a sweep that never was, for the tests of the page."""

import math
import random

from snnet_vitdet.evaluation import StitchResult, StitchTable
from snnet_vitdet.evaluation.results import METRICS
from snnet_vitdet.stitching import StitchSpace, operating_points

SIZES = (384, 512, 640, 768, 1024)
COUNTS = (100, 300, 1000)
TRAINED = (1024, 1000)


def sweep_rows(depths=(12, 24), *, measured=True, seed=0, on_fewer_images=(), without_ap=()):
    """Rows as ``StitchTable.rows`` gives them: more expensive stitches score higher, with noise.

    Args:
        depths: Depths of the two anchors: (12, 24) makes 134 stitches, (24, 24) 554.
        measured: With latency and memory.
        seed: Seed of the noise.
        on_fewer_images: Ids of stitches that were scored on a tenth of the images.
        without_ap: Ids of stitches that have no score.
    """
    rng = random.Random(seed)
    table = StitchTable()
    for stitch in StitchSpace(depths):
        gflops = rng.uniform(480, 1800)
        metrics = _metrics(30 + gflops / 100 + rng.gauss(0, 1), 1, rng)
        if stitch.id in without_ap:
            metrics = {}
        table.put(
            StitchResult(
                stitch.id,
                stitch.name,
                stitch.kind,
                stitch.cuts,
                gflops,
                gflops / 6,
                metrics,
                iteration=1000,
                num_images=500 if stitch.id in on_fewer_images else 5000,
            )
        )
    return _rows(table, measured, rng)


def point_rows(sizes=SIZES, counts=COUNTS, *, measured=True, seed=0):
    """Rows of 134 stitches at all sizes and counts, with costs and APs like those of DeiT3-S/L.

    AP rises with the depth of the large anchor, the size and the number of proposals, each with
    diminishing returns.
    """
    rng = random.Random(seed)
    table = StitchTable()
    stitches = list(StitchSpace())
    share = {stitch.id: _share_of_large(stitch) for stitch in stitches}
    luck = {stitch.id: rng.gauss(0, 0.6) for stitch in stitches}
    for point in operating_points(stitches, sizes, counts, lambda _: TRAINED):
        stitch, large = point.stitch, share[point.stitch.id]
        area = (point.image_size / 1024) ** 2
        gflops = area * (310 + 1350 * large) + 0.13 * point.num_proposals + 20
        ap = 40 + 9 * large**0.7 + luck[stitch.id] + 9 * math.log2(point.image_size / 1024)
        ap -= 200 / point.num_proposals
        table.put(
            StitchResult(
                *(stitch.id, point.name, stitch.kind, stitch.cuts, gflops, 45 + 280 * large),
                _metrics(ap, 0.15, rng),
                iteration=1000,
                num_images=5000,
                image_size=point.image_size,
                num_proposals=point.num_proposals,
            )
        )
    return _rows(table, measured, rng)


def _share_of_large(stitch):
    """Between 0 for the small anchor and 1 for the large one."""
    return sum(stop - start for anchor, start, stop in stitch.segments if anchor == 1) / 24


def _metrics(ap, noise, rng):
    noisy = {name: ap + rng.gauss(0, noise) - 4 * name.startswith("segm") for name in METRICS}
    return {name: min(100.0, max(0.0, value)) for name, value in noisy.items()}


def _rows(table, measured, rng):
    return [
        {
            **row,
            "latency_ms": 10 + math.sqrt(row["gflops"]) + rng.gauss(0, 2) if measured else None,
            "latency_ms_p90": 20 + math.sqrt(row["gflops"]) if measured else None,
            "memory_mb": 400 + row["params_m"] if measured else None,
        }
        for row in table.rows()
    ]
