"""Two trained detectors into a joined one, strictly."""

import json
import re
from collections.abc import Mapping, Sequence

import safetensors

from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import JoinedRCNN
from snnet_vitdet.stitching import LARGE, SMALL

from .checkpoint import ClassNames, StrictCheckpointer

__all__ = ["load_detectors"]

# What tools/export_stitch.py writes of a ViT alone.
_EXPORTED = re.compile(r"^backbone\.net\.(embedding|layers)\.")
_UPDATES = (".lora_a", ".lora_b")
_POSITIONS = "backbone.net.pos_embed"


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
    for name, exit_anchor in (("small", SMALL), ("large", LARGE)):
        source = sources.get(name)
        if not source:
            raise InputError(
                f"init.detectors.{name} is not set: give the checkpoint of a detector on the "
                f"{name} ViT alone"
            )
        checkpointer = _DetectorCheckpointer(
            model.detector(exit_anchor), classes=ClassNames(class_names)
        )
        try:
            checkpointer.load(source, averaged=True)
        except InputError as error:
            raise InputError(f"init.detectors.{name}={source}: {error}") from error


class _DetectorCheckpointer(StrictCheckpointer):
    """Reads, besides checkpoints of this project, exported files and detectron2's own ViTDet."""

    def _load_file(self, filename: str) -> dict:
        checkpoint = super()._load_file(filename)
        checkpoint["model"] = {_own_key(k): v for k, v in checkpoint["model"].items()}
        if names := _exported_names(filename):
            checkpoint["classes"] = {"thing_classes": names}
        return checkpoint

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


def _exported_names(filename: str) -> list[str]:
    """The class names that an exported file has in its header."""
    if not filename.endswith(".safetensors"):
        return []
    with safetensors.safe_open(filename, framework="pt") as file:
        metadata = file.metadata() or {}
    return list(json.loads(metadata.get("snnet_vitdet", "{}")).get("class_names", []))
