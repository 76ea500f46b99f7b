"""One stitch in one safetensors file: the weights, and in the header what to build around them.

The file is plain data, and reading one from an untrusted source is safe: nothing in it is run, see
``export_parts``, and everything that its header says is checked.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import safetensors
import torch
from detectron2.data import transforms as T
from detectron2.modeling import GeneralizedRCNN

from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import ScoreCurve, StitchResult, StitchTable
from snnet_vitdet.evaluation.score_curves import NUM_SCORES
from snnet_vitdet.modeling.operating import take_position_grids
from snnet_vitdet.stitching import LARGE, SMALL, Segment, Stitch, Transition
from snnet_vitdet.text import listed

from .export_parts import MAX_CLASSES, SIDE, build, build_augmentations
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

__all__ = ["HEADER_KEY", "ExportInfo", "exported_table", "load_exported", "read_export"]

HEADER_KEY = "snnet_vitdet"
"""The key of the description in the metadata of the file."""

_FORMAT_VERSION = 1
# A description has about ten thousand characters, and more with many classes.
_LONGEST = 16_000_000
_MOST_CUTS = 128
_NAME = text(1000)
_HUGE = whole(0, 2**53)
_AMOUNT = number(0, 1e12)


@dataclass(frozen=True)
class ExportInfo:
    """What an exported file says about its model.

    Attributes:
        stitch: The stitch; None for a baseline.
        class_names: Names by ``pred_classes``.
        gflops: Multiply-accumulates / 1e9 at ``image_size``.
        params_m: Parameters in millions.
        image_size: Side in pixels of the square that images are padded to.
        image_format: Order of colours that the model takes: ``RGB`` or ``BGR``.
        augmentations: How images are resized, as plain data.
        model: The detector, as plain data.
        result: The stitch's row of the sweep, if there was a sweep.
        curve: The stitch's detections over their scores, if the sweep counted them.
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
        """Name of the stitch, or ``baseline``."""
        return self.stitch.name if self.stitch else "baseline"

    def resizing(self) -> list[T.Augmentation]:
        """The augmentations that resize images for the model."""
        return build_augmentations(self.augmentations)

    def to_json(self, indent: int | None = None) -> str:
        """The description as text; scores that are NaN are left out."""
        content = {"format_version": _FORMAT_VERSION, **asdict(self)}
        if self.stitch:
            content["stitch"]["name"] = self.name
        if self.result:
            metrics = self.result.metrics.items()
            content["result"]["metrics"] = {k: v for k, v in metrics if not math.isnan(v)}
        return json.dumps(content, indent=indent, allow_nan=False, ensure_ascii=False)

    @classmethod
    def from_json(cls, content: str) -> "ExportInfo":
        """Reads what ``to_json`` wrote, from an untrusted file.

        The model stays plain data, which ``export_parts.build`` checks.

        Raises:
            InputError: If it is of another version, is damaged, or has anything unknown.
        """
        if len(content) > _LONGEST:
            raise InputError(f"its description has more than {_LONGEST} characters")
        try:
            values = json.loads(content, parse_constant=_refuse_constant)
        except (RecursionError, ValueError) as error:
            why = "it is nested too deeply" if isinstance(error, RecursionError) else error
            raise InputError(f"its description is no JSON that can be read ({why})") from error
        values = dict(items_of(values, "its description", (*_DESCRIPTION, "format_version")))
        version = values.pop("format_version", None)
        if type(version) is int and version != _FORMAT_VERSION:
            raise InputError(
                f"its format has version {version}, this program reads {_FORMAT_VERSION}: use the "
                "version of the program that wrote it"
            )
        one_of(_FORMAT_VERSION)(version, "format_version")
        return cls(**record(_DESCRIPTION)(values, "its description"))


def read_export(path: str | os.PathLike[str]) -> ExportInfo:
    """Reads what an exported file says about its model; the weights stay unread.

    Raises:
        InputError: If it is not there, is damaged, or is no exported file.
    """
    with _opened(path) as file:
        metadata = file.metadata() or {}
    if HEADER_KEY not in metadata:
        raise InputError(
            f"{path} is a safetensors file, but not one of tools/export_stitch.py: it does not say "
            "which model its weights are of"
        )
    try:
        return ExportInfo.from_json(metadata[HEADER_KEY])
    except InputError as error:
        raise InputError(f"{path} cannot be used: {error}") from error


def exported_table(infos: Sequence[ExportInfo], source: str) -> StitchTable | None:
    """The sweep's results of exported stitches; None without a sweep.

    Args:
        infos: Exported stitches of one training.
        source: Name of the sweep in error messages.
    """
    table = StitchTable(source=source)
    for info in infos:
        if info.result is not None:
            table.put(info.result, info.curve)
    return table if len(table) else None


