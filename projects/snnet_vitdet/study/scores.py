"""What a run of the study has reached, and differences between runs of the same seeds."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from snnet_vitdet.evaluation import Frontier

__all__ = ["Scores", "paired", "scores_of"]


@dataclass(frozen=True)
class Scores:
    """A supernet beside its two ViTs trained alone, of the same pretraining and seed; box AP.

    Attributes:
        small: AP of the small end.
        large: AP of the large end.
        small_gap: AP of the small end less that of the small ViT alone.
        large_gap: AP of the large end less that of the large ViT alone.
        over_line: Mean height of the frontier over the straight line between the two ViTs alone,
            over all costs from the one to the other; what a budget buys rises in steps.
        by_kind: Mean AP of the stitches of each kind.
    """

    small: float
    large: float
    small_gap: float
    large_gap: float
    over_line: float
    by_kind: Mapping[str, float]


def scores_of(
    rows: Sequence[Mapping[str, Any]],
    small_alone: Mapping[str, Any],
    large_alone: Mapping[str, Any],
    metric: str = "bbox_AP",
) -> Scores:
    """Compares a sweep with the two ViTs alone.

    Args:
        rows: Of the sweep of a supernet, S and L among them.
        small_alone: The row of the small ViT, trained alone.
        large_alone: That of the large one.
        metric: Column that is compared.

    Raises:
        KeyError: If S or L was not swept.
    """
    by_name = {row["name"]: row[metric] for row in rows}
    small, large = by_name["S"], by_name["L"]
    low, high = small_alone["gflops"], large_alone["gflops"]
    costs = [row["gflops"] for row in rows]
    frontier = Frontier(costs, [row[metric] for row in rows])
    # The supernet's cheapest end costs a little more than the small ViT alone: it is counted from
    # there on, and the line with it.
    start = max(low, frontier.costs[0])
    line_at_start = _line(start, low, high, small_alone[metric], large_alone[metric])
    line = (line_at_start + large_alone[metric]) / 2
    kinds: dict[str, list[float]] = {}
    for row in rows:
        kinds.setdefault(row["kind"], []).append(row[metric])
    return Scores(
        small,
        large,
        small - small_alone[metric],
        large - large_alone[metric],
        frontier.mean(start, high) - line,
        {kind: statistics.fmean(values) for kind, values in kinds.items()},
    )


def _line(x: float, low: float, high: float, at_low: float, at_high: float) -> float:
    return at_low + (at_high - at_low) * (x - low) / (high - low)


def paired(values: Mapping[int, float], others: Mapping[int, float]) -> tuple[float, float]:
    """Mean of the differences ``values - others`` over the seeds of both, and its standard error.

    The error is NaN where there is but one.

    Raises:
        ValueError: If no seed has both.
    """
    both = sorted(values.keys() & others.keys())
    if not both:
        raise ValueError("no seed has been run for both")
    differences = [values[seed] - others[seed] for seed in both]
    error = statistics.stdev(differences) / math.sqrt(len(both)) if len(both) > 1 else math.nan
    return statistics.fmean(differences), error
