"""One stitch as one safetensors file: its weights, and in the header what to build around them.

The file is plain data. Reading it runs none of its content: see ``export_plan``.
"""

import copy
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from detectron2.modeling import GeneralizedRCNN
from omegaconf import DictConfig
from torch import nn

from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import ResultsTable, ScoreCurve, ScoreCurves, StitchResult
from snnet_vitdet.files import replacing
from snnet_vitdet.modeling import baseline_cost, extracted_state, stitch_costs
from snnet_vitdet.modeling.extracted import merged_state
from snnet_vitdet.modeling.pyramid_per_exit import SMALL_EXIT
from snnet_vitdet.stitching import SMALL, Segment, Stitch, Transition

from .export_checks import PixelsToPyramid, largest_difference
from .export_plan import build, plan_of, plan_of_stitch
from .table import StitchTable

__all__ = ["ExportInfo", "export_stitch", "load_exported", "read_export"]

FORMAT_VERSION = 1
_KEY = "snnet_vitdet"
_NET = "backbone.net."


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

    def mapper(self) -> dict[str, object]:
        """How images are prepared, as :meth:`Predictor.of_model` takes it."""
        return {"augmentations": build(self.augmentations), "image_format": self.image_format}

    def table(self, source: str) -> StitchTable | None:
        """The sweep's results of this one stitch; None if it was not swept.

        Args:
            source: How errors call it.
        """
        if self.result is None:
            return None
        results, curves = ResultsTable(), ScoreCurves()
        results.add(self.result)
        if self.curve is not None:
            curves.put(self.result.stitch_id, self.curve)
        return StitchTable(results, source=source, curves=curves)

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
    def from_json(cls, text: str) -> "ExportInfo":
        """Reads what ``to_json`` wrote.

        Raises:
            InputError: If it is of another version.
            KeyError, TypeError, ValueError: If it is damaged.
        """
        content = json.loads(text)
        version = content.pop("format_version")
        if version != FORMAT_VERSION:
            raise InputError(
                f"its format has version {version}, this program reads {FORMAT_VERSION}: use the "
                "version of the program that wrote it"
            )
        if stitch := content["stitch"]:
            content["stitch"] = Stitch(
                int(stitch["id"]),
                str(stitch["kind"]),
                tuple(stitch["cuts"]),
                tuple(Segment(*segment) for segment in stitch["segments"]),
                tuple(Transition(*transition) for transition in stitch["transitions"]),
            )
        if result := content["result"]:
            content["result"] = StitchResult(**result)
        if curve := content["curve"]:
            counts = {key: tuple(map(int, curve[key])) for key in ("detections", "matched")}
            content["curve"] = ScoreCurve(**{**curve, **counts})
        if not isinstance(content["augmentations"], list):
            raise TypeError("augmentations is no list")
        content["class_names"] = tuple(map(str, content["class_names"]))
        return cls(**content)


def export_stitch(
    path: str | os.PathLike[str],
    model: nn.Module,
    config: DictConfig,
    stitch: Stitch | None,
    class_names: Sequence[str],
) -> ExportInfo:
    """Writes the weights that a stitch needs, low-rank updates merged, as a file of their own.

    What the sweep in ``train.output_dir`` found of the stitch goes along. The file is read again
    and kept only if its features are those of the model.

    Args:
        path: Of the file.
        model: The detector with trained weights, in evaluation mode; not changed.
        config: Of its training.
        stitch: Of its space; None for a baseline.
        class_names: By ``pred_classes``.

    Raises:
        InputError: If the model has parts that cannot be exported, or the file cannot be written.
    """
    mapper = config.dataloader.test.mapper
    # The trained model's number of classes, whatever the config says.
    model_config = copy.deepcopy(config.model)
    model_config.roi_heads.num_classes = model.roi_heads.num_classes
    plan = plan_of_stitch(model_config, stitch)
    cost = stitch_costs(model_config)[stitch.id] if stitch else baseline_cost(model_config)
    info = ExportInfo(
        stitch=stitch,
        class_names=tuple(class_names),
        gflops=cost.gflops,
        params_m=cost.params_m,
        image_size=int(config.data.image_size),
        image_format=str(mapper.image_format),
        augmentations=plan_of(mapper.augmentations),
        model=plan,
    )
    info = _with_sweep(info, Path(config.train.output_dir, "sweep"))
    net = model.backbone.net
    state = _exit_state(merged_state(model), stitch)
    state |= {_NET + key: value for key, value in extracted_state(net, stitch).items()}
    state = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    metadata = {"format": "pt", _KEY: info.to_json()}
    with replacing(path, safetensors.SafetensorError) as temporary:
        safetensors.torch.save_file(state, temporary, metadata)
        device = next(model.parameters()).device
        with net.using_stitch(stitch.id) if stitch else nullcontext():
            largest_difference(
                path,
                PixelsToPyramid(model),
                PixelsToPyramid(load_exported(temporary, device)),
                info.image_size,
            )
    return info


