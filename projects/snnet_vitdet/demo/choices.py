"""The stitches to choose from: what each costs and scores, and the one to take for a budget."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import StitchTable
from snnet_vitdet.evaluation.results import SCORES, comparable, has_value
from snnet_vitdet.stitching import Cost, Stitch

__all__ = ["BUDGETS", "Choices", "Point"]

BUDGETS = {"gflops": ("GFLOPs", ""), "latency_ms": ("time", "ms"), "memory_mb": ("memory", "MB")}
"""What a budget can limit: how it is called, and its unit."""


@dataclass(frozen=True)
class Point:
    """A stitch in the plot.

    Attributes:
        id: Id of the stitch.
        name: Its name.
        kind: Its kind.
        x: What it costs.
        y: What it scores; its parameters in millions where nothing is scored.
    """

    id: int
    name: str
    kind: str
    x: float
    y: float


class Choices:
    """The stitches there are, with what is known of them."""

    def __init__(
        self, stitches: Sequence[Stitch], costs: Sequence[Cost], table: StitchTable | None
    ) -> None:
        """
        Args:
            stitches: All of a model, or some, ordered by id.
            costs: Of each, in the same order.
            table: What a sweep found; None without one.

        Raises:
            InputError: If the sweep is of another model.
        """
        ids = [stitch.id for stitch in stitches]
        self.stitches = dict(zip(ids, stitches, strict=True))
        """By id."""
        self.table = table
        self._costs = dict(zip(ids, costs, strict=True))
        rows = table.rows() if table else []
        for row in rows:
            stitch = self.stitches.get(row["stitch_id"])
            if stitch is None or stitch.name != row["name"]:
                raise InputError(
                    f"the sweep has a stitch {row['name']} with id {row['stitch_id']} and the "
                    "model has not: it is the sweep of another model"
                )
        self._rows = {row["stitch_id"]: row for row in rows}
        self._compared = {row["stitch_id"]: row for row in comparable(rows)}

    @property
    def is_choice(self) -> bool:
        """Whether there is more than one stitch."""
        return len(self.stitches) > 1

    @property
    def scores(self) -> list[str]:
        """Which of ``SCORES`` there are; none without a sweep."""
        rows = self._compared.values()
        return [by for by, column in SCORES.items() if any(has_value(row, column) for row in rows)]

    @property
    def budgets(self) -> list[str]:
        """Which of ``BUDGETS`` are known of some stitch that can be chosen."""
        return [budget for budget in BUDGETS if self._candidates(budget)]

    @property
    def has_best_f1(self) -> bool:
        """Whether the sweep knows the score of the largest F1, of some stitch at least."""
        return any(self._best_f1_known(stitch_id) for stitch_id in self._rows)

    def best_f1(self, stitch_id: int) -> float:
        """The score from which on a stitch's detections have their largest F1.

        Raises:
            InputError: If the sweep does not know it.
        """
        if self.table is None:
            raise InputError("without a sweep there is no best F1: give a score")
        return self.table.threshold(stitch_id, "f1")

    def score(self, stitch_id: int, by: str) -> float | None:
        """AP of a stitch, None where it was not scored."""
        row = self._rows.get(stitch_id, {})
        return row[SCORES[by]] if has_value(row, SCORES[by]) else None

    def cost(self, stitch_id: int, budget: str) -> float | None:
        """What a stitch takes of a budget, None where it was not measured."""
        if budget == "gflops":
            return self._costs[stitch_id].gflops
        return self._rows.get(stitch_id, {}).get(budget)

    def params_m(self, stitch_id: int) -> float:
        """Parameters of a stitch in millions."""
        return self._costs[stitch_id].params_m

    def limits(self, budget: str) -> tuple[float, float, float]:
        """Ends and step of a slider: the lower one is enough for the cheapest stitch."""
        costs = [self.cost(i, budget) for i in self._candidates(budget)]
        span = max(costs) - min(costs) or max(costs)
        # As many steps as are easily set by hand, of a round length.
        step = 10 ** math.floor(math.log10(span / 100))
        step = next(step * f for f in (1, 2, 5, 10) if span <= 200 * step * f)
        low = math.ceil(min(costs) / step)
        high = max(math.ceil(max(costs) / step), low + 1)
        digits = max(0, -math.floor(math.log10(step)))
        return round(low * step, digits), round(high * step, digits), round(step, digits)

    def within(self, budget: str, limit: float, by: str) -> int:
        """Id of the stitch of the highest AP within a budget.

        Without scores, of the one that computes the most: nothing else is known.

        Raises:
            InputError: If there is none.
        """
        if by in self.scores:
            return self.table.best(by, **{f"max_{budget}": limit}).id
        within = [i for i in self._candidates(budget) if self.cost(i, budget) <= limit]
        if not within:
            cheapest = min(self.cost(i, budget) for i in self._candidates(budget))
            raise InputError(f"no stitch takes at most {limit:g}: the cheapest has {cheapest:.4g}")
        return max(within, key=lambda i: (self._costs[i].gflops, -i))

    def points(self, budget: str, by: str) -> list[Point]:
        """What is in the plot."""
        points = []
        for i in self._candidates(budget):
            y = self.score(i, by) if self.scores else self.params_m(i)
            if y is not None:
                stitch = self.stitches[i]
                points.append(Point(i, stitch.name, stitch.kind, self.cost(i, budget), y))
        return points

    def _best_f1_known(self, stitch_id: int) -> bool:
        try:
            self.best_f1(stitch_id)
        except InputError:
            return False
        return True

    def _candidates(self, budget: str) -> list[int]:
        """Those with a known cost; after a sweep, of those it has compared."""
        ids = list(self.stitches)
        if self.scores:
            ids = [i for i in ids if i in self._compared]
        return [i for i in ids if self.cost(i, budget) is not None]
