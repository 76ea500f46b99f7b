"""One stitch in one safetensors file: its weights, and in the header the model around them.

The file is plain data. Reading one from an untrusted source is safe: nothing in it is run, see
``export_plan``, and all that its header says is checked.
"""

import copy
import json
import math
import operator
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from detectron2.data import transforms as T
from detectron2.modeling import GeneralizedRCNN
from torch import nn

from snnet_vitdet.engine import Config, at_image_size, cost_aspect_ratio
from snnet_vitdet.errors import InputError, first_line
from snnet_vitdet.evaluation import BASELINE, ScoreCurve, StitchResult, StitchTable
from snnet_vitdet.evaluation.results import padding_of
from snnet_vitdet.evaluation.score_curves import NUM_SCORES
from snnet_vitdet.files import replacing
from snnet_vitdet.modeling import JoinedRCNN, baseline_cost, extracted_state, stitch_costs
from snnet_vitdet.modeling.extracted import merged_state
from snnet_vitdet.modeling.operating import operating_at, take_position_grids
from snnet_vitdet.modeling.pyramid import SMALL_EXIT
from snnet_vitdet.stitching import (
    SMALL,
    OperatingPoint,
    Segment,
    Stitch,
    Transition,
    split_point_name,
)
from snnet_vitdet.text import listed
from snnet_vitdet.validators import TEXT, number, one_of, or_null
from snnet_vitdet.weight_files import (
    EXPORT_KEY,
    check_state_dict,
    export_description,
    read_weight_file,
)

from .export_graphs import PixelsToPyramid, largest_difference
from .export_plan import (
    MAX_CLASSES,
    SIDE,
    build_augmentations,
    build_detector,
    checked,
    plan_of,
    plan_of_stitch,
)

__all__ = ["ExportInfo", "export_stitch", "exported_table", "load_exported", "read_export"]