def read_export(path: str | os.PathLike[str]) -> ExportInfo:
    """What an exported file says of its model; the weights stay unread.

    Raises:
        InputError: If it is not there, damaged, or no exported file.
    """
    with _opened(path) as file:
        metadata = file.metadata() or {}
    if _KEY not in metadata:
        raise InputError(
            f"{path} is a safetensors file, but not one of tools/export_stitch.py: it does not say "
            "which model its weights are of"
        )
    try:
        return ExportInfo.from_json(metadata[_KEY])
    except InputError as error:
        raise InputError(f"{path} cannot be used: {error}") from error
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is damaged: what it says of its model cannot be read "
            f"({type(error).__name__}: {error}); export it again"
        ) from error


def load_exported(
    path: str | os.PathLike[str], device: str | torch.device = "cpu"
) -> GeneralizedRCNN:
    """The detector of an exported file: a detectron2 model like any other, in evaluation mode.

    Its weights are the only memory it takes: no anchor is ever there as a whole.

    Raises:
        InputError: If the file is damaged, or its weights are not those of its model.
    """
    info = read_export(path)
    try:
        model = build(info.model)
    except InputError as error:
        raise InputError(f"{path} cannot be used: {error}") from error
    if not isinstance(model, GeneralizedRCNN):
        raise InputError(f"{path} is damaged: it describes no detector; export it again")
    if model.roi_heads.num_classes != len(info.class_names):
        raise InputError(
            f"{path} is damaged: it names {len(info.class_names)} classes, and its model has "
            f"{model.roi_heads.num_classes}; export it again"
        )
    with _opened(path) as file:
        saved = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    expected = model.state_dict()
    _compare(path, saved, expected)
    saved = {key: value.to(expected[key].dtype) for key, value in saved.items()}
    model.load_state_dict(saved, assign=True)
    return model.to(device).eval()


def _exit_state(
    state: Mapping[str, torch.Tensor], stitch: Stitch | None
) -> dict[str, torch.Tensor]:
    """Pyramid and heads of a stitch out of the state of a detector, whose backbone is left out."""
    state = {key: value for key, value in state.items() if not key.startswith(_NET)}
    of_small_exit = f"backbone.{SMALL_EXIT}."
    own = {
        f"backbone.{key.removeprefix(of_small_exit)}": value
        for key, value in state.items()
        if key.startswith(of_small_exit)
    }
    state = {key: value for key, value in state.items() if not key.startswith(of_small_exit)}
    return state | own if stitch is not None and stitch.exit == SMALL else state


def _with_sweep(info: ExportInfo, folder: Path) -> ExportInfo:
    if not (folder / "stitches.json").is_file():
        return info
    stitch_id = info.stitch.id if info.stitch else 0
    found = [result for result in ResultsTable.read(folder) if result.stitch_id == stitch_id]
    if not found or (info.stitch and found[0].name != info.name):
        return info
    curves = ScoreCurves.read(folder)
    info = replace(info, result=found[0])
    return replace(info, curve=curves[stitch_id]) if stitch_id in curves else info


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[object]:
    if not os.path.isfile(path):
        raise InputError(f"exported file {path} does not exist: tools/export_stitch.py makes one")
    try:
        with safetensors.safe_open(os.fspath(path), framework="pt") as file:
            yield file
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(
            f"{path} cannot be read as safetensors ({error}): it is truncated or another kind of "
            "file; export it again"
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
        f"{len(keys)} {what} ({', '.join(keys[:5])}{', …' if len(keys) > 5 else ''})"
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
