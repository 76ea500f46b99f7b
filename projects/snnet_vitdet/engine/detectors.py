"""Two trained detectors into a joined one, strictly."""

import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence

import safetensors
import torch
from detectron2.modeling import GeneralizedRCNN
from omegaconf import DictConfig

from snnet_vitdet.data import category_names
from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import JoinedRCNN, is_joined
from snnet_vitdet.modeling.cost import build_on_meta
from snnet_vitdet.stitching import ANCHOR_NAMES, LARGE, SMALL
from snnet_vitdet.validators import written

from .checkpoint import ClassNames, StrictCheckpointer
from .config import read_yaml

__all__ = ["check_detectors", "load_detectors"]

# What tools/export_stitch.py writes of a ViT alone.
_EXPORTED = re.compile(r"^backbone\.net\.(embedding|layers)\.")
_HEADER = "snnet_vitdet"
_UPDATES = (".lora_a", ".lora_b")
_POSITIONS = "backbone.net.pos_embed"
_PIXELS = ("pixel_mean", "pixel_std")


def check_detectors(config: DictConfig, *, data_there: bool) -> None:
    """Raises what :func:`load_detectors` would, and more, without memory for a model.

    Args:
        config: The whole config of a training that is about to start.
        data_there: Whether there are data to compare classes with; else they are still to be made.

    Raises:
        InputError: If ``init.detectors`` or ``init.weights`` is set for a detector that is not made
            of it; if one of the detectors cannot be read, is of another model or of other classes,
            or says that it saw its images in another form than this config gives them.
    """
    given = config.init.get("detectors") or {}
    sources = {key: value for key, value in given.items() if value}
    if not is_joined(config.model):
        if sources:
            raise InputError(
                f"init.detectors.{next(iter(sources))} is set, but the model of this config is not "
                "joined of two detectors: take a config of configs/join, or leave it out"
            )
        return
    if weights := {key: value for key, value in config.init.weights.items() if value}:
        key, value = next(iter(weights.items()))
        raise InputError(
            f"init.weights.{key}={value} is set, but a joined detector takes its ViTs from the two "
            "detectors of init.detectors: leave it out"
        )
    class_names = category_names(config.data.test_json) if data_there else None
    said = _load(build_on_meta(config.model), sources, class_names)
    here = {key: config.model[key] for key in (*_PIXELS, "input_format")}
    here["image_format"] = config.dataloader.test.mapper.image_format
    for name, values in said.items():
        for key, value in values.items():
            if not _same(value, here[key]):
                raise InputError(
                    f"init.detectors.{name}={sources[name]} was trained with {key} "
                    f"{written(value)}, and this config has {written(here[key])}: give a config "
                    "that shows images as both detectors have seen them"
                )


def load_detectors(
    model: JoinedRCNN, sources: Mapping[str, str | None], class_names: Sequence[str]
) -> None:
    """Loads the two detectors that a joined one is made of, each as a whole.

    Args:
        model: The joined detector.
        sources: By ``small`` and ``large``, the checkpoint of a detector on that ViT alone: of a
            training, exported by tools/export_stitch.py, or of detectron2's own ViTDet.
        class_names: Of the data, in the order of the model's outputs.

    Raises:
        InputError: If one is missing, cannot be read, is of another model or of other classes.
    """
    _load(model, sources, class_names)


def _load(
    model: JoinedRCNN, sources: Mapping[str, str | None], class_names: Sequence[str] | None
) -> dict[str, dict]:
    """What each source says of the images that its detector was trained on, too."""
    for name in ANCHOR_NAMES:
        if not sources.get(name):
            raise InputError(
                f"init.detectors.{name} is not set: give the checkpoint of a detector on the "
                f"{name} ViT alone"
            )
    said = {}
    for exit_anchor, name in enumerate(ANCHOR_NAMES):
        source = sources[name]
        try:
            said[name] = _load_one(model.detector(exit_anchor), source, class_names)
        except InputError as error:
            if _are_swapped(model, sources, class_names):
                raise InputError(
                    f"init.detectors.small={sources['small']} is a detector on the large ViT, and "
                    f"init.detectors.large={sources['large']} one on the small ViT: swap them"
                ) from error
            raise InputError(f"init.detectors.{name}={source}: {error}") from error
    return said