_FORMAT_VERSION = 1
# A description has about ten thousand characters, and more with many classes.
_LONGEST = 16_000_000
_NET = "backbone.net."


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
        result: The row of the sweep, if there was a sweep.
        curve: The detections over their scores, if the sweep counted them.
        point: Name of the operating point, such as ``FS-3@640/300``; empty if image size and number
            of proposals are those of the training.
        aspect_ratio: Longer over shorter side of the image that GFLOPs are counted for, if padding
            is tight; None if images are padded to the square.
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
    point: str = ""
    aspect_ratio: float | None = None

    @property
    def name(self) -> str:
        """Name of the operating point, of the stitch if it runs as trained; or ``baseline``."""
        return self.point or (self.stitch or BASELINE).name

    @property
    def padding(self) -> str:
        """How images are padded: to the ``square``, or ``tight``."""
        return padding_of(self.aspect_ratio)

    def resizing(self) -> list[T.Augmentation]:
        """The augmentations that resize images for the model."""
        return build_augmentations(self.augmentations)

    def to_json(self, indent: int | None = None) -> str:
        """The description as text; scores that are NaN are left out."""
        content = {"format_version": _FORMAT_VERSION, **asdict(self)}
        if self.stitch:
            content["stitch"]["name"] = self.stitch.name
        # Versions without operating points or padding read the files that use neither.
        if not self.point:
            del content["point"]
            for key in ("image_size", "num_proposals") if self.result else ():
                del content["result"][key]
        if self.aspect_ratio is None:
            del content["aspect_ratio"]
            if self.result:
                del content["result"]["aspect_ratio"]
        if self.result:
            metrics = self.result.metrics.items()
            content["result"]["metrics"] = {k: v for k, v in metrics if not math.isnan(v)}
        return json.dumps(content, indent=indent, allow_nan=False, ensure_ascii=False)

    @classmethod
    def from_json(cls, content: str) -> "ExportInfo":
        """Reads what ``to_json`` wrote, from an untrusted file.

        The model stays plain data, which is checked where it is built.

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
        if not isinstance(values, dict):
            raise InputError("its description has no keys")
        version = values.pop("format_version", None)
        if version != _FORMAT_VERSION:
            raise InputError(
                f"its format has version {version}, this program reads {_FORMAT_VERSION}: use the "
                "version of the program that wrote it"
            )
        values = {"point": "", "aspect_ratio": None, **values}
        if other := values.keys() ^ cls.__dataclass_fields__.keys():
            raise InputError(
                f"its description has unknown or missing keys: {listed(sorted(other))}"
            )
        try:
            read = {
                key: make(values[key]) for key, make in _OBJECTS.items() if values[key] is not None
            }
        except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
            raise InputError(f"its stitch or sweep is damaged: {first_line(error)}") from error
        for key, validator in _VALUES.items():
            checked(values[key], key, validator)
        build_augmentations(values["augmentations"])
        info = cls(**{**values, **read, "class_names": tuple(values["class_names"])})
        try:
            stitch, operation = split_point_name(info.name)
        except ValueError as error:
            raise InputError(f"its operating point is damaged: {error}") from error
        of_model = stitch == (info.stitch or BASELINE).name
        if not of_model or (operation and operation[0] != info.image_size):
            raise InputError(f"its operating point {info.name} is not that of its model")
        if info.result and info.result.aspect_ratio != info.aspect_ratio:
            raise InputError("its sweep has another aspect ratio than its model")
        return info


def export_stitch(
    path: str | os.PathLike[str],
    model: nn.Module,
    config: Config,
    stitch: Stitch | None,
    class_names: Sequence[str],
    operation: tuple[int, int] | None = None,
) -> ExportInfo:
    """Writes the weights that a stitch needs, with low-rank updates merged, to a file.

    The results of the sweep in ``train.output_dir`` for this stitch are added. The file is loaded
    again, and kept only if its features are those of the model.

    Args:
        path: The file.
        model: The detector with trained weights, in evaluation mode; not changed.
        config: The config of its training. The detector pads as ``sweep.padding`` says.
        stitch: A stitch of its space; None for a baseline.
        class_names: Names by ``pred_classes``.
        operation: Image size and number of proposals of the exported detector; None as trained.

    Raises:
        InputError: If the model has parts that cannot be exported, or the file cannot be written.
    """
    size, num_proposals = operation or (None, None)
    at_point = config if size is None else at_image_size(config, size)
    mapper = at_point.dataloader.test.mapper
    own_config, model_config = copy.deepcopy(config.model), copy.deepcopy(at_point.model)
    for each in (own_config, model_config):
        # The trained model's number of classes, whatever the config says.
        each.roi_heads.num_classes = model.roi_heads.num_classes
    plan = plan_of_stitch(model_config, stitch)
    if num_proposals is not None:
        plan["proposal_generator"]["post_nms_topk"][1] = num_proposals
    try:
        build_detector(plan)
    except InputError as error:
        raise InputError(f"the model cannot be exported: {error}") from error
    # The weights are those of the training's image size.
    aspect_ratio = cost_aspect_ratio(config)
    counts = dict(image_size=size, num_proposals=num_proposals, aspect_ratio=aspect_ratio)
    cost = (
        stitch_costs(own_config, **counts)[stitch.id]
        if stitch
        else baseline_cost(own_config, **counts)
    )
    info = ExportInfo(
        stitch=stitch,
        class_names=tuple(class_names),
        gflops=cost.gflops,
        params_m=cost.params_m,
        image_size=int(at_point.data.image_size),
        image_format=str(mapper.image_format),
        augmentations=plan_of(mapper.augmentations),
        model=plan,
        point=OperatingPoint(stitch or BASELINE, *operation).name if operation else "",
        aspect_ratio=aspect_ratio,
    )
    info = _with_sweep(info, Path(config.train.output_dir, "sweep"))
    metadata = {"format": "pt", EXPORT_KEY: info.to_json()}
    with replacing(path, safetensors.SafetensorError) as temporary:
        safetensors.torch.save_file(_state_of_stitch(model, stitch), temporary, metadata)
        exported = load_exported(temporary, next(model.parameters()).device)
        using = model.backbone.net.using_stitch(stitch.id) if stitch else nullcontext()
        with using, operating_at(model, size, num_proposals):
            largest_difference(
                path, PixelsToPyramid(model), PixelsToPyramid(exported), (info.image_size,) * 2
            )
    return info


def read_export(path: str | os.PathLike[str]) -> ExportInfo:
    """Reads what an exported file says about its model; the weights stay unread.

    Raises:
        InputError: If it is not there, is damaged, or is no exported file.
    """
    if not os.path.isfile(path):
        what = "is a folder: name one of its files" if os.path.isdir(path) else "does not exist"
        raise InputError(f"exported file {path} {what}; tools/export_stitch.py makes such files")
    description = export_description(path)
    if description is None:
        raise InputError(
            f"{path} is not a whole file of tools/export_stitch.py: give the .safetensors file of "
            "an export, or export it again"
        )
    try:
        return ExportInfo.from_json(description)
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

    It takes no more memory than its weights: the ViTs are never there as a whole. It pads images to
    the square; with tight padding, run it inside ``operating_at(model, None, None, "tight")``.

    Raises:
        InputError: If the file is damaged, or its weights are not those of its model.
    """
    info = read_export(path)
    try:
        model = build_detector(info.model)
    except InputError as error:
        raise InputError(f"{path} cannot be used: {error}") from error
    walk = info.model["backbone"]["net"]["segments"]
    classes, num_names = model.roi_heads.num_classes, len(info.class_names)
    if info.stitch and walk != [list(segment) for segment in info.stitch.segments]:
        raise InputError(f"{path} is damaged: its model does not run the blocks of {info.name}")
    if classes != num_names:
        raise InputError(f"{path} is damaged: its model has {classes} classes, not {num_names}")
    saved = read_weight_file(path)
    check_state_dict(saved, f"exported file {path}")
    take_position_grids(model, saved)
    expected = model.state_dict()
    saved = {k: v.to(expected[k].dtype) if k in expected else v for k, v in saved.items()}
    try:
        model.load_state_dict(saved, assign=True)
    except RuntimeError as error:
        # torch lists each key on a line of its own.
        listing = listed([line.strip() for line in str(error).splitlines()[1:]])
        raise InputError(
            f"the weights of {path} are not those of its model ({listing}): export it again"
        ) from error
    return model.to(device).eval()


