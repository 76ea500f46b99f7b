"""Several sweeps side by side: at equal cost, over all budgets, and stitch by stitch."""

import bisect
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .results import BASELINE, Row, comparable, has_value, pareto_front

__all__ = ["Candidate", "Frontier", "common_range", "equal_cost_budgets", "same_stitches"]


class Frontier:
    """The best score within a budget, as a function of the budget.

    It rises in steps: between two points of the frontier, a budget buys the cheaper one; above the
    last point, a larger budget buys nothing more.

    >>> frontier = Frontier([1.0, 3.0, 2.0], [10.0, 30.0, 5.0])
    >>> frontier.at(2.9), frontier.at(3.0), frontier.mean(1.0, 5.0)
    (10.0, 30.0, 20.0)
    """

    def __init__(self, costs: Sequence[float], scores: Sequence[float]) -> None:
        """
        Args:
            costs: One per point, in any unit, not NaN.
            scores: One per point; NaN if it has none.

        Raises:
            ValueError: If the lengths differ or no point has a score.
        """
        on_front = pareto_front(costs, scores)
        both = zip(costs, scores, on_front, strict=True)
        points = sorted({(cost, score) for cost, score, on in both if on})
        if not points:
            raise ValueError("no point has a score, so there is no frontier")
        self.costs, self.scores = zip(*points, strict=True)

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
        """Mean of the best score over the budgets from ``low`` to ``high``."""
        return self.area(low, high) / (high - low) if high > low else self.at(low)


@dataclass(frozen=True)
class Candidate:
    """One of the things compared: a training, or several that differ only in their seed.

    Attributes:
        name: Name in tables and legends.
        runs: The rows of each run's sweep, none empty; scores of several runs are averaged.
        cost: Column of the cost.
        metric: Column of the score.
    """

    name: str
    runs: tuple[tuple[Row, ...], ...]
    cost: str
    metric: str

    def points(self) -> list[list[Row]]:
        """For each run, the comparable rows that have both the cost and the score."""
        return [
            [
                row
                for row in comparable(rows)
                if has_value(row, self.cost) and has_value(row, self.metric)
            ]
            for rows in self.runs
        ]

    def costs(self) -> list[float]:
        """The costs of all points."""
        return [row[self.cost] for points in self.points() for row in points]

    def frontiers(self) -> list[Frontier]:
        """The frontier of each run.

        Raises:
            ValueError: If a run has no stitch with this cost and score.
        """
        return [
            Frontier([row[self.cost] for row in points], [row[self.metric] for row in points])
            for points in self.points()
        ]

    def at(self, budget: float) -> tuple[float, float]:
        """Mean and standard deviation over the runs of the best score within a budget."""
        return _mean_and_spread([frontier.at(budget) for frontier in self.frontiers()])

    def area(self, low: float, high: float) -> tuple[float, float]:
        """Mean and standard deviation over the runs of the area under the frontier."""
        return _mean_and_spread([frontier.area(low, high) for frontier in self.frontiers()])

    def mean(self, low: float, high: float) -> tuple[float, float]:
        """Mean and standard deviation over the runs of the mean of the frontier."""
        return _mean_and_spread([frontier.mean(low, high) for frontier in self.frontiers()])


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """The standard deviation of a single value is 0."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def common_range(candidates: Sequence[Candidate]) -> tuple[float, float]:
    """The lowest budget at which every candidate has a stitch, and the highest cost of any stitch.

    Above its own most expensive stitch, a candidate still offers the best of its frontier.
    """
    frontiers = [frontier for candidate in candidates for frontier in candidate.frontiers()]
    low = max(frontier.costs[0] for frontier in frontiers)
    return low, max(low, *(cost for candidate in candidates for cost in candidate.costs()))


def equal_cost_budgets(low: float, high: float, count: int = 8) -> list[float]:
    """Evenly spaced budgets, including both ends."""
    if high == low:
        return [low]
    return [low + (high - low) * i / (count - 1) for i in range(count)]


def same_stitches(one: Candidate, other: Candidate) -> list[float]:
    """By how much each stitch scores higher in ``other`` than in ``one``; means over the runs.

    Only stitches with the same name that every run of both has scored are compared, no baselines.
    """

    def by_name(candidate: Candidate) -> dict[str, float]:
        runs = [
            {row["name"]: row[candidate.metric] for row in run if row["kind"] != BASELINE.kind}
            for run in candidate.points()
        ]
        shared = set(runs[0]).intersection(*runs[1:])
        return {name: statistics.fmean(run[name] for run in runs) for name in shared}

    before, after = by_name(one), by_name(other)
    return [after[name] - before[name] for name in sorted(before.keys() & after.keys())]
