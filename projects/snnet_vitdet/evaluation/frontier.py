"""What a budget buys: the best score within it, for comparing sweeps at equal cost."""

import bisect
import math
from collections.abc import Sequence

from .pareto import pareto_front

__all__ = ["Frontier"]


class Frontier:
    """The best score within a budget as a function of the budget.

    It rises in steps: between two points of the frontier a budget buys what the cheaper one gives,
    and above the last one nothing more.

    >>> frontier = Frontier([1.0, 3.0, 2.0], [10.0, 30.0, 5.0])
    >>> frontier.at(2.9), frontier.at(3.0), frontier.mean(1.0, 5.0)
    (10.0, 30.0, 20.0)
    """

    def __init__(self, costs: Sequence[float], scores: Sequence[float]) -> None:
        """
        Args:
            costs: Of each point, in any unit, none NaN.
            scores: Of each point; NaN where there is none.

        Raises:
            ValueError: If the lengths differ or no point has a score.
        """
        on_front = pareto_front(costs, scores)
        both = zip(costs, scores, on_front, strict=True)
        points = sorted({(cost, score) for cost, score, on in both if on})
        if not points:
            raise ValueError("no point has a score, so there is no frontier")
        self.costs = tuple(cost for cost, _ in points)
        self.scores = tuple(score for _, score in points)

    def at(self, budget: float) -> float:
        """The best score within a budget; NaN below the cheapest point."""
        index = bisect.bisect_right(self.costs, budget)
        return self.scores[index - 1] if index else math.nan

    def area(self, low: float, high: float) -> float:
        """Integral of the best score over the budgets from ``low`` to ``high``.

        Raises:
            ValueError: If ``low`` is below the cheapest point or above ``high``.
        """
        if not self.costs[0] <= low <= high:
            raise ValueError(
                f"an area goes upwards from {self.costs[0]:g}, the cheapest point, or more; got "
                f"{low:g} to {high:g}"
            )
        inside = [cost for cost in self.costs if low < cost < high]
        edges = [low, *inside, high]
        return math.fsum(self.at(a) * (b - a) for a, b in zip(edges, edges[1:], strict=False))

    def mean(self, low: float, high: float) -> float:
        """Mean best score over the budgets from ``low`` to ``high``: the area over their range."""
        return self.area(low, high) / (high - low) if high > low else self.at(low)