def _with_sweep(info: ExportInfo, folder: Path) -> ExportInfo:
    if not (folder / "stitches.json").is_file():
        return info
    stitch_id = (info.stitch or BASELINE).id
    table = StitchTable.read_results(folder)
    if info.name not in table or table[info.name].id != stitch_id:
        return info
    result = table[info.name].result
    if result.image_size not in (None, info.image_size) or result.padding != info.padding:
        return info  # a sweep of another size or padding, by an override
    # The scores are those of the sweep's images; the costs are those of the file's aspect ratio.
    result = replace(result, gflops=info.gflops, aspect_ratio=info.aspect_ratio)
    return replace(info, result=result, curve=table[info.name].curve)


def _state_of_stitch(model: nn.Module, stitch: Stitch | None) -> dict[str, torch.Tensor]:
    """The weights of the detector that runs one stitch alone, contiguous on the CPU."""
    detector = model.detector(stitch.exit) if isinstance(model, JoinedRCNN) else model
    state = {k: v for k, v in merged_state(detector).items() if not k.startswith(_NET)}
    # A stitch keeps the pyramid of its own exit.
    small_exit = f"backbone.{SMALL_EXIT}."
    own = {k: v for k, v in state.items() if k.startswith(small_exit)}
    state = {k: v for k, v in state.items() if k not in own}
    if stitch is not None and stitch.exit == SMALL:
        state |= {f"backbone.{k.removeprefix(small_exit)}": v for k, v in own.items()}
    net = extracted_state(model.backbone.net, stitch)
    state |= {_NET + key: value for key, value in net.items()}
    return {key: value.detach().cpu().contiguous() for key, value in state.items()}


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _whole_numbers(values: Sequence[object]) -> tuple[int, ...]:
    return tuple(operator.index(value) for value in values)


def _stitch(values: Mapping) -> Stitch:
    stitch = Stitch(
        operator.index(values["id"]),
        values["kind"],
        _whole_numbers(values["cuts"]),
        tuple(Segment(*_whole_numbers(each)) for each in values["segments"]),
        tuple(Transition(*_whole_numbers(each)) for each in values["transitions"]),
    )
    anchors = [segment.anchor for segment in stitch.segments]
    kind = "SL"[anchors[0]] if len(anchors) == 1 else "".join("FS"[anchor] for anchor in anchors)
    if stitch.kind != kind or stitch.name != values["name"]:
        raise ValueError(f"a walk of kind {kind} has another name")
    return stitch


def _curve(values: Mapping) -> ScoreCurve:
    counts = [_whole_numbers(values[key]) for key in ("detections", "matched")]
    if any(len(each) != NUM_SCORES for each in counts) or not isinstance(values["name"], str):
        raise ValueError(f"its score curve does not have a name and {NUM_SCORES} scores")
    return ScoreCurve(values["name"], operator.index(values["num_objects"]), *counts)


def _CLASS_NAMES(value: object) -> str:  # noqa: N802  (a validator, like those beside it)
    fits = isinstance(value, list) and 0 < len(value) <= MAX_CLASSES
    fits = fits and all(isinstance(name, str) for name in value)
    return "" if fits else f"a list of 1 to {MAX_CLASSES} names"


_OBJECTS = {
    "stitch": _stitch,
    "result": lambda values: StitchResult(**values),
    "curve": _curve,
}
_VALUES = {
    "class_names": _CLASS_NAMES,
    "gflops": number(0, 1e12),
    "params_m": number(0, 1e12),
    "image_size": SIDE,
    "image_format": one_of("RGB", "BGR"),
    "point": TEXT,
    "aspect_ratio": or_null(number(1, 1e6)),
}
