"""Precision and recall of a stitch's detections above each score, for choosing a threshold.

The same score means different things for two stitches: above 0.5, nine of ten detections of one may
be right, and six of ten of the other. So each stitch gets a threshold from its own curve.
"""

import json
import math
import os
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_util

from snnet_vitdet.errors import InputError, first_line
from snnet_vitdet.files import read_json, write_atomically

__all__ = [
    "CURVES_FILE",
    "NUM_SCORES",
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


def count_matches(
    name: str,
    objects: Mapping[tuple[int, int], Sequence[Mapping[str, object]]],
    detections: Sequence[Mapping[str, object]],
    image_ids: Collection[int] | None = None,
) -> ScoreCurve:
    """Matches detections to objects as COCO's evaluation does at an IoU of 0.5, boxes only.

    In descending order of score, each detection takes the free object that it overlaps most. A
    detection in a crowd is not counted.

    Args:
        name: Name of the operating point.
        objects: Annotations (``bbox`` as x, y, width, height, ``iscrowd``) by image and category.
        detections: As detectron2's ``instances_to_coco_json`` makes them, with the categories of
            ``objects``.
        image_ids: The images to count; None for all.
    """
    wanted = None if image_ids is None else set(image_ids)
    found = defaultdict(list)
    for detection in detections:
        if wanted is None or detection["image_id"] in wanted:
            found[detection["image_id"], detection["category_id"]].append(detection)
    scores: list[float] = []
    hits: list[bool] = []
    for key, group in found.items():
        group.sort(key=lambda detection: -detection["score"])
        for detection, hit in zip(group, _match(group, objects.get(key, ())), strict=True):
            if hit is not None:
                scores.append(detection["score"])
                hits.append(hit)
    steps = np.arange(NUM_SCORES) / _STEPS
    ascending = np.argsort(scores) if scores else np.zeros(0, dtype=int)
    ordered = np.asarray(scores, dtype=np.float64)[ascending]
    # Scores are single precision, where 0.9 is slightly less than 0.9.
    first = np.searchsorted(ordered, steps - 1e-6)
    up_to = np.concatenate([[0], np.cumsum(np.asarray(hits, dtype=int)[ascending])])
    return ScoreCurve(
        name,
        sum(
            not annotation.get("iscrowd")
            for (image_id, _), group in objects.items()
            if wanted is None or image_id in wanted
            for annotation in group
        ),
        tuple((len(scores) - first).tolist()),
        tuple((up_to[-1] - up_to[first]).tolist()),
    )


def _match(
    group: Sequence[Mapping[str, object]], objects: Sequence[Mapping[str, object]]
) -> list[bool | None]:
    """Whether each detection matches an object; None for a detection in a crowd."""
    if not objects:
        return [False] * len(group)
    crowd = [bool(annotation.get("iscrowd")) for annotation in objects]
    overlaps = mask_util.iou(
        [detection["bbox"] for detection in group],
        [annotation["bbox"] for annotation in objects],
        crowd,
    )
    taken = np.array(crowd)
    hits: list[bool | None] = []
    for row in overlaps:
        free = np.where(taken, 0.0, row)
        best = int(free.argmax())
        if free[best] >= _IOU:
            taken[best] = True
            hits.append(True)
        else:
            hits.append(None if (row[crowd] >= _IOU).any() else False)
    return hits


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
