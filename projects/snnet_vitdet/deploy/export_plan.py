"""A detector's config as plain data, of which ``export_parts`` makes the detector again.

A LazyConfig names what to call by import path: who instantiates one from a stranger's file runs the
stranger's code. A plan names classes of a closed list by their bare names and gives them numbers,
texts, lists and further parts.
"""

import dataclasses

from detectron2.modeling import GeneralizedRCNN, SimpleFeaturePyramid
from omegaconf import DictConfig, ListConfig

from snnet_vitdet.building import located
from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import (
    ExtractedViT,
    HeadsPerExit,
    JoinedRCNN,
    PerExit,
    PyramidPerExit,
    StitchedViT,
    is_joined,
)
from snnet_vitdet.stitching import ANCHOR_NAMES, SMALL, Stitch

from .export_parts import PART, PARTS

__all__ = ["plan_of", "plan_of_stitch"]

_LORA = ("lora_rank", "lora_alpha")


def plan_of(node: object) -> object:
    """A node of a config as plain data.

    Args:
        node: A DictConfig, a ListConfig or a value; interpolations are resolved.

    Raises:
        InputError: If it calls something that is not on the list, or holds other objects.
    """
    if isinstance(node, DictConfig):
        target = node._metadata.object_type
        if not dataclasses.is_dataclass(target):
            target = node.get("_target_")
        plan = {str(key): plan_of(node[key]) for key in node if key != "_target_"}
        return plan if target is None else {PART: _name_of(target), **plan}
    if isinstance(node, ListConfig | list | tuple):
        return [plan_of(value) for value in node]
    if node is None or isinstance(node, bool | int | float | str):
        return node
    raise InputError(f"{node!r} in the config is no plain value, so the model cannot be exported")


def plan_of_stitch(model_config: DictConfig, stitch: Stitch | None) -> dict:
    """The plan of the detector that runs one stitch alone.

    Args:
        model_config: The trained detector's; not changed.
        stitch: Of its space; None for a detector on a single anchor.

    Raises:
        InputError: If the detector has parts that are not on the list.
    """
    plan = plan_of(model_config)
    net = plan["backbone"]["net"]
    walk = {PART: ExtractedViT.__name__, "out_feature": net.get("out_feature", "last_feat")}
    if stitch is None:
        anchors, walk["segments"] = [net], [[0, 0, net["depth"]]]
    else:
        anchors, walk["segments"] = [net["small"], net["large"]], [list(s) for s in stitch.segments]
        if stitch.exit == SMALL and net.get("exit_projection", True):
            walk["projects_to"] = net["large"]["embed_dim"]
        # Of the pyramids, that of its exit, which is like any other.
        plan["backbone"][PART] = SimpleFeaturePyramid.__name__
        if is_joined(model_config):
            plan[PART] = GeneralizedRCNN.__name__
            for name in ("proposal_generator", "roi_heads"):
                plan[name] = plan[name][ANCHOR_NAMES[stitch.exit]]
    # Low-rank updates are merged, so there are none.
    walk["anchors"] = [{k: v for k, v in a.items() if k not in _LORA} for a in anchors]
    plan["backbone"]["net"] = walk
    return plan


def _name_of(target: object) -> str:
    part = located(target)
    name = getattr(part, "__name__", str(part))
    # Its stitches are what is exported, so a plan to build from never has them.
    of_many = (HeadsPerExit, JoinedRCNN, PerExit, PyramidPerExit, StitchedViT)
    if part not in of_many and PARTS.get(name) is not part:
        raise InputError(
            f"{name} in the config is none of the parts that can be exported: "
            f"{', '.join(sorted(PARTS))}"
        )
    return name
