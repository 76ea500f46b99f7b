"""The rows of a study, a run each, and what they say of its variants."""

import csv
import io
import math
import os
from pathlib import Path

from snnet_vitdet.errors import InputError
from snnet_vitdet.files import write_atomically

from .scores import paired
from .variants import ALONE, PAPER, VARIANTS

__all__ = ["StudyTable"]

_SCORES = {
    "small": "small end",
    "small_gap": "less S alone",
    "large": "large end",
    "large_gap": "less L alone",
    "over_line": "over the line",
}
_COST = "cost"
_KINDS = ("FS", "SF", "FSF", "SFS")
_COLUMNS = ("seed", "run", *_SCORES, _COST, *_KINDS)


class StudyTable:
    """What each run of a study has reached.

    Columns are ``seed`` and ``run``; box AP of the ends and their gaps to the ViTs alone, and
    ``over_line``, as in :class:`Scores`; ``cost``, the training's arithmetic over that of the large
    ViT alone; and the mean AP of each kind. A run of a single ViT has one end alone.
    """

    def __init__(self, paper_cost: float) -> None:
        """Without rows.

        Args:
            paper_cost: Arithmetic of a training by the paper's recipe over that of the large ViT
                alone; what the others cost is told beside it, whether or not it was run.
        """
        self._paper_cost = paper_cost
        self._rows: dict[tuple[int, str], dict[str, float]] = {}

    @property
    def runs(self) -> list[str]:
        """Names of the runs: in the order of the variants, others by their names after them."""
        order = [variant.name for variant in (*ALONE.values(), *VARIANTS)]
        there = {run for _, run in self._rows}
        return [run for run in order if run in there] + sorted(there - set(order))

    def add(self, seed: int, run: str, values: dict[str, float]) -> None:
        """Takes in a row.

        Args:
            seed: Of the run.
            run: Its name.
            values: By column; others than those of the table are left out.

        Raises:
            InputError: If that run is there already.
        """
        if (seed, run) in self._rows:
            raise InputError(f"the run {run} of seed {seed} is there twice")
        self._rows[seed, run] = {key: values[key] for key in _COLUMNS if key in values}

    def read(self, path: str | os.PathLike[str]) -> None:
        """Takes in the rows of a file that :meth:`write` has written.

        Raises:
            InputError: If it cannot be read, is no such file, or has a run that is there already.
        """
        try:
            with open(path, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            parsed = [
                (
                    int(row["seed"]),
                    row["run"],
                    {key: float(row[key]) for key in _COLUMNS[2:] if row.get(key)},
                )
                for row in rows
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
        """What the runs of a name have reached, by seed; empty without any."""
        return {
            seed: values[column]
            for (seed, name), values in self._rows.items()
            if name == run and column in values
        }

    def mean(self, run: str, column: str) -> tuple[float, float]:
        """Of what the runs of a name have reached, with its standard error; NaN of a single one.

        Raises:
            ValueError: Without any.
        """
        results = self.results(run, column)
        return paired(results, dict.fromkeys(results, 0.0))

    def times(self, run: str) -> float:
        """What a training costs over that of the paper's recipe; NaN where no row has a cost."""
        return _first(self.results(run, _COST)) / self._paper_cost

    def summary(self) -> str:
        """Means over the seeds with their standard errors, as a Markdown table.

        In brackets, the differences to the paper's recipe, taken seed by seed. The cost is that of
        a training over that of the large ViT alone, then over that of the paper's recipe.
        """
        heads = ["run", "seeds", *_SCORES.values(), "cost"]
        lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
        for run in self.runs:
            seeds = sum(name == run for _, name in self._rows)
            cells = [f"`{run}`", str(seeds), *(self._cell(run, column) for column in _SCORES)]
            cost, times = _first(self.results(run, _COST)), self.times(run)
            cells.append("" if math.isnan(cost) else f"{cost:.2f} ({times:.2f}×)")
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def _cell(self, run: str, column: str) -> str:
        own, of_paper = self.results(run, column), self.results(PAPER.name, column)
        if not own:
            return ""
        # Values that are a difference already have their sign, and no second one beside them.
        gap = column in ("small_gap", "large_gap")
        form = "{:.2f}" if column in ("small", "large") else "{:+.2f}"
        text = _with_error(form, *self.mean(run, column))
        if run != PAPER.name and not gap and own.keys() & of_paper.keys():
            text += f" ({_with_error('{:+.2f}', *paired(own, of_paper))})"
        return text


def _first(results: dict[int, float]) -> float:
    """Of what is the same for every seed."""
    return next(iter(results.values()), math.nan)


def _with_error(form: str, mean: float, error: float) -> str:
    return form.format(mean) + ("" if math.isnan(error) else f" ± {error:.2f}")
