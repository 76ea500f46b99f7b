"""Choosing a stitch for a budget from the results of a sweep and what was measured on a device."""

import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from snnet_vitdet.errors import InputError, first_line
from snnet_vitdet.evaluation import ResultsTable, ScoreCurves, StitchResult
from snnet_vitdet.evaluation.results import METRICS, SCORES
from snnet_vitdet.files import read_json

__all__ = ["LATENCY_FILE", "StitchEntry", "StitchTable"]

logger = logging.getLogger(__name__)

LATENCY_FILE = "latency.json"
"""Beside a sweep's results; what ``tools/measure_latency.py`` writes."""

# What a budget limits: the attribute of an entry, and how people call it.
_BUDGETS = {
    "max_gflops": ("gflops", "GFLOPs"),
    "max_params_m": ("params_m", "M parameters"),
    "max_latency_ms": ("latency_ms", "ms"),
    "max_memory_mb": ("memory_mb", "MB"),
}


@dataclass(frozen=True)
class StitchEntry:
    """One stitch of a table.

    Attributes:
        result: What the sweep found.
        latency_ms: Median time of one image, None where it was not measured.
        latency_ms_p90: The time that 90 % of the repetitions kept within.
        memory_mb: Peak memory of the stitch alone, weights included.
    """

    result: StitchResult
    latency_ms: float | None = None
    latency_ms_p90: float | None = None
    memory_mb: float | None = None

    @property
    def id(self) -> int:
        """Id in the stitch space."""
        return self.result.stitch_id

    @property
    def name(self) -> str:
        """Name in the stitch space."""
        return self.result.name

    @property
    def gflops(self) -> float:
        """Multiply-accumulates / 1e9."""
        return self.result.gflops

    @property
    def params_m(self) -> float:
        """Parameters in millions."""
        return self.result.params_m


