"""What stitches take on a device: time of an image, and memory."""

import statistics
from collections.abc import Sequence
from functools import partial

import torch

from snnet_vitdet.modeling import find_stitched_vit
from snnet_vitdet.stitching import Cost

from .measuring import measure, peak_of_live_storages
from .predictor import Predictor

__all__ = ["measure_stitches"]

_BYTES_OF_A_WEIGHT = 4


def measure_stitches(
    predictor: Predictor,
    stitch_ids: Sequence[int],
    costs: Sequence[Cost],
    inputs: Sequence[dict[str, object]],
    repeats: int = 10,
    warmup: int = 2,
) -> list[dict[str, object]]:
    """Times stitches in turn, so that a slow spell of the machine hits all alike.

    The time is that of the model, from prepared images to detections, divided by their number;
    masks are not pasted into the images, which is done where they are looked at. The
    memory is what the stitch alone would need: its own weights in float32 and what is alive besides
    at the peak; on a CPU, of the tensors of torch's operations.

    Args:
        predictor: The model on its device; its stitch stays.
        stitch_ids: Which stitches.
        costs: Cost of every stitch by id.
        inputs: A batch as ``predictor.prepare`` makes each.
        repeats: Rounds that count.
        warmup: Rounds before these.

    Returns:
        Rows of ``stitch_id``, ``name``, ``latency_ms`` (median), ``latency_ms_p90``,
        ``memory_mb``.
    """
    backbone = find_stitched_vit(predictor.model)

    def run(stitch_id: int) -> None:
        with backbone.using_stitch(stitch_id):
            predictor.detect(inputs)

    results = measure(
        {str(i): partial(run, i) for i in stitch_ids}, predictor.device, repeats, warmup
    )
    there = sum(p.untyped_storage().nbytes() for p in predictor.model.parameters())
    rows = []
    for i in stitch_ids:
        milliseconds = [1e3 * s / len(inputs) for s in results[str(i)].seconds]
        peak = results[str(i)].peak_bytes
        beside = peak_of_live_storages(partial(run, i)) if peak is None else max(0, peak - there)
        memory = beside + _BYTES_OF_A_WEIGHT * costs[i].params
        rows.append(
            {
                "stitch_id": i,
                "name": backbone.space[i].name,
                "latency_ms": statistics.median(milliseconds),
                "latency_ms_p90": _quantile(milliseconds, 0.9),
                "memory_mb": memory / 2**20,
            }
        )
    return rows


def _quantile(values: Sequence[float], share: float) -> float:
    return float(torch.quantile(torch.tensor(values, dtype=torch.float64), share))
