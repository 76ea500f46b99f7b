"""The table of a sweep: what each stitch costs and scores, which one to choose, and its files."""

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any, NoReturn

from snnet_vitdet.errors import InputError, first_line
from snnet_vitdet.files import read_json, write_atomically
from snnet_vitdet.stitching import split_point_name

from .results import (
    CIRCUMSTANCES,
    COLUMNS,
    IDENTITY,
    MEASURED,
    METRICS,
    SCORES,
    Row,
    StitchResult,
    best_row,
    comparable,
    has_value,
    on_frontier,
    results_of,
    to_csv,
    to_json,
)
from .score_curves import CURVES_FILE, ScoreCurve, read_curves, write_curves

__all__ = ["LATENCY_FILE", "MEASURED_CSV", "StitchEntry", "StitchTable"]

logger = logging.getLogger(__name__)

LATENCY_FILE = "latency.json"
"""What ``tools/measure_latency.py`` writes beside a sweep's results."""

MEASURED_CSV = "stitches_measured.csv"
"""The table with measurements, beside ``stitches.csv``; a new sweep deletes it."""

# The column that each budget limits, and its unit.
_BUDGETS = {
    "max_gflops": ("gflops", "GFLOPs"),
    "max_params_m": ("params_m", "M parameters"),
    "max_latency_ms": ("latency_ms", "ms"),
    "max_memory_mb": ("memory_mb", "MB"),
}


@dataclass(frozen=True)
class StitchEntry:
    """One operating point of a table.

    Attributes:
        result: What the sweep found.
        curve: Its detections above each score, for thresholds; None if they were not counted.
        latency_ms: Median time per image; None if not measured.
        latency_ms_p90: 90th percentile of the time per image.
        memory_mb: Peak memory of the stitch alone, weights included.
    """

    result: StitchResult
    curve: ScoreCurve | None = None
    latency_ms: float | None = None
    latency_ms_p90: float | None = None
    memory_mb: float | None = None

    @property
    def id(self) -> int:
        """Id in the stitch space."""
        return self.result.stitch_id

    @property
    def name(self) -> str:
        """Name of the operating point; that of the stitch if it runs as it was trained."""
        return self.result.name

    @property
    def gflops(self) -> float:
        """Multiply–accumulates / 1e9."""
        return self.result.gflops

    @property
    def params_m(self) -> float:
        """Parameters in millions."""
        return self.result.params_m