def _load_one(
    detector: GeneralizedRCNN, source: str, class_names: Sequence[str] | None
) -> dict[str, object]:
    parts = {} if class_names is None else {"classes": _Classes(class_names)}
    checkpointer = _DetectorCheckpointer(detector, **parts)
    with warnings.catch_warnings():
        # What torch says of each parameter on the meta device.
        warnings.filterwarnings("ignore", ".*to a meta parameter.*")
        return checkpointer.load(source, averaged=True)["images"]


def _are_swapped(
    model: JoinedRCNN, sources: Mapping[str, str], class_names: Sequence[str] | None
) -> bool:
    try:
        _load_one(model.detector(LARGE), sources["small"], class_names)
        _load_one(model.detector(SMALL), sources["large"], class_names)
    except InputError:
        return False
    return True


class _Classes(ClassNames):
    remedy = "join detectors of the classes of the data, in their order"


class _DetectorCheckpointer(StrictCheckpointer):
    """Reads, besides checkpoints of this project, exported files and detectron2's own ViTDet."""

    def _load_file(self, filename: str) -> dict:
        checkpoint = super()._load_file(filename)
        state = {_own_key(key): value for key, value in checkpoint["model"].items()}
        images = _said_by_config_beside(filename)
        # Older versions of detectron2 save them.
        images |= {key: state.pop(key).flatten().tolist() for key in _PIXELS if key in state}
        return {**checkpoint, "model": state, "images": images, **_exported_header(filename)}

    def _load_model(self, checkpoint: dict):
        positions, own = checkpoint["model"].get(_POSITIONS), self.model.state_dict()
        # What is to be trained between the two detectors is of neither.
        updates = {name: value for name, value in own.items() if name.endswith(_UPDATES)}
        checkpoint["model"] |= updates
        # detectron2 keeps the place of the class token that its ViT does not have.
        if positions is not None and _POSITIONS in own:
            batch, length, width = own[_POSITIONS].shape
            if positions.shape == (batch, length + 1, width):
                checkpoint["model"][_POSITIONS] = positions[:, 1:]
        return super()._load_model(checkpoint)


def _own_key(key: str) -> str:
    if not _EXPORTED.match(key):
        return key
    return key.replace(".embedding.", ".", 1).replace(".layers.", ".blocks.", 1)


def _said_by_config_beside(filename: str) -> dict:
    """How the training that a checkpoint lies in the folder of has seen its images."""
    try:
        model = read_yaml(os.path.join(os.path.dirname(filename), "config.yaml"))["model"]
        said = {key: model[key] for key in (*_PIXELS, "input_format") if key in model}
    except (KeyError, OSError, TypeError, ValueError):
        return {}  # of somebody else
    return {key: value for key, value in said.items() if not _refers(value)}


def _refers(value: object) -> bool:
    return isinstance(value, str) and "${" in value


def _exported_header(filename: str) -> dict:
    """What an exported file says of its detector; nothing of another kind of file.

    Raises:
        InputError: If it cannot be understood.
    """
    try:
        with safetensors.safe_open(filename, framework="pt") as file:
            text = (file.metadata() or {}).get(_HEADER)
    except safetensors.SafetensorError:
        return {}
    if text is None:
        return {}
    try:
        content = json.loads(text)
        images = {key: content["model"][key] for key in (*_PIXELS, "input_format")}
        images["image_format"] = content["image_format"]
        names = [str(name) for name in content["class_names"]]
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise InputError("its description is damaged: export it again") from error
    return {"classes": {"thing_classes": names}, "images": images}


def _same(said: object, here: object) -> bool:
    """Whether two formats are the same, or two lists of numbers, in single precision."""
    if isinstance(here, str):
        return said == here
    try:
        return torch.tensor(said).float().equal(torch.tensor(list(here)).float())
    except (RuntimeError, TypeError, ValueError):  # no numbers
        return False
