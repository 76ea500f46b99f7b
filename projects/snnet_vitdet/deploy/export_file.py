"""One stitch as one safetensors file: its weights, and in the header what to build around them.

The file is plain data. Reading it runs none of its content: see ``export_parts``.
"""

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from detectron2.modeling import GeneralizedRCNN
from omegaconf import DictConfig
from torch import nn

from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import StitchTable
from snnet_vitdet.files import replacing
from snnet_vitdet.modeling import (
    JoinedRCNN,
    baseline_cost,
    extracted_state,
    stitch_costs,
)
from snnet_vitdet.modeling.extracted import merged_state
from snnet_vitdet.modeling.pyramid import SMALL_EXIT
from snnet_vitdet.stitching import SMALL, Stitch
from snnet_vitdet.text import listed

from .export_checks import PixelsToPyramid, largest_difference
from .export_info import ExportInfo
from .export_parts import build
from .export_plan import plan_of, plan_of_stitch

__all__ = ["export_stitch", "load_exported", "read_export"]

_KEY = "snnet_vitdet"
_NET = "backbone.net."


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
    try:
        build(plan)
    except InputError as error:
        raise InputError(f"the model cannot be exported: {error}") from error
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
    detector = model.detector(stitch.exit) if isinstance(model, JoinedRCNN) else model
    state = _exit_state(merged_state(detector), stitch)
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
    walk = info.model["backbone"]["net"]["segments"]
    if info.stitch and walk != [list(segment) for segment in info.stitch.segments]:
        raise InputError(
            f"{path} is damaged: it says that it has stitch {info.name}, and its model runs other "
            "blocks; export it again"
        )
    if model.roi_heads.num_classes != len(info.class_names):
        raise InputError(
            f"{path} is damaged: it names {len(info.class_names)} classes, and its model has "
            f"{model.roi_heads.num_classes}; export it again"
        )
    square = model.backbone.padding_constraints["square_size"]
    if square not in (0, info.image_size):
        raise InputError(
            f"{path} is damaged: it is for images of {info.image_size} pixels, and its model pads "
            f"them to {square}; export it again with model.backbone.square_pad as data.image_size"
        )
    with _opened(path) as file:
        saved = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    expected = model.state_dict()
    _compare(path, saved, expected)
    saved = {key: value.to(expected[key].dtype) for key, value in saved.items()}
    _refuse_no_numbers(path, saved)
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
    table = StitchTable.read_results(folder)
    if stitch_id not in table or (info.stitch and table[stitch_id].name != info.name):
        return info
    return replace(info, result=table[stitch_id].result, curve=table[stitch_id].curve)


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


def _refuse_no_numbers(path: str | os.PathLike[str], state: Mapping[str, torch.Tensor]) -> None:
    for key, value in state.items():
        # Of a variance below 0 a norm takes the root.
        if not value.isfinite().all() or (key.endswith("running_var") and (value < 0).any()):
            raise InputError(
                f"the weights of {path} cannot be used: {key} has NaN, infinite or impossible "
                "values; export it again"
            )


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
