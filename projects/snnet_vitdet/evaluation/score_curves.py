"""Precision and recall of a stitch's detections above each score, for choosing a threshold.

The same score means different things for two stitches: above 0.5, nine of ten detections of one may
be right, and six of ten of the other. So each stitch gets a threshold from its own curve.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from snnet_vitdet.errors import InputError, first_line
from snnet_vitdet.files import read_json, write_atomically

__all__ = [
    "CURVES_FILE",
    "NUM_SCORES",
    "Boxes",
    "ScoreCurve",
    "count_matches",
    "read_curves",
    "wanted_precision",
    "write_curves",
]

CURVES_FILE = "score_curves.json"
"""The file beside the results of a sweep."""

NUM_SCORES = 101
"""Number of scores of a curve: 0, 0.01, … 1."""

_IOU = 0.5
_STEPS = NUM_SCORES - 1


@dataclass(frozen=True)
class ScoreCurve:
    """Counts of the detections in all images at or above each of the scores 0, 0.01, … 1.

    Attributes:
        name: Name of the operating point.
        num_objects: Number of annotated objects, without crowds.
        detections: Number of detections, without those in crowds.
        matched: Number of these that match an object (box IoU of 0.5 or more, same category).
    """

    name: str
    num_objects: int
    detections: tuple[int, ...]
    matched: tuple[int, ...]

    def threshold(self, criterion: str) -> float:
        """The lowest score at which detections are kept.

        Args:
            criterion: ``f1`` for the largest F1, or ``precision=0.9`` for the most objects at this
                precision. Of equally good scores the highest is taken.

        Raises:
            InputError: If no score reaches the precision, or the criterion is neither of these.
        """
        wanted = wanted_precision(criterion)
        if wanted is None:
            if not any(self.matched):
                raise InputError(f"{self.name} finds no object at any score: no threshold helps")
            both = zip(self.matched, self.detections, strict=True)
            f1 = [2 * hit / (shown + self.num_objects) for hit, shown in both]
            return max(range(len(f1)), key=lambda i: (f1[i], i)) / _STEPS
        precision = self.precision()
        reached = [i for i, value in enumerate(precision) if value >= wanted]
        if not reached:
            best = max((value for value in precision if not math.isnan(value)), default=0.0)
            raise InputError(
                f"{self.name} has a precision of {wanted:g} at no score: {best:.2f} is its best"
            )
        return max(reached, key=lambda i: (self.matched[i], i)) / _STEPS

    def precision(self) -> list[float]:
        """Share of the detections at or above each score that match; NaN without detections."""
        both = zip(self.matched, self.detections, strict=True)
        return [hit / shown if shown else math.nan for hit, shown in both]


def write_curves(
    folder: str | os.PathLike[str], curves: Mapping[tuple[int, int, int], ScoreCurve]
) -> None:
    """Writes ``score_curves.json``, as a whole or not at all.

    Args:
        folder: The folder.
        curves: Curves by :attr:`.StitchResult.key`.

    Raises:
        InputError: If the folder cannot be written to.
    """
    columns = ("stitch_id", "image_size", "num_proposals")
    rows = [
        {**dict(zip(columns, key, strict=True)), **asdict(curve)} for key, curve in curves.items()
    ]
    text = "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n"
    write_atomically(Path(folder, CURVES_FILE), text.encode())


def read_curves(folder: str | os.PathLike[str]) -> dict[tuple[int, ...], ScoreCurve]:
    """Reads the curves that :func:`write_curves` wrote, by the same keys; none without the file.

    Raises:
        InputError: If the file is damaged.
    """
    path = Path(folder, CURVES_FILE)
    if not os.path.lexists(path):
        return {}
    curves = {}
    try:
        for row in read_json(path):
            counts = [tuple(map(int, row[key])) for key in ("detections", "matched")]
            if any(len(each) != NUM_SCORES for each in counts):
                raise ValueError(f"a curve does not have {NUM_SCORES} scores")
            curve = ScoreCurve(str(row["name"]), int(row["num_objects"]), *counts)
            # Earlier versions wrote the stitch alone.
            key = (row["stitch_id"], row.get("image_size", 0), row.get("num_proposals", 0))
            curves[tuple(map(int, key))] = curve
    except (OSError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is damaged or was not written by a sweep ({first_line(error)}): sweep "
            "again with sweep.overwrite=True; without the file there would be no curves"
        ) from error
    return curves


@dataclass(frozen=True)
class Boxes:
    """Boxes in many images.

    Attributes:
        images: The number of each box's image, (N,).
        categories: The number of each box's category, (N,).
        boxes: x, y, width and height, (N, 4) in float64.
    """

    images: np.ndarray
    categories: np.ndarray
    boxes: np.ndarray

    def __getitem__(self, index: np.ndarray) -> "Boxes":
        return Boxes(self.images[index], self.categories[index], self.boxes[index])


def count_matches(
    name: str, objects: Boxes, crowds: np.ndarray, detections: Boxes, scores: np.ndarray
) -> ScoreCurve:
    """Matches detections to objects as COCO's evaluation does at an IoU of 0.5, boxes only.

    In descending order of score, each detection takes the free object that it overlaps most. A
    detection in a crowd is not counted.

    Args:
        name: Name of the operating point.
        objects: The annotated objects.
        crowds: Whether each object is a crowd, (N,).
        detections: The detections; of equal scores, the first one comes first.
        scores: Their scores, (M,).
    """
    hits, in_crowds = _match(objects, crowds, detections, scores)
    counted = hits | ~in_crowds
    ascending = np.argsort(scores[counted])
    ordered = scores[counted][ascending].astype(np.float64)
    # Scores are single precision, where 0.9 is slightly less than 0.9.
    first = np.searchsorted(ordered, np.arange(NUM_SCORES) / _STEPS - 1e-6)
    up_to = np.concatenate([[0], np.cumsum(hits[counted][ascending])])
    return ScoreCurve(
        name,
        int((~crowds).sum()),
        tuple((len(ordered) - first).tolist()),
        tuple((up_to[-1] - up_to[first]).tolist()),
    )


def _match(
    objects: Boxes, crowds: np.ndarray, detections: Boxes, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each detection matches an object, and whether it is in a crowd."""
    rows, columns = _pairs(detections, objects)
    overlaps = _overlaps(detections.boxes[rows], objects.boxes[columns], crowds[columns])
    near = overlaps >= _IOU
    rows, columns, overlaps = rows[near], columns[near], overlaps[near]
    in_crowds = np.zeros(len(scores), dtype=bool)
    in_crowds[rows[crowds[columns]]] = True
    hits, taken = np.zeros_like(in_crowds), crowds.copy()
    # By score, and for each detection by overlap; the first one of equal ones.
    order = np.lexsort([columns, -overlaps, rows, -scores[rows]])
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if not hits[row] and not taken[column]:
            hits[row] = taken[column] = True
    return hits, in_crowds


