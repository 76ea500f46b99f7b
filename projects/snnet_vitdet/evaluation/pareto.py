"""The Pareto frontier of points that each have a cost and a score."""

import math
from collections.abc import Sequence

__all__ = ["pareto_front"]


def pareto_front(costs: Sequence[float], scores: Sequence[float]) -> list[bool]:
    """Tell which points no other point beats.

    A point is beaten if another one has a cost at most as high and a score at least as high, one of
    them strictly. Points equal in both do not beat each other, so all of them are on the frontier
    or none is. A point whose score is NaN is never on the frontier and beats nobody.

    Args:
        costs: the lower the better, in any unit (GFLOPs here).
        scores: the higher the better, in any unit (AP here); NaN where there is none.

    Returns:
        For each point, in the order given, whether it is on the frontier.

    Raises:
        ValueError: if the lengths differ or a cost is NaN.
    """
    if len(costs) != len(scores):
        raise ValueError(
            f"costs and scores must have the same length, got {len(costs)} and {len(scores)}"
        )
    for index, cost in enumerate(costs):
        if math.isnan(cost):
            raise ValueError(f"costs[{index}] is NaN; every point needs a cost")

    scored = (index for index, score in enumerate(scores) if not math.isnan(score))
    by_cost_then_best = sorted(scored, key=lambda index: (costs[index], -scores[index]))

    on_front = [False] * len(costs)
    last = None
    for index in by_cost_then_best:
        point = (costs[index], scores[index])
        if last is None or point[1] > last[1] or point == last:
            on_front[index] = True
            last = point
    return on_front
