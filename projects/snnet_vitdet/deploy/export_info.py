"""What an exported file says of its model, written as JSON and parsed from a stranger's."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from detectron2.data import transforms as T

from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import ScoreCurve, StitchResult, StitchTable
from snnet_vitdet.evaluation.results import METRICS
from snnet_vitdet.evaluation.score_curves import NUM_SCORES
from snnet_vitdet.stitching import LARGE, SMALL, Segment, Stitch, Transition

from .export_parts import MAX_CLASSES, SIDE, build_augmentations
from .export_values import (
    Check,
    fixed,
    items_of,
    number,
    one_of,
    optional,
    record,
    several,
    text,
    whole,
)

__all__ = ["ExportInfo"]

FORMAT_VERSION = 1
# Descriptions have some ten thousand characters, and longer ones with many classes.
_LONGEST = 16_000_000
_LONGEST_NAME = 1000


@dataclass(frozen=True)
class ExportInfo:
    """What an exported file says of its model.

    Attributes:
        stitch: The stitch; None for a baseline.
        class_names: By ``pred_classes``.
        gflops: Multiply-accumulates / 1e9 at ``image_size``.
        params_m: Parameters in millions.
        image_size: Side in pixels of the square that images are padded to.
        image_format: Order of colours that the model takes: ``RGB`` or ``BGR``.
        augmentations: How images are resized, as plain data.
        model: The detector, as plain data.
        result: What the sweep found, if there was one.
        curve: Its detections over their scores, if it counted them.
    """

    stitch: Stitch | None
    class_names: tuple[str, ...]
    gflops: float
    params_m: float
    image_size: int
    image_format: str
    augmentations: list
    model: Mapping[str, object]
    result: StitchResult | None = None
    curve: ScoreCurve | None = None

    @property
    def name(self) -> str:
        """Of the stitch, or ``baseline``."""
        return self.stitch.name if self.stitch else "baseline"

    def resizing(self) -> list[T.Augmentation]:
        """What resizes images for the model."""
        return build_augmentations(self.augmentations)

    def table(self, source: str) -> StitchTable | None:
        """The sweep's results of this one stitch; None if it was not swept.

        Args:
            source: How errors call it.
        """
        if self.result is None:
            return None
        table = StitchTable(source=source)
        table.put(self.result, self.curve)
        return table

    def to_json(self, indent: int | None = None) -> str:
        """As text; scores that are not there are left out."""
        content = {"format_version": FORMAT_VERSION, **asdict(self)}
        if self.stitch:
            content["stitch"]["name"] = self.name
        if self.result:
            metrics = self.result.metrics.items()
            content["result"]["metrics"] = {k: v for k, v in metrics if not math.isnan(v)}
        return json.dumps(content, indent=indent, allow_nan=False, ensure_ascii=False)

    @classmethod
    def from_json(cls, content: str) -> "ExportInfo":
        """Reads what ``to_json`` wrote, of anybody's file.

        The model stays plain data, which ``export_parts.build`` checks.

        Raises:
            InputError: If it is of another version, damaged, or has anything that is not known.
        """
        return cls(**_DESCRIPTION(_parsed(content), "its description"))


def _parsed(content: str) -> dict[str, object]:
    if len(content) > _LONGEST:
        raise InputError(f"its description has more than {_LONGEST} characters")
    try:
        values = json.loads(content, parse_constant=_refuse_constant)
    except (RecursionError, ValueError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"its description is no JSON that can be read ({why})") from error
    values = dict(items_of(values, "its description", (*_DESCRIPTION_KEYS, "format_version")))
    version = values.pop("format_version", None)
    if type(version) is int and version != FORMAT_VERSION:
        raise InputError(
            f"its format has version {version}, this program reads {FORMAT_VERSION}: use the "
            "version of the program that wrote it"
        )
    one_of(FORMAT_VERSION)(version, "format_version")
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _stitch(value: object, where: str) -> Stitch:
    parts = _STITCH(value, where)
    stitch = Stitch(
        parts["id"],
        parts["kind"],
        tuple(parts["cuts"]),
        tuple(Segment(*segment) for segment in parts["segments"]),
        tuple(Transition(*transition) for transition in parts["transitions"]),
    )
    anchors = [segment.anchor for segment in stitch.segments]
    kind = "SL"[anchors[0]] if len(anchors) == 1 else "".join("FS"[anchor] for anchor in anchors)
    if (stitch.kind, stitch.name, len(stitch.cuts)) != (kind, parts["name"], len(anchors) - 1):
        raise InputError(f"{where} is called {parts['name']!r}, which its segments are not")
    return stitch


def _result(value: object, where: str) -> StitchResult:
    values = _RESULT(value, where)
    try:
        return StitchResult(**{**values, "cuts": tuple(values["cuts"])})
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} is no row of a sweep ({error})") from error


def _curve(value: object, where: str) -> ScoreCurve:
    curve = ScoreCurve(**_CURVE(value, where))
    for shown, hits in zip(curve.detections, curve.matched, strict=True):
        if hits > min(shown, curve.num_objects):
            raise InputError(f"{where} has more right detections than detections or objects")
    return curve


def _tuple_of(check: Check) -> Check:
    return lambda value, where: tuple(check(value, where))


def _augmentations(value: object, where: str) -> list:
    build_augmentations(value)
    return value


def _model(value: object, where: str) -> dict:
    # Checked where it is built: what it says of its size stands there.
    return dict(items_of(value, where, value if isinstance(value, dict) else ()))


_AMOUNT = number(0, 1e12)
_HUGE = 2**53
_MOST_CUTS = 128


_NUMBER = whole(0, _MOST_CUTS)
_ANCHOR = one_of(SMALL, LARGE)
_CUTS = several(whole(1, _MOST_CUTS), 0, _MOST_CUTS)
_STITCH = record(
    {
        "id": whole(0, _HUGE),
        "name": text(_LONGEST_NAME),
        "kind": text(_LONGEST_NAME),
        "cuts": _CUTS,
        "segments": several(fixed(_ANCHOR, _NUMBER, _NUMBER), 1, _MOST_CUTS),
        "transitions": several(fixed(_NUMBER, _ANCHOR, _ANCHOR), 0, _MOST_CUTS),
    }
)
_RESULT = record(
    {
        "stitch_id": whole(0, _HUGE),
        "name": text(_LONGEST_NAME),
        "kind": text(_LONGEST_NAME),
        "cuts": _CUTS,
        "gflops": _AMOUNT,
        "params_m": _AMOUNT,
        "metrics": record(dict.fromkeys(METRICS, number(-1, 101)), METRICS),
        "iteration": optional(whole(0, _HUGE)),
        "num_images": optional(whole(0, _HUGE)),
    },
    ("iteration", "num_images"),
)
_COUNTS = _tuple_of(several(whole(0, _HUGE), NUM_SCORES, NUM_SCORES))
_CURVE = record(
    {
        "name": text(_LONGEST_NAME),
        "num_objects": whole(0, _HUGE),
        "detections": _COUNTS,
        "matched": _COUNTS,
    }
)
_DESCRIPTION_KEYS: dict[str, Check] = {
    "stitch": optional(_stitch),
    "class_names": _tuple_of(several(text(_LONGEST_NAME), 1, MAX_CLASSES)),
    "gflops": _AMOUNT,
    "params_m": _AMOUNT,
    "image_size": SIDE,
    "image_format": one_of("RGB", "BGR"),
    "augmentations": _augmentations,
    "model": _model,
    "result": optional(_result),
    "curve": optional(_curve),
}
_DESCRIPTION = record(_DESCRIPTION_KEYS)