def load_exported(
    path: str | os.PathLike[str], device: str | torch.device = "cpu"
) -> GeneralizedRCNN:
    """Loads the detector of an exported file: an ordinary detectron2 model, in evaluation mode.

    It takes no more memory than its weights: the ViTs are never there as a whole.

    Raises:
        InputError: If the file is damaged, or its weights are not those of its model.
    """
    info = read_export(path)
    try:
        model = build(info.model)
    except InputError as error:
        raise InputError(f"{path} cannot be used: {error}") from error
    walk = info.model["backbone"]["net"]["segments"]
    classes = model.roi_heads.num_classes
    square = model.backbone.padding_constraints["square_size"]
    for agrees, says in (
        (
            info.stitch is None or walk == [list(segment) for segment in info.stitch.segments],
            f"has stitch {info.name}, and its model runs other blocks",
        ),
        (
            classes == len(info.class_names),
            f"has {len(info.class_names)} classes, and its model has {classes}",
        ),
        (
            square in (0, info.image_size),
            f"is for images of {info.image_size} pixels, and its model pads them to {square}",
        ),
    ):
        if not agrees:
            raise InputError(f"{path} is damaged: it says that it {says}; export it again")
    with _opened(path) as file:
        saved = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    take_position_grids(model, saved)
    expected = model.state_dict()
    _compare(path, saved, expected)
    saved = {key: value.to(expected[key].dtype) for key, value in saved.items()}
    for key, value in saved.items():
        # Norms take the root of a variance.
        if not value.isfinite().all() or (key.endswith("running_var") and (value < 0).any()):
            raise InputError(
                f"the weights of {path} cannot be used: {key} has NaN, infinite or impossible "
                "values; export it again"
            )
    model.load_state_dict(saved, assign=True)
    return model.to(device).eval()


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[object]:
    if not os.path.isfile(path):
        what = "is a folder: name one of its files" if os.path.isdir(path) else "does not exist"
        raise InputError(f"exported file {path} {what}; tools/export_stitch.py makes such files")
    try:
        with safetensors.safe_open(os.fspath(path), framework="pt") as file:
            yield file
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(
            f"{path} cannot be read as safetensors ({error}): it is truncated or another kind of "
            "file; give the .safetensors file of an export, or export it again"
        ) from error


def _compare(
    path: str | os.PathLike[str],
    saved: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
) -> None:
    shapes = []
    for key in sorted(saved.keys() & expected.keys()):
        here, there = expected[key], saved[key]
        if here.shape != there.shape:
            shapes.append(f"{key} {tuple(there.shape)} instead of {tuple(here.shape)}")
        elif here.is_floating_point() != there.is_floating_point():
            shapes.append(f"{key} {there.dtype} instead of {here.dtype}")
    problems = [
        f"{len(keys)} {what} ({listed(keys)})"
        for what, keys in (
            ("missing", sorted(expected.keys() - saved.keys())),
            ("unexpected", sorted(saved.keys() - expected.keys())),
            ("misshapen", shapes),
        )
        if keys
    ]
    if problems:
        raise InputError(
            f"the weights of {path} are not those of its model: {'; '.join(problems)}; export it "
            "again"
        )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _tuple_of(check: Check) -> Check:
    return lambda value, where: tuple(check(value, where))


_BLOCK = whole(0, _MOST_CUTS)
_ANCHOR = one_of(SMALL, LARGE)
_COUNTS = _tuple_of(several(_HUGE, NUM_SCORES, NUM_SCORES))
_STITCH: dict[str, Check] = {
    "id": _HUGE,
    "name": _NAME,
    "kind": _NAME,
    "cuts": _tuple_of(several(whole(1, _MOST_CUTS), 0, _MOST_CUTS)),
    "segments": several(fixed(_ANCHOR, _BLOCK, _BLOCK), 1, _MOST_CUTS),
    "transitions": several(fixed(_BLOCK, _ANCHOR, _ANCHOR), 0, _MOST_CUTS),
}
_CURVE: dict[str, Check] = {
    "name": _NAME,
    "num_objects": _HUGE,
    "detections": _COUNTS,
    "matched": _COUNTS,
}


def _stitch(value: object, where: str) -> Stitch:
    fields = record(_STITCH)(value, where)
    name = fields.pop("name")
    fields["segments"] = tuple(Segment(*each) for each in fields["segments"])
    fields["transitions"] = tuple(Transition(*each) for each in fields["transitions"])
    stitch = Stitch(**fields)
    anchors = [segment.anchor for segment in stitch.segments]
    kind = "SL"[anchors[0]] if len(anchors) == 1 else "".join("FS"[anchor] for anchor in anchors)
    if (stitch.kind, stitch.name, len(stitch.cuts)) != (kind, name, len(anchors) - 1):
        raise InputError(f"{where} is called {name!r}, which its segments are not")
    return stitch


def _result(value: object, where: str) -> StitchResult:
    values = items_of(value, where, StitchResult.__dataclass_fields__)
    try:
        result = StitchResult(**values)
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        raise InputError(f"{where} is no row of a sweep ({error})") from error
    for label in ("name", "kind"):
        _NAME(getattr(result, label), f"{where}.{label}")
    return result


def _curve(value: object, where: str) -> ScoreCurve:
    curve = ScoreCurve(**record(_CURVE)(value, where))
    for shown, hits in zip(curve.detections, curve.matched, strict=True):
        if hits > min(shown, curve.num_objects):
            raise InputError(f"{where} has more right detections than detections or objects")
    return curve


def _augmentations(value: object, where: str) -> list:
    build_augmentations(value)
    return value


def _model(value: object, where: str) -> dict:
    # Its content is checked where it is built.
    return dict(items_of(value, where, value if isinstance(value, dict) else ()))


_DESCRIPTION: dict[str, Check] = {
    "stitch": optional(_stitch),
    "class_names": _tuple_of(several(_NAME, 1, MAX_CLASSES)),
    "gflops": _AMOUNT,
    "params_m": _AMOUNT,
    "image_size": SIDE,
    "image_format": one_of("RGB", "BGR"),
    "augmentations": _augmentations,
    "model": _model,
    "result": optional(_result),
    "curve": optional(_curve),
}