class StitchTable:
    """The operating points of a sweep, ordered by id, image size and number of proposals.

    A sweep fills it, and a user chooses from it. Without ``sweep.image_sizes`` and
    ``sweep.proposals`` a point is a stitch as it was trained.
    """

    def __init__(
        self,
        results: Iterable[StitchResult] = (),
        measurements: Mapping[str, Any] | None = None,
        source: str = "the sweep",
    ) -> None:
        """
        Args:
            results: Results of stitches.
            measurements: The content of a ``latency.json``.
            source: Name of the sweep in error messages.

        Raises:
            InputError: If the measurements are damaged or of other stitches.
        """
        self.device: str | None = None
        """The device of the measurements."""
        self._source = source
        self._entries: dict[tuple[int, int, int], StitchEntry] = {}
        for result in results:
            self.put(result)
        if measurements is not None:
            self._add_measurements(measurements, "the content given as measurements")

    def put(self, result: StitchResult, curve: ScoreCurve | None = None) -> None:
        """Adds an operating point; it replaces an earlier entry of the same point."""
        self._entries[result.key] = StitchEntry(result, curve)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[StitchEntry]:
        return (self._entries[key] for key in sorted(self._entries))

    def __contains__(self, stitch: int | str) -> bool:
        return self._find(stitch) is not None

    def __getitem__(self, stitch: int | str) -> StitchEntry:
        """The entry with this name, such as ``FS-3@640/300``, or this id of a stitch.

        An id, which may be given as a text, and the name of a stitch stand for the stitch as it was
        trained.

        Raises:
            KeyError: If it was not swept.
        """
        entry = self._find(stitch)
        if entry is None:
            raise KeyError(f"stitch {stitch!r} is not among those that were swept")
        return entry

    def _find(self, stitch: int | str) -> StitchEntry | None:
        if isinstance(stitch, bool):
            return None
        try:
            name, given = split_point_name(stitch) if isinstance(stitch, str) else (stitch, None)
        except ValueError:
            return None
        if isinstance(name, str) and name.isdecimal():
            name = int(name)
        for entry in self:
            result = entry.result
            if name in (entry.id, entry.name.partition("@")[0]) and (
                "@" not in entry.name
                if given is None
                else given == (result.image_size, result.num_proposals)
            ):
                return entry
        return None

    def check_trained_with(
        self, trained_with: Callable[[int], tuple[int, int]], padding: str
    ) -> None:
        """Checks that the sweep ran the stitches as a model runs them.

        Args:
            trained_with: Returns image size and number of proposals that the model runs a stitch
                with, by its id.
            padding: How the model pads images: ``square`` or ``tight``.

        Raises:
            InputError: If the sweep had other ones, by overrides of its config or of the model's.
        """
        for entry in self:
            if padding != entry.result.padding:
                raise InputError(
                    f"{self._source} is a sweep with {entry.result.padding} padding, and its costs "
                    f"and scores are not those of {padding} padding: give "
                    f"sweep.padding={entry.result.padding}, or in Python "
                    f'padding="{entry.result.padding}"; or take the folder of a sweep with '
                    f"{padding} padding"
                )
            swept = (entry.result.image_size, entry.result.num_proposals)
            if "@" in entry.name or None in swept or swept == (own := trained_with(entry.id)):
                continue
            raise InputError(
                f"{self._source} scored {entry.name} at {swept[0]} pixels with {swept[1]} "
                f"proposals, but the config has {own[0]} and {own[1]}: give the same "
                "data.image_size and model.proposal_generator.post_nms_topk, or sweep this config "
                "into another train.output_dir"
            )

    def rows(self) -> list[dict[str, Any]]:
        """One flat row per operating point: the keys of ``COLUMNS``, then those of ``MEASURED``.

        ``on_pareto`` says whether the stitch is on the frontier of box AP over GFLOPs among the
        stitches scored on the most images. A missing score is NaN, a missing measurement None.
        """
        rows = [
            {
                **{name: getattr(entry.result, name) for name in IDENTITY},
                **entry.result.metrics,
                "on_pareto": False,
                **{name: getattr(entry.result, name) for name in CIRCUMSTANCES},
                **{name: getattr(entry, name) for name in MEASURED},
            }
            for entry in self
        ]
        for row, is_on in zip(rows, on_frontier(rows, SCORES["box"]), strict=True):
            row["on_pareto"] = is_on
        return rows

    def best(
        self,
        by: str = "box",
        *,
        max_gflops: float | None = None,
        max_params_m: float | None = None,
        max_latency_ms: float | None = None,
        max_memory_mb: float | None = None,
    ) -> StitchEntry:
        """The stitch with the highest AP within all budgets; of equal ones the cheapest.

        Only stitches scored on the most images are candidates: if a sweep scored some stitches on a
        subset of the images, these are left out.

        Args:
            by: ``box``, ``mask`` or the name of a score, such as ``bbox_AP50``.
            max_gflops: Limit on multiply–accumulates / 1e9.
            max_params_m: Limit on parameters in millions.
            max_latency_ms: Limit on the median time per image, as measured on the device.
            max_memory_mb: Limit on peak memory, as measured on the device.

        Raises:
            InputError: If no stitch has the score, has a measurement that a budget needs, or is
                within the budgets; the message names the cheapest stitch.
        """
        metric = SCORES.get(by, by) if isinstance(by, str) else None
        if metric not in METRICS:
            raise InputError(
                f"stitches are chosen by box, mask or one of {', '.join(METRICS)}, not by {by!r}"
            )
        all_rows = self.rows()
        rows = [row for row in comparable(all_rows) if has_value(row, metric)]
        if not rows:
            raise InputError(f"no stitch of {self._source} has a {metric}: choose by another score")
        limits = {
            "max_gflops": max_gflops,
            "max_params_m": max_params_m,
            "max_latency_ms": max_latency_ms,
            "max_memory_mb": max_memory_mb,
        }
        within = _within(rows, {name: x for name, x in limits.items() if x is not None})
        best = best_row(within, metric)
        return next(entry for entry, row in zip(self, all_rows, strict=True) if row is best)

    def threshold(self, stitch: int | str, criterion: str) -> float:
        """The lowest score at which detections of a stitch should be kept.

        Each stitch needs its own threshold: the same score means a different precision for each.

        Args:
            stitch: Id or name.
            criterion: ``f1`` or ``precision=0.9``, on the images of the sweep (box IoU of 0.5).

        Raises:
            InputError: If the sweep has no score curve of the stitch, or no score meets the
                criterion.
        """
        entry = self._find(stitch)
        curve = entry and entry.curve
        if curve is None:
            raise InputError(
                f"{self._source} has no score curve of stitch {stitch}: sweep it, with "
                "sweep.mode=one_pass, or give a score"
            )
        return curve.threshold(criterion)

    def warn_unless_of(self, weights: str, iterations: int | None) -> None:
        """Warns if the sweep scored weights with another number of training iterations.

        Args:
            weights: Name of the weights in use, for the message.
            iterations: Number of iterations they were trained for; None if unknown.
        """
        swept = {entry.result.iteration for entry in self} - {None, iterations}
        if swept and iterations is not None:
            logger.warning(
                "%s scored the weights after %s iterations, but %s has been trained for %d: its "
                "scores and thresholds are those of other weights. Sweep again.",
                self._source,
                " and ".join(map(str, sorted(swept))),
                weights,
                iterations,
            )

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Writes ``stitches.json``, ``stitches.csv`` and, if there are any, the score curves.

        Each file is replaced as a whole or not at all. The JSON is a list of rows with exact
        numbers and null for NaN. The CSV is for reading: four decimals, an empty field for a
        missing value, cuts as ``3-7``.

        Raises:
            InputError: If the folder cannot be written to.
        """
        folder, rows = Path(folder), self.rows()
        curves = {entry.result.key: entry.curve for entry in self if entry.curve is not None}
        # The curves first: a resumed sweep does not score a stitch again that has a row.
        if curves or (folder / CURVES_FILE).is_file():
            write_curves(folder, curves)
        write_atomically(folder / "stitches.json", to_json(rows).encode())
        write_atomically(folder / "stitches.csv", to_csv(rows, COLUMNS).encode())

    def write_measured(self, path: str | os.PathLike[str]) -> None:
        """Writes the CSV with the measured columns added."""
        write_atomically(path, to_csv(self.rows(), (*COLUMNS, *MEASURED)).encode())

    @classmethod
    def read_results(cls, folder: str | os.PathLike[str]) -> "StitchTable":
        """Reads back exactly what :meth:`write` wrote, without measurements, perhaps no row yet.

        Raises:
            InputError: If a file is missing, damaged or not one of a sweep.
        """
        path = Path(folder) / "stitches.json"
        try:
            results = results_of(read_json(path, parse_constant=_refuse_constant))
        except OSError as error:
            raise InputError(
                f"Cannot read the sweep's results {path}: {error.strerror}. "
                "Give the folder of a finished or interrupted sweep, or run the sweep."
            ) from error
        except (OverflowError, TypeError, ValueError) as error:
            raise InputError(
                f"{path} is damaged or was not written by a sweep: {first_line(error)}. "
                "Move it away and run the sweep again, or give another folder."
            ) from error
        table = cls(source=str(folder))
        curves = read_curves(folder)
        for result in results:
            table.put(result, curves.get(result.key))
        return table

    @classmethod
    def read(
        cls,
        folder: str | os.PathLike[str],
        latency_file: str | os.PathLike[str] | None = None,
    ) -> "StitchTable":
        """Reads the results of a sweep, and the measurements beside them if there are any.

        Args:
            folder: Folder of the sweep, or of the training it belongs to.
            latency_file: Measurements to read instead, such as those of another device.

        Raises:
            InputError: If a file is missing, damaged, without results, or not of this sweep.
        """
        folder = Path(folder)
        if not (folder / "stitches.json").is_file() and (folder / "sweep").is_dir():
            folder /= "sweep"
        table = cls.read_results(folder)
        if not len(table):
            raise InputError(f"{folder} has no results yet: sweep at least one stitch")
        path = Path(folder / LATENCY_FILE if latency_file is None else latency_file)
        if latency_file is not None or path.is_file():
            try:
                measurements = read_json(path)
            except OSError as error:
                raise InputError(
                    f"cannot read the measurements {path}: {error.strerror}; "
                    "tools/measure_latency.py makes them"
                ) from error
            except ValueError as error:
                raise _damaged(str(path), error) from error
            table._add_measurements(measurements, str(path))
        return table

    def _add_measurements(self, measurements: Mapping[str, Any], source: str) -> None:
        try:
            rows = [(row["stitch_id"], row["name"], _measured(row)) for row in measurements["rows"]]
            self.device = measurements.get("device")
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise _damaged(source, error) from error
        padding = measurements.get("padding", "square")
        if other := {entry.result.padding for entry in self} - {padding}:
            raise InputError(
                f"{source} was measured with {padding} padding, but {self._source} is a sweep with "
                f"{other.pop()} padding: measure again"
            )
        names = {entry.id: entry.name.partition("@")[0] for entry in self}
        measured_of = {(stitch_id, name): measured for stitch_id, name, measured in rows}
        for stitch_id, name in measured_of:
            stitch = name.partition("@")[0]
            if stitch != names.get(stitch_id, stitch):
                raise InputError(
                    f"the measured times are not those of {self._source}: stitch {stitch_id} is "
                    f"{stitch} there and {names[stitch_id]} here; measure again"
                )
        for key, entry in self._entries.items():
            if measured := measured_of.get((entry.id, entry.name)):
                self._entries[key] = replace(entry, **measured)


def _within(rows: Sequence[Row], limits: Mapping[str, float]) -> Sequence[Row]:
    before: list[str] = []
    for budget, limit in limits.items():
        column, unit = _BUDGETS[budget]
        if not isinstance(limit, Real) or isinstance(limit, bool) or not limit > 0:
            raise InputError(f"{budget} must be a number above 0, got {limit!r}")
        known = [row for row in rows if row[column] is not None]
        if not known:
            raise InputError(
                f"{budget} needs time and memory as measured on your device, and none of the "
                "stitches in question was measured: run tools/measure_latency.py first"
            )
        rows = [row for row in known if row[column] <= limit]
        if not rows:
            cheapest = min(known, key=lambda row: row[column])
            within = f" within {' and '.join(before)}" if before else ""
            raise InputError(
                f"no stitch{within} takes at most {limit:g} {unit}: the cheapest is "
                f"{cheapest['name']} (id {cheapest['stitch_id']}) "
                f"with {cheapest[column]:.4g} {unit}"
            )
        before.append(budget)
    return rows


def _measured(row: Mapping[str, Any]) -> dict[str, float]:
    """The measurements in a row of ``latency.json``, if the row is in order."""
    if type(row["stitch_id"]) is not int or not isinstance(row["name"], str):
        raise ValueError("a row has no stitch_id or no name")
    measured = {key: row[key] for key in MEASURED}
    for key, value in measured.items():
        if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
            raise ValueError(f"{key} is {value!r}")
    return measured


def _damaged(measurements: str, error: Exception) -> InputError:
    return InputError(
        f"{measurements} is damaged or was not written by tools/measure_latency.py "
        f"({first_line(error)}): measure again"
    )


def _refuse_constant(constant: str) -> NoReturn:
    """For ``json.loads``: refuses NaN and infinities, which are not JSON."""
    raise ValueError(f"{constant} is not a JSON number")
