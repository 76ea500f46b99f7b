"""The operating points to choose from: their costs and scores, and the one for a budget."""

import math
from collections.abc import Sequence

from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import StitchTable
from snnet_vitdet.evaluation.results import SCORES, Row, best_row, comparable, has_value
from snnet_vitdet.stitching import Cost, Stitch

__all__ = ["BUDGETS", "Choices"]

BUDGETS = {"gflops": ("GFLOPs", ""), "latency_ms": ("time", "ms"), "memory_mb": ("memory", "MB")}
"""The columns that a budget can limit: how each is called, and its unit."""


class Choices:
    """The stitches of a model and all points of its sweep, with all that is known about them."""

    def __init__(
        self,
        stitches: Sequence[Stitch],
        costs: Sequence[Cost],
        table: StitchTable | None,
        names: Sequence[str] | None = None,
    ) -> None:
        """
        Args:
            stitches: All stitches of a model, or some of them, ordered by id.
            costs: The cost of each, in the same order.
            table: The results of a sweep; None without a sweep.
            names: Names of exported points, in the same order; None for the stitches as trained.

        Raises:
            InputError: If the sweep is of another model.
        """
        self.table = StitchTable() if table is None else table
        self.rows: dict[str, Row] = {
            name: {
                "stitch_id": stitch.id,
                "name": name,
                "kind": stitch.kind,
                "gflops": cost.gflops,
                "params_m": cost.params_m,
            }
            for name, stitch, cost in zip(
                names or [stitch.name for stitch in stitches], stitches, costs, strict=True
            )
        }
        """What is known about each point, by name; one that was swept has a row of the sweep."""
        ids = {stitch.name: stitch.id for stitch in stitches}
        swept = self.table.rows()
        for row in swept:
            stitch_id, name = row["stitch_id"], row["name"]
            if ids.get(name.partition("@")[0]) != stitch_id:
                raise InputError(
                    f"the sweep has a stitch {name} with id {stitch_id}, which the model does not "
                    "have: it is the sweep of another model"
                )
            self.rows[name] = row
        self._compared = comparable(swept)

    @property
    def is_choice(self) -> bool:
        """Whether there is more than one point."""
        return len(self.rows) > 1

    @property
    def scores(self) -> list[str]:
        """Which of ``SCORES`` there are; none without a sweep."""
        return [
            by
            for by, column in SCORES.items()
            if any(has_value(row, column) for row in self._compared)
        ]

    @property
    def budgets(self) -> list[str]:
        """Which of ``BUDGETS`` are known for some stitch that can be chosen."""
        return [budget for budget in BUDGETS if self._candidates(budget)]

    @property
    def has_best_f1(self) -> bool:
        """Whether the sweep knows the score of the largest F1 for some stitch."""
        return any(entry.curve and any(entry.curve.matched) for entry in self.table)

    def best_f1(self, name: str) -> float:
        """The score from which on a point's detections have their largest F1.

        Raises:
            InputError: If the sweep does not know it.
        """
        if not len(self.table):
            raise InputError("without a sweep there is no best F1: give a score")
        return self.table.threshold(name, "f1")

    def limits(self, budget: str) -> tuple[float, float, float]:
        """Ends and step of a slider: the lower one is enough for the cheapest stitch."""
        costs = [row[budget] for row in self._candidates(budget)]
        span = max(costs) - min(costs) or max(costs)
        # Round steps, and no more of them than a hand can set.
        step = 10 ** math.floor(math.log10(span / 100))
        step = next(step * f for f in (1, 2, 5, 10) if span <= 200 * step * f)
        low = math.ceil(min(costs) / step)
        high = max(math.ceil(max(costs) / step), low + 1)
        digits = max(0, -math.floor(math.log10(step)))
        return round(low * step, digits), round(high * step, digits), round(step, digits)

    def within(self, budget: str, limit: float, by: str) -> str:
        """Name of the point with the highest AP within a budget.

        Without scores, it is the stitch that computes the most: nothing else is known.

        Raises:
            InputError: If no stitch is within the budget.
        """
        if by in self.scores:
            return self.table.best(by, **{f"max_{budget}": limit}).name
        candidates = self._candidates(budget)
        within = [row for row in candidates if row[budget] <= limit]
        if not within:
            cheapest = min(row[budget] for row in candidates)
            raise InputError(f"no stitch takes at most {limit:g}: the cheapest has {cheapest:.4g}")
        return best_row(within, "gflops")["name"]

    def points(self, budget: str, by: str) -> list[tuple[Row, float, float]]:
        """The stitches in the plot: row, cost, and score, or parameters where nothing is scored."""
        column = SCORES[by] if self.scores else "params_m"
        rows = [row for row in self._candidates(budget) if has_value(row, column)]
        return [(row, row[budget], row[column]) for row in rows]

    def _candidates(self, budget: str) -> list[Row]:
        """The rows with a known cost; after a sweep, the comparable ones among them."""
        rows = self._compared if self.scores else self.rows.values()
        return [row for row in rows if has_value(row, budget)]
