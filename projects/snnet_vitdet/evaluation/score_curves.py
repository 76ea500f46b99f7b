"""How precise and how complete the detections of a stitch are above a score, to choose a threshold.

Scores of two stitches do not mean the same: one may be right in nine of ten detections above 0.5,
another in six. So a threshold is chosen by what it gives, for each stitch from its own curve.
"""

import json
import math
import os
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_util

from snnet_vitdet.errors import InputError, first_line
from snnet_vitdet.files import read_json, write_atomically

__all__ = ["CURVES_FILE", "NUM_SCORES", "ScoreCurve", "ScoreCurves", "count_matches"]

CURVES_FILE = "score_curves.json"
"""Name of the file beside the results of a sweep."""

NUM_SCORES = 101
"""A curve has as many: 0, 0.01, … 1."""

_IOU = 0.5
_STEPS = NUM_SCORES - 1


@dataclass(frozen=True)
class ScoreCurve:
    """What of all images' detections lies at or above a score, for the scores 0, 0.01, … 1.

    Attributes:
        name: Of the stitch.
        num_objects: Objects that should be found, crowds not among them.
        detections: How many detections there are; those in crowds do not count.
        matched: How many of these are of an object (box IoU of 0.5 or more, its category).
    """

    name: str
    num_objects: int
    detections: tuple[int, ...]
    matched: tuple[int, ...]

    def threshold(self, criterion: str) -> float:
        """The score from which on detections are kept.

        Args:
            criterion: ``f1`` for the largest F1, or ``precision=0.9`` for the most objects at this
                precision. Of equally good scores the highest, which shows the least.

        Raises:
            InputError: If no score gives the precision, or the criterion is none of these.
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
        """Share of the detections at or above each score that are of an object; NaN of none."""
        both = zip(self.matched, self.detections, strict=True)
        return [hit / shown if shown else math.nan for hit, shown in both]

    def recall(self) -> list[float]:
        """Share of the objects that have a detection at or above each score; NaN of none."""
        return [hit / self.num_objects if self.num_objects else math.nan for hit in self.matched]


class ScoreCurves:
    """The curves of a sweep by stitch id, and the file they are kept in."""

    def __init__(self, curves: Mapping[int, ScoreCurve] | None = None) -> None:
        self._curves = dict(curves or {})

    def __contains__(self, stitch_id: int) -> bool:
        return stitch_id in self._curves

    def __len__(self) -> int:
        return len(self._curves)

    def __getitem__(self, stitch_id: int) -> ScoreCurve:
        return self._curves[stitch_id]

    def put(self, stitch_id: int, curve: ScoreCurve) -> None:
        """Takes in the curve of a stitch in place of the one it may have already."""
        self._curves[stitch_id] = curve

    def update(self, other: "ScoreCurves", stitch_ids: Collection[int]) -> None:
        """Takes over the curves of some stitches that another sweep has."""
        self._curves |= {i: other[i] for i in stitch_ids if i in other}

    def write(self, directory: str | os.PathLike[str]) -> None:
        """Writes ``score_curves.json``, as a whole or not at all; nothing without a curve.

        Raises:
            InputError: If the folder cannot be written to.
        """
        rows = [
            {
                "stitch_id": stitch_id,
                "name": curve.name,
                "num_objects": curve.num_objects,
                "detections": curve.detections,
                "matched": curve.matched,
            }
            for stitch_id, curve in sorted(self._curves.items())
        ]
        text = "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n"
        write_atomically(Path(directory, CURVES_FILE), text.encode())

    @classmethod
    def read(cls, directory: str | os.PathLike[str]) -> "ScoreCurves":
        """Reads what ``write`` wrote; empty if there is no such file.

        Raises:
            InputError: If the file is damaged.
        """
        path = Path(directory, CURVES_FILE)
        if not os.path.lexists(path):
            return cls()
        curves = cls()
        try:
            for row in read_json(path):
                counts = [tuple(map(int, row[key])) for key in ("detections", "matched")]
                if any(len(each) != NUM_SCORES for each in counts):
                    raise ValueError(f"a curve has not {NUM_SCORES} scores")
                curves.put(
                    int(row["stitch_id"]),
                    ScoreCurve(str(row["name"]), int(row["num_objects"]), *counts),
                )
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

    In the order of their scores, each takes the object it overlaps most among those not taken yet;
    what lies in a crowd counts neither for nor against.

    Args:
        name: Of the stitch.
        objects: Annotations (``bbox`` as x, y, width, height, ``iscrowd``) by image and category.
        detections: As detectron2's ``instances_to_coco_json`` makes them, with the categories of
            ``objects``.
        image_ids: The images to count, all if None.
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
    # Scores are single precision: 0.9 is one a hair below it.
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
    """Whether each detection is of an object; None for one in a crowd."""
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
        InputError: If the criterion is none of these.
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