def _pairs(detections: Boxes, objects: Boxes) -> tuple[np.ndarray, np.ndarray]:
    """Indexes of all detections and objects that share image and category."""
    each = (detections, objects)
    step = 1 + max(int(boxes.categories.max(initial=0)) for boxes in each)
    wanted, keys = (boxes.images * step + boxes.categories for boxes in each)
    order = np.argsort(keys, kind="stable")
    start, end = (np.searchsorted(keys[order], wanted, side) for side in ("left", "right"))
    counts = end - start
    rows = np.repeat(np.arange(len(wanted)), counts)
    places = np.arange(len(rows)) + np.repeat(end - np.cumsum(counts), counts)
    return rows, order[places]


def _overlaps(detections: np.ndarray, objects: np.ndarray, crowds: np.ndarray) -> np.ndarray:
    """IoU of pairs of boxes to the last bit as ``pycocotools.mask.iou`` computes it.

    For a crowd, it is the share of the detection that is inside.
    """
    sides = np.minimum(
        detections[:, :2] + detections[:, 2:], objects[:, :2] + objects[:, 2:]
    ) - np.maximum(detections[:, :2], objects[:, :2])
    inside = np.where((sides > 0).all(axis=1), sides[:, 0] * sides[:, 1], 0.0)
    area, other = detections[:, 2] * detections[:, 3], objects[:, 2] * objects[:, 3]
    union = np.where(crowds, area, area + other - inside)
    return np.divide(inside, union, out=np.zeros_like(inside), where=inside > 0)


def wanted_precision(criterion: str) -> float | None:
    """The precision that ``precision=0.9`` asks for; None for ``f1``.

    Raises:
        InputError: If the criterion is something else.
    """
    kind, _, value = criterion.partition("=")
    if kind == "f1" and not value:
        return None
    try:
        wanted = float(value) if kind == "precision" else math.nan
    except ValueError:
        wanted = math.nan
    if not 0 < wanted <= 1:
        raise InputError(
            "a threshold is a score from 0 to 1, f1, or precision=… above 0 and up to 1, not the "
            f"text {criterion!r}"
        )
    return wanted
