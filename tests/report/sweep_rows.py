"""Rows of a sweep that never was, for the tests of the page."""

import math
import random

from snnet_vitdet.evaluation import StitchResult, StitchTable
from snnet_vitdet.evaluation.results import METRICS
from snnet_vitdet.stitching import StitchSpace


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
        ap = 30 + gflops / 100 + rng.gauss(0, 1)
        metrics = {name: ap + rng.gauss(0, 1) - 4 * name.startswith("segm") for name in METRICS}
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
    return [
        {
            **row,
            "latency_ms": 10 + math.sqrt(row["gflops"]) + rng.gauss(0, 2) if measured else None,
            "latency_ms_p90": 20 + math.sqrt(row["gflops"]) if measured else None,
            "memory_mb": 400 + row["params_m"] if measured else None,
        }
        for row in table.rows()
    ]
