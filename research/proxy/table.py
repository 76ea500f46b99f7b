"""The rows of the study, one for each run, and what they say about its variants."""

import csv
import io
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import Frontier
from snnet_vitdet.files import write_atomically

from .variants import ALONE, PAPER, VARIANTS

__all__ = ["StudyTable", "paired", "scores_alone", "scores_of"]

_SCORES = {
    "small": "small end",
    "small_gap": "less S alone",
    "large": "large end",
    "large_gap": "less L alone",
    "over_line": "over the line",
}
# Where masks were scored.
_MASK_SCORES = {
    "small_mask": "small end, masks",
    "small_mask_gap": "less S alone, masks",
    "large_mask": "large end, masks",
    "large_mask_gap": "less L alone, masks",
}
_COST = "cost"
_KINDS = ("FS", "SF", "FSF", "SFS")
_COLUMNS = ("seed", "run", *_SCORES, _COST, *_KINDS, *_MASK_SCORES)


def scores_of(
    rows: Sequence[Mapping], small_alone: Mapping, large_alone: Mapping
) -> dict[str, float]:
    """Compares a sweep with the two ViTs alone, of the same pretraining and seed.

    Args:
        rows: Rows of the sweep of a supernet, including S and L.
        small_alone: The row of the small ViT, trained alone.
        large_alone: The row of the large ViT, trained alone.

    Returns:
        Box AP of the ends (``small``, ``large``), their differences to the ViTs alone
        (``small_gap``, ``large_gap``), the same of masks if they were scored (``small_mask`` and so
        on), the mean box AP of each kind of stitch, and ``over_line``: the mean height of the
        frontier over the straight line between the two ViTs alone, over all costs between them.

    Raises:
        KeyError: If S or L was not swept.
    """
    by_name = {row["name"]: row for row in rows}
    ends = {
        **scores_alone("small", by_name["S"], small_alone),
        **scores_alone("large", by_name["L"], large_alone),
    }
    kinds: dict[str, list[float]] = {}
    for row in rows:
        kinds.setdefault(row["kind"], []).append(row["bbox_AP"])
    low, high = small_alone["gflops"], large_alone["gflops"]
    frontier = Frontier([row["gflops"] for row in rows], [row["bbox_AP"] for row in rows])
    # The small end of the supernet costs a little more than the small ViT alone. Both the frontier
    # and the line are counted from there on.
    start = max(low, frontier.costs[0])
    slope = (large_alone["bbox_AP"] - small_alone["bbox_AP"]) / (high - low)
    at_start = small_alone["bbox_AP"] + slope * (start - low)
    return {
        **ends,
        "over_line": frontier.mean(start, high) - (at_start + large_alone["bbox_AP"]) / 2,
        **{kind: statistics.fmean(values) for kind, values in kinds.items()},
    }


def scores_alone(end: str, row: Mapping, alone: Mapping) -> dict[str, float]:
    """AP of one end, and its difference to the ViT alone of the usual length.

    Args:
        end: ``small`` or ``large``.
        row: The row of this end, or of its ViT alone, maybe trained for longer.
        alone: The row of its ViT, trained alone; no difference is taken with itself.

    Returns:
        The values by column.
    """
    values = {}
    for metric, suffix in (("bbox_AP", ""), ("segm_AP", "_mask")):
        if metric in row:
            values[f"{end}{suffix}"] = row[metric]
            if row is not alone:
                values[f"{end}{suffix}_gap"] = row[metric] - alone[metric]
    return values


def paired(values: Mapping[int, float], others: Mapping[int, float]) -> tuple[float, float]:
    """Mean of the differences ``values - others`` over the seeds of both, and its standard error.

    The error is NaN for a single seed.

    Raises:
        ValueError: If no seed has both.
    """
    both = sorted(values.keys() & others.keys())
    if not both:
        raise ValueError("no seed has been run for both")
    differences = [values[seed] - others[seed] for seed in both]
    error = statistics.stdev(differences) / math.sqrt(len(both)) if len(both) > 1 else math.nan
    return statistics.fmean(differences), error