class StitchTable:
    """The stitches of a swept model, to choose from."""

    def __init__(
        self,
        results: ResultsTable,
        measurements: dict | None = None,
        source: str = "the sweep",
        curves: ScoreCurves | None = None,
    ) -> None:
        """
        Args:
            results: Of the sweep.
            measurements: What ``tools/measure_latency.py`` writes, if there is any.
            source: How errors call the sweep.
            curves: Of the sweep, for thresholds.

        Raises:
            InputError: For no results, or measurements of other stitches.
        """
        if not len(results):
            raise InputError(f"{source} has no results yet: sweep at least one stitch")
        self._source = source
        self._curves = curves or ScoreCurves()
        self._results = results
        self.device: str | None = (measurements or {}).get("device")
        rows = {row["stitch_id"]: row for row in (measurements or {}).get("rows", ())}
        entries = []
        for result in results:
            row = rows.pop(result.stitch_id, None)
            if row is not None and row["name"] != result.name:
                raise InputError(
                    f"the measured times are not those of {source}: stitch {result.stitch_id} is "
                    f"{row['name']} there and {result.name} here; measure again"
                )
            row = row or {}
            measured = {k: row.get(k) for k in ("latency_ms", "latency_ms_p90", "memory_mb")}
            entries.append(StitchEntry(result, **measured))
        self._entries = tuple(entries)

    @classmethod
    def read(
        cls,
        folder: str | os.PathLike[str],
        latency_file: str | os.PathLike[str] | None = None,
    ) -> "StitchTable":
        """Reads what a sweep has written.

        Args:
            folder: Of the sweep, or of the training it belongs to.
            latency_file: Measurements of another device than those beside the sweep.

        Raises:
            InputError: If something is missing, damaged or does not belong together.
        """
        folder = Path(folder)
        if not (folder / "stitches.json").is_file() and (folder / "sweep").is_dir():
            folder /= "sweep"
        results = ResultsTable.read(folder)
        path = Path(latency_file) if latency_file is not None else folder / LATENCY_FILE
        measured = latency_file is not None or path.is_file()
        measurements = _read_measurements(path) if measured else None
        return cls(results, measurements, str(folder), ScoreCurves.read(folder))

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[StitchEntry]:
        return iter(self._entries)

    def warn_unless_of(self, weights: str, iterations: int | None) -> None:
        """Warns if the sweep scored weights of another length of the training.

        Args:
            weights: How to call those at hand.
            iterations: How many they were trained for; None if that is not known.
        """
        swept = {entry.result.iteration for entry in self._entries} - {None, iterations}
        if swept and iterations is not None:
            logger.warning(
                "%s scored the weights after %s iterations, but %s has been trained for %d: its "
                "scores and thresholds are those of other weights. Sweep again.",
                self._source,
                " and ".join(map(str, sorted(swept))),
                weights,
                iterations,
            )

    def rows(self) -> list[dict[str, object]]:
        """One flat row a stitch: the sweep's columns, then what was measured (None if not)."""
        return [
            {
                **row,
                "latency_ms": entry.latency_ms,
                "latency_ms_p90": entry.latency_ms_p90,
                "memory_mb": entry.memory_mb,
            }
            for row, entry in zip(self._results.rows(), self._entries, strict=True)
        ]

    def __getitem__(self, stitch: int | str) -> StitchEntry:
        """The entry of an id or a name; KeyError if it was not swept."""
        for entry in self._entries:
            if stitch in (entry.id, entry.name):
                return entry
        raise KeyError(f"stitch {stitch!r} is not among those that were swept")

    def threshold(self, stitch: int | str, criterion: str) -> float:
        """The score from which on to keep the detections of a stitch.

        One score for all stitches misleads: it keeps another share of right ones of each.

        Args:
            stitch: Id or name.
            criterion: ``f1`` or ``precision=0.9``, on the images of the sweep (box IoU of 0.5).

        Raises:
            InputError: If the sweep has no score curve of the stitch, or no score meets the
                criterion.
        """
        ids = [entry.id for entry in self if stitch in (entry.id, entry.name)]
        if not ids or ids[0] not in self._curves:
            raise InputError(
                f"{self._source} has no score curve of stitch {stitch}: sweep it with "
                "sweep.mode=one_pass, or give a score"
            )
        return self._curves[ids[0]].threshold(criterion)

    def best(
        self,
        by: str = "box",
        *,
        max_gflops: float | None = None,
        max_params_m: float | None = None,
        max_latency_ms: float | None = None,
        max_memory_mb: float | None = None,
    ) -> StitchEntry:
        """The stitch of the highest AP within all budgets; of equal ones the cheapest.

        Where a sweep scored some stitches on a subset of the images alone, these are no candidates.

        Args:
            by: ``box``, ``mask`` or the name of a score, such as ``bbox_AP50``.
            max_gflops: Multiply-accumulates / 1e9.
            max_params_m: Parameters in millions.
            max_latency_ms: Median time of an image, as measured on the device.
            max_memory_mb: Peak memory, as measured on the device.

        Raises:
            InputError: If no stitch is within the budgets (the cheapest is named), has the score,
                or was measured.
        """
        metric = SCORES.get(by, by)
        if metric not in METRICS:
            raise InputError(
                f"stitches are chosen by box, mask or one of {', '.join(METRICS)}, not by {by!r}"
            )
        most = max(entry.result.num_images or 0 for entry in self._entries)
        scored = [
            entry
            for entry in self._entries
            if (entry.result.num_images or 0) == most
            and not math.isnan(entry.result.metrics[metric])
        ]
        if not scored:
            raise InputError(f"no stitch of {self._source} has a {metric}: choose by another score")
        limits = {
            "max_gflops": max_gflops,
            "max_params_m": max_params_m,
            "max_latency_ms": max_latency_ms,
            "max_memory_mb": max_memory_mb,
        }
        limits = {name: limit for name, limit in limits.items() if limit is not None}
        within = self._within(scored, limits)
        return max(within, key=lambda e: (e.result.metrics[metric], -e.gflops, -e.id))

    def _within(self, entries: list[StitchEntry], limits: dict[str, float]) -> list[StitchEntry]:
        before: list[str] = []
        for budget, limit in limits.items():
            attribute, unit = _BUDGETS[budget]
            if not limit > 0:
                raise InputError(f"{budget} must be above 0, got {limit}")
            known = [entry for entry in entries if getattr(entry, attribute) is not None]
            if not known:
                raise InputError(
                    f"{budget} needs time and memory as measured on your device, and of the "
                    "stitches in question none was: run tools/measure_latency.py first"
                )
            entries = [entry for entry in known if getattr(entry, attribute) <= limit]
            if not entries:
                cheapest = min(known, key=lambda e: (getattr(e, attribute), e.id))
                within = f" within {' and '.join(before)}" if before else ""
                raise InputError(
                    f"no stitch{within} takes at most {limit:g} {unit}: the cheapest is "
                    f"{cheapest.name} (id {cheapest.id}) with "
                    f"{getattr(cheapest, attribute):.4g} {unit}"
                )
            before.append(budget)
        return entries


def _read_measurements(path: Path) -> dict:
    try:
        measurements = read_json(path)
        for row in measurements["rows"]:
            for key in ("latency_ms", "latency_ms_p90", "memory_mb"):
                value = row[key]
                if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
                    raise ValueError(f"{key} is {value!r}")
            if not {"stitch_id", "name"} <= set(row):
                raise ValueError("a row names no stitch")
    except OSError as error:
        raise InputError(
            f"cannot read the measurements {path}: {error.strerror}; "
            "tools/measure_latency.py makes them"
        ) from error
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is damaged or was not written by tools/measure_latency.py "
            f"({first_line(error)}): measure again"
        ) from error
    return measurements
