"""Several sweeps side by side: at equal cost, over all budgets, and stitch by stitch."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .frontier import Frontier
from .sweep import BASELINE

__all__ = ["Candidate", "common_range", "equal_cost_budgets", "same_stitches"]

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Candidate:
    """One of the things compared: a training, or several that differ by their seed alone.

    Attributes:
        name: How it is called.
        runs: The rows of each run's sweep, none empty; of more than one run the scores are means.
        cost: The column of the cost.
        metric: The column of the score.
    """

    name: str
    runs: tuple[tuple[Row, ...], ...]
    cost: str
    metric: str

    def points(self) -> list[list[tuple[Row, float, float]]]:
        """Row, cost and score of each run's stitches that can be compared.

        Those are the ones scored on the most images of their run.
        """
        chosen = []
        for rows in self.runs:
            most = max(row["num_images"] or 0 for row in rows)
            chosen.append(
                [
                    (row, row[self.cost], row[self.metric])
                    for row in rows
                    if (row["num_images"] or 0) == most
                    and row[self.cost] is not None
                    and not math.isnan(row[self.metric])
                ]
            )
        return chosen

    def frontiers(self) -> list[Frontier]:
        """The frontier of each run.

        Raises:
            ValueError: If a run has no stitch with this cost and score.
        """
        return [
            Frontier([cost for _, cost, _ in points], [score for *_, score in points])
            for points in self.points()
        ]

    def at(self, budget: float) -> tuple[float, float]:
        """Mean and standard deviation over the runs of the best score within a budget."""
        return _mean_and_spread([frontier.at(budget) for frontier in self.frontiers()])

    def area(self, low: float, high: float) -> tuple[float, float]:
        """Mean and standard deviation over the runs of the area under the frontier."""
        return _mean_and_spread([frontier.area(low, high) for frontier in self.frontiers()])


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """The standard deviation is 0 for one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def common_range(candidates: Sequence[Candidate]) -> tuple[float, float]:
    """The budgets at which every candidate has something to offer, up to the dearest point of all.

    Above its own dearest point a candidate offers that one.
    """
    frontiers = [frontier for candidate in candidates for frontier in candidate.frontiers()]
    low = max(frontier.costs[0] for frontier in frontiers)
    costs = [cost for c in candidates for points in c.points() for _, cost, _ in points]
    return low, max(low, *costs)


def equal_cost_budgets(low: float, high: float, count: int = 8) -> list[float]:
    """Evenly spread budgets, both ends among them."""
    if high == low:
        return [low]
    return [low + (high - low) * i / (count - 1) for i in range(count)]


def same_stitches(one: Candidate, other: Candidate) -> list[float]:
    """By how much each stitch scores higher in ``other`` than in ``one``, means over the runs.

    Only stitches of equal name that every run of both has scored. Baselines are none.
    """

    def by_name(candidate: Candidate) -> dict[str, float]:
        runs = [
            {row["name"]: score for row, _, score in run if row["kind"] != BASELINE.kind}
            for run in candidate.points()
        ]
        shared = set(runs[0]).intersection(*runs[1:])
        return {name: statistics.fmean(run[name] for run in runs) for name in shared}

    before, after = by_name(one), by_name(other)
    return [after[name] - before[name] for name in sorted(before.keys() & after.keys())]