class StudyTable:
    """The results of all runs.

    The columns are ``seed``, ``run``, the scores of :func:`scores_of`, and ``cost``: the arithmetic
    of the training relative to the large ViT alone. A run of one ViT alone has one end only.
    """

    def __init__(self, paper_cost: float) -> None:
        """Creates an empty table.

        Args:
            paper_cost: Cost of the paper's recipe. Other costs are shown relative to it, too.
        """
        self._paper_cost = paper_cost
        self._rows: dict[tuple[int, str], dict[str, float]] = {}

    @property
    def runs(self) -> list[str]:
        """Names of the runs: first in the order of the variants, then others by name."""
        order = [variant.name for variant in (*ALONE.values(), *VARIANTS)]
        present = {run for _, run in self._rows}
        return [run for run in order if run in present] + sorted(present - set(order))

    def add(self, seed: int, run: str, values: Mapping[str, float]) -> None:
        """Adds a row.

        Args:
            seed: Seed of the run.
            run: Name of the run.
            values: Values by column; unknown columns are left out.

        Raises:
            InputError: If the run is there already.
        """
        if (seed, run) in self._rows:
            raise InputError(f"the run {run} of seed {seed} is there twice")
        self._rows[seed, run] = {key: values[key] for key in _COLUMNS if key in values}

    def read(self, path: str | os.PathLike[str]) -> None:
        """Adds the rows of a file that :meth:`write` has written.

        Raises:
            InputError: If it cannot be read, is no such file, or has a run that is there already.
        """
        try:
            with open(path, newline="", encoding="utf-8") as file:
                parsed = [
                    (
                        int(row["seed"]),
                        row["run"],
                        {key: float(row[key]) for key in _COLUMNS[2:] if row.get(key)},
                    )
                    for row in csv.DictReader(file)
                ]
        except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} cannot be read as the rows of a study: {error!r}") from error
        for row in parsed:
            try:
                self.add(*row)
            except InputError as error:
                raise InputError(f"{path}: {error}") from error

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes all rows as CSV, whole or not at all.

        Raises:
            InputError: If it cannot be written.
        """
        text = io.StringIO()
        writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {"seed": seed, "run": run, **values} for (seed, run), values in self._rows.items()
        )
        write_atomically(Path(path), text.getvalue().encode())

    def results(self, run: str, column: str) -> dict[int, float]:
        """Values of a run in a column by seed; empty if there are none."""
        return {
            seed: values[column]
            for (seed, name), values in self._rows.items()
            if name == run and column in values
        }

    def mean(self, run: str, column: str) -> tuple[float, float]:
        """Mean of the values of a run in a column, and its standard error (NaN of one value).

        Raises:
            ValueError: If there are none.
        """
        results = self.results(run, column)
        return paired(results, dict.fromkeys(results, 0.0))

    def times(self, run: str) -> float:
        """Cost of a training relative to the paper's recipe; NaN if no row has a cost."""
        return _first(self.results(run, _COST)) / self._paper_cost

    def summary(self) -> str:
        """Means over the seeds with standard errors, as a Markdown table.

        In brackets: differences to the paper's recipe, taken seed by seed. The cost is relative to
        the large ViT alone, in brackets relative to the paper's recipe.
        """
        shown = _SCORES | {
            key: head
            for key, head in _MASK_SCORES.items()
            if any(key in values for values in self._rows.values())
        }
        heads = ["run", "seeds", *shown.values(), "cost"]
        lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
        for run in self.runs:
            seeds = sum(name == run for _, name in self._rows)
            cells = [f"`{run}`", str(seeds), *(self._cell(run, column) for column in shown)]
            cost, times = _first(self.results(run, _COST)), self.times(run)
            cells.append("" if math.isnan(cost) else f"{cost:.2f} ({times:.2f}×)")
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def _cell(self, run: str, column: str) -> str:
        own, of_paper = self.results(run, column), self.results(PAPER.name, column)
        if not own:
            return ""
        # A gap is a difference already: it has a sign, and no second difference beside it.
        gap = column.endswith("_gap")
        form = "{:+.2f}" if gap or column == "over_line" else "{:.2f}"
        text = _with_error(form, *self.mean(run, column))
        if run != PAPER.name and not gap and own.keys() & of_paper.keys():
            text += f" ({_with_error('{:+.2f}', *paired(own, of_paper))})"
        return text


def _first(results: Mapping[int, float]) -> float:
    """The value of any seed, for what is the same for all."""
    return next(iter(results.values()), math.nan)


def _with_error(form: str, mean: float, error: float) -> str:
    return form.format(mean) + ("" if math.isnan(error) else f" ± {error:.2f}")
