"""Writes one stitch of a trained detector as a file of its own, see ``export_file``.

A LazyConfig names what to call by import path: instantiating one from an untrusted file runs that
file's code. An exported file has a *plan* in its place, which names parts of the closed list in
``export_parts`` and gives them numbers, strings, lists and further parts.
"""

import copy
import dataclasses
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from detectron2.modeling import GeneralizedRCNN, SimpleFeaturePyramid
from omegaconf import ListConfig, OmegaConf
from torch import nn

from snnet_vitdet.building import located
from snnet_vitdet.engine import Config
from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation import StitchTable
from snnet_vitdet.files import replacing
from snnet_vitdet.modeling import (
    ExtractedViT,
    HeadsPerExit,
    JoinedRCNN,
    PerExit,
    PyramidPerExit,
    StitchedViT,
    baseline_cost,
    extracted_state,
    is_joined,
    stitch_costs,
)
from snnet_vitdet.modeling.extracted import merged_state
from snnet_vitdet.modeling.pyramid import SMALL_EXIT
from snnet_vitdet.stitching import ANCHOR_NAMES, SMALL, Stitch

from .export_file import HEADER_KEY, ExportInfo, load_exported
from .export_graphs import PixelsToPyramid, largest_difference
from .export_parts import PART, PARTS, build

__all__ = ["export_stitch"]

_LORA = ("lora_rank", "lora_alpha")
_NET = "backbone.net."


def export_stitch(
    path: str | os.PathLike[str],
    model: nn.Module,
    config: Config,
    stitch: Stitch | None,
    class_names: Sequence[str],
) -> ExportInfo:
    """Writes the weights that a stitch needs, with low-rank updates merged, to a file.

    The results of the sweep in ``train.output_dir`` for this stitch are added. The file is loaded
    again, and kept only if its features are those of the model.

    Args:
        path: The file.
        model: The detector with trained weights, in evaluation mode; not changed.
        config: The config of its training.
        stitch: A stitch of its space; None for a baseline.
        class_names: Names by ``pred_classes``.

    Raises:
        InputError: If the model has parts that cannot be exported, or the file cannot be written.
    """
    mapper = config.dataloader.test.mapper
    # The trained model's number of classes, whatever the config says.
    model_config = copy.deepcopy(config.model)
    model_config.roi_heads.num_classes = model.roi_heads.num_classes
    plan = _plan_of_stitch(model_config, stitch)
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
        augmentations=_plan_of(mapper.augmentations),
        model=plan,
    )
    info = _with_sweep(info, Path(config.train.output_dir, "sweep"))
    state = _state_of_stitch(model, stitch)
    metadata = {"format": "pt", HEADER_KEY: info.to_json()}
    with replacing(path, safetensors.SafetensorError) as temporary:
        safetensors.torch.save_file(state, temporary, metadata)
        exported = load_exported(temporary, next(model.parameters()).device)
        with model.backbone.net.using_stitch(stitch.id) if stitch else nullcontext():
            largest_difference(
                path, PixelsToPyramid(model), PixelsToPyramid(exported), info.image_size
            )
    return info


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


def _with_sweep(info: ExportInfo, folder: Path) -> ExportInfo:
    if not (folder / "stitches.json").is_file():
        return info
    stitch_id = info.stitch.id if info.stitch else 0
    table = StitchTable.read_results(folder)
    if stitch_id not in table or (info.stitch and table[stitch_id].name != info.name):
        return info
    return replace(info, result=table[stitch_id].result, curve=table[stitch_id].curve)


def _plan_of_stitch(model_config: Any, stitch: Stitch | None) -> dict:
    """The plan of the detector that runs one stitch alone.

    Args:
        model_config: The config of the trained detector; not changed.
        stitch: A stitch of its space; None for a detector on a single anchor.

    Raises:
        InputError: If the detector has parts that are not on the list.
    """
    plan = _plan_of(model_config)
    net = plan["backbone"]["net"]
    walk = {PART: ExtractedViT.__name__, "out_feature": net.get("out_feature", "last_feat")}
    if stitch is None:
        anchors, walk["segments"] = [net], [[0, 0, net["depth"]]]
    else:
        anchors, walk["segments"] = [net["small"], net["large"]], [list(s) for s in stitch.segments]
        if stitch.exit == SMALL and net.get("exit_projection", True):
            walk["projects_to"] = net["large"]["embed_dim"]
        # The pyramid of its exit is like any other.
        plan["backbone"][PART] = SimpleFeaturePyramid.__name__
        if is_joined(model_config):
            plan[PART] = GeneralizedRCNN.__name__
            for name in ("proposal_generator", "roi_heads"):
                plan[name] = plan[name][ANCHOR_NAMES[stitch.exit]]
    # Low-rank updates are merged, so there are none.
    walk["anchors"] = [{k: v for k, v in a.items() if k not in _LORA} for a in anchors]
    plan["backbone"]["net"] = walk
    return plan


def _plan_of(node: object) -> object:
    """A node of a config as plain data, with interpolations resolved.

    Raises:
        InputError: If it calls something that is not on the list, or holds other objects.
    """
    if OmegaConf.is_dict(node):
        target = node._metadata.object_type
        if not dataclasses.is_dataclass(target):
            target = node.get("_target_")
        plan = {str(key): _plan_of(node[key]) for key in node if key != "_target_"}
        return plan if target is None else {PART: _name_of(target), **plan}
    if isinstance(node, ListConfig | list | tuple):
        return [_plan_of(value) for value in node]
    if node is None or isinstance(node, bool | int | float | str):
        return node
    raise InputError(f"{node!r} in the config is no plain value, so the model cannot be exported")


def _name_of(target: object) -> str:
    part = located(target)
    name = getattr(part, "__name__", str(part))
    # These hold all stitches; the plan of one stitch does not have them.
    of_many = (HeadsPerExit, JoinedRCNN, PerExit, PyramidPerExit, StitchedViT)
    if part not in of_many and PARTS.get(name) is not part:
        raise InputError(
            f"{name} in the config is none of the parts that can be exported: "
            f"{', '.join(sorted(PARTS))}"
        )
    return name
