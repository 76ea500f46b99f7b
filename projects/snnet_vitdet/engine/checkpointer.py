"""Loads and saves checkpoints that fit the model exactly and know their classes."""

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer

from snnet_vitdet.errors import InputError, first_line
from snnet_vitdet.files import replacing, write_atomically
from snnet_vitdet.modeling.operating import resized_positions, take_position_grids
from snnet_vitdet.text import listed, shown
from snnet_vitdet.weight_files import check_state_dict, export_description

from .checkpoint import checkpoint_parts
from .saved_config import read_yaml

__all__ = ["PIXELS", "ClassNames", "DetectorCheckpointer", "StrictCheckpointer"]

logger = logging.getLogger(__name__)

PIXELS = ("pixel_mean", "pixel_std")
"""The model's arguments that normalise an image."""
_UPDATES = (".lora_a", ".lora_b")
_POSITIONS = "backbone.net.pos_embed"


class ClassNames:
    """The class names a model is trained for, as a part of its checkpoints."""

    remedy = (
        "give the data it was trained for, or start a new training from it with "
        "train.init_checkpoint and another train.output_dir"
    )

    def __init__(self, names: Sequence[str]) -> None:
        """
        Args:
            names: Names in the order of the model's outputs.
        """
        self.names = list(names)

    def state_dict(self) -> dict[str, list[str]]:
        """The part of a checkpoint."""
        return {"thing_classes": self.names}

    def load_state_dict(self, state: Mapping[str, list[str]]) -> None:
        """Compares with the names of a checkpoint.

        Raises:
            InputError: If the checkpoint was trained for other classes.
        """
        saved = list(state["thing_classes"])
        if saved != self.names:
            raise InputError(
                f"the checkpoint was trained for the classes {shown(saved)}, but the data "
                f"has {shown(self.names)}: {self.remedy}"
            )


class _NotWrittenError(Exception):
    """torch's error for a full disk, told apart from its other errors."""


class StrictCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer; missing keys and other shapes are errors instead of warnings."""

    def __init__(self, *args: object, new_classes: bool = False, **kwargs: object) -> None:
        """
        Args:
            *args: As for detectron2's.
            new_classes: Whether the checkpoint may have other classes, by number or name: the last
                layers of the heads then stay as initialised. Likewise, one of the two may have no
                mask head. For starting a training on other data.
            **kwargs: As for detectron2's.
        """
        super().__init__(*args, **kwargs)
        self.new_classes = new_classes
        self._averaged = False

    @property
    def starts_training(self) -> bool:
        """Whether a training starts from what is loaded, perhaps at another image size."""
        return self.new_classes and "trainer" not in self.checkpointables

    def load(
        self, path: str, checkpointables: Sequence[str] | None = None, *, averaged: bool = False
    ) -> dict:
        """Loads a checkpoint. Unlike for detectron2's, a path is never an address.

        Args:
            path: Path of the file; if empty, nothing is loaded.
            checkpointables: Parts to load besides the weights; None for all that the file has.
            averaged: Whether to take the moving average of the weights where the checkpoint has
                one; for everything but resuming its training.

        Returns:
            The parts that were not loaded; ``ema`` among them if the checkpoint has a moving
            average that is not one of the checkpointables.

        Raises:
            InputError: If it cannot be read, or is of another model or other classes.
        """
        if not path:
            return {}
        self._averaged = averaged
        self.logger.info("Loading from %s", path)
        checkpoint = self._load_file(path)
        self._load_model(checkpoint)
        try:
            for key in self.checkpointables if checkpointables is None else checkpointables:
                if key in checkpoint:
                    self.checkpointables[key].load_state_dict(checkpoint.pop(key))
        except InputError:
            raise
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            # From the optimizer: only its own class can judge its state.
            raise InputError(
                f"what checkpoint {path} holds besides the weights does not fit this training "
                f"({type(error).__name__}: {first_line(error)}): resume it with the settings it "
                "began with, or start a new one from it with train.init_checkpoint"
            ) from error
        return checkpoint

    def save(self, name: str, *, tag: bool = True, **kwargs: object) -> None:
        """Writes a checkpoint, as a whole or not at all.

        Args:
            name: Name of the file, without its suffix.
            tag: Whether the training will be resumed from it.
            **kwargs: Further parts.

        Raises:
            InputError: If it cannot be written; earlier checkpoints stay whole.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: part.state_dict() for key, part in self.checkpointables.items()}
        checkpoint = {"model": self.model.state_dict(), **states, **kwargs}
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        # A killed process may have left a part of a file whose name does not come again.
        for part in Path(self.save_dir).glob(".tmp.model_*.pth"):
            part.unlink(missing_ok=True)
        with replacing(path, _NotWrittenError) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:
                # From torch's file writer: a full disk. Other errors only come to light here, such
                # as a dead data worker or a failure of the GPU.
                if not re.search("inline_container|PytorchStreamWriter", str(error)):
                    raise
                raise _NotWrittenError("it could not be written to its end") from error
        if tag:
            self.tag_last_checkpoint(f"{name}.pth")

    def save_iteration(self, iteration: int) -> None:
        """Writes a checkpoint with name and parts of detectron2's periodic ones.

        Args:
            iteration: Index of the last iteration that was trained.

        Raises:
            InputError: If it cannot be written.
        """
        self.save(f"model_{iteration:07d}", iteration=iteration)

    def save_copy(self, checkpoint: str, name: str) -> None:
        """Copies a checkpoint file to one of this training.

        Args:
            checkpoint: Path of the file.
            name: Name of the new file, without its suffix.

        Raises:
            InputError: If it cannot be written.
        """
        if self.save_dir and self.save_to_disk:
            with replacing(os.path.join(self.save_dir, f"{name}.pth")) as temporary:
                shutil.copyfile(checkpoint, temporary)
            self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Notes the checkpoint that the training will be resumed from."""
        path = os.path.join(self.save_dir, "last_checkpoint")
        write_atomically(path, last_filename_basename.encode())

    def _load_file(self, filename: str) -> dict:
        """Replaces detectron2's, which executes code from a pickle."""
        checkpoint = checkpoint_parts(filename)
        check_state_dict(checkpoint["model"], f"weight file {filename}")
        if "ema" in checkpoint:
            average = checkpoint["ema"]["weights"]
            check_state_dict(average, f"the moving average in weight file {filename}")
        return checkpoint

    def _load_model(self, checkpoint: dict):
        if self._averaged and "ema" in checkpoint:
            checkpoint["model"] = checkpoint["ema"]["weights"]
            logger.info("The weights are the moving average of their training.")
        new_head = self._adapt_to_new_classes(checkpoint) if self.new_classes else set()
        # detectron2 removes this prefix.
        saved = {key.removeprefix("module."): v for key, v in checkpoint["model"].items()}
        if self.starts_training:
            # The training goes on with tables of its own image size.
            saved = checkpoint["model"] = resized_positions(self.model, saved)
        elif "trainer" not in self.checkpointables:
            take_position_grids(self.model, saved)
        own = self.model.state_dict()
        # Copying would silently convert integers to floats and back.
        types = [
            f"{key} {saved[key].dtype} instead of {own[key].dtype}"
            for key in sorted(saved.keys() & own.keys())
            if saved[key].is_floating_point() != own[key].is_floating_point()
        ]
        result = super()._load_model(checkpoint)
        # detectron2 counts a key of another shape among the missing ones, too.
        misshapen = {key for key, *_ in result.incorrect_shapes}
        missing = set(result.missing_keys) - misshapen
        new = set()
        if self.new_classes:
            new = {key for key in missing | misshapen if _is_class_layer(key)}
        problems = {
            "missing": sorted(missing - new - new_head),
            "unexpected": sorted(result.unexpected_keys),
            "misshapen": [
                f"{key} {saved_shape} instead of {own_shape}"
                for key, saved_shape, own_shape in result.incorrect_shapes
                if key not in new
            ],
            "of another type": types,
        }
        if any(problems.values()):
            classes = self.checkpointables.get("classes")
            if not self.new_classes and classes is not None and "classes" in checkpoint:
                # Other classes explain other shapes; their error is the better one.
                classes.load_state_dict(checkpoint["classes"])
            what = "; ".join(
                f"{len(keys)} {kind} ({listed(keys)})" for kind, keys in problems.items() if keys
            )
            remedy = self._remedy(problems["missing"], problems["unexpected"])
            raise InputError(f"the checkpoint is not one of this model: {what}. {remedy}")
        if started := sorted(new - new_head):
            logger.warning("Other classes than in the checkpoint: %s start anew.", started)
        if new_head:
            logger.warning("The checkpoint has no mask head: it starts anew.")
        return result

    def _remedy(self, missing: Sequence[str], unexpected: Sequence[str]) -> str:
        own = {key for key in self.model.state_dict() if ".mask_head." in key}
        # Only a whole mask head: a part of one is a damaged file.
        if unexpected and not own and all(".mask_head." in key for key in unexpected):
            return "It was trained with masks: set data.masks=true"
        if missing and own == set(missing):
            return "It was trained without masks: set data.masks=false"
        return "Give the config and overrides it was trained with"

    def _adapt_to_new_classes(self, checkpoint: dict) -> set[str]:
        """Removes class layers of other classes, and a mask head that the model does not have.

        A different number of classes shows in the shapes of the class layers.

        Returns:
            Names of the model's mask head if the checkpoint has none.
        """
        state = checkpoint["model"]
        own, saved = self.checkpointables.get("classes"), checkpoint.get("classes")
        if own is not None and saved is not None and saved["thing_classes"] != own.names:
            state = {key: value for key, value in state.items() if not _is_class_layer(key)}
        head = "roi_heads.mask_head."
        own_head = {key for key in self.model.state_dict() if key.startswith(head)}
        has_head = any(key.startswith(head) for key in checkpoint["model"])
        if has_head and not own_head:
            state = {key: value for key, value in state.items() if not key.startswith(head)}
            logger.info("The checkpoint's mask head is left out: boxes alone are trained.")
        checkpoint["model"] = state
        return set() if has_head else own_head


def _is_class_layer(key: str) -> bool:
    return key.startswith("roi_heads.") and ("predictor" in key)


class DetectorCheckpointer(StrictCheckpointer):
    """Reads exported files and detectron2's own ViTDet besides checkpoints of this project."""

    starts_training = True

    def _load_file(self, filename: str) -> dict:
        checkpoint = super()._load_file(filename)
        # tools/export_stitch.py writes "embedding" and "layers".
        state = {
            key.replace("backbone.net.embedding.", "backbone.net.").replace(
                "backbone.net.layers.", "backbone.net.blocks."
            ): value
            for key, value in checkpoint["model"].items()
        }
        images = _format_in_config_beside(filename)
        # Older versions of detectron2 save them.
        images |= {key: state.pop(key).flatten().tolist() for key in PIXELS if key in state}
        return {**checkpoint, "model": state, "images": images, **_exported_header(filename)}

    def _load_model(self, checkpoint: dict):
        positions, own = checkpoint["model"].get(_POSITIONS), self.model.state_dict()
        # The updates are to be trained between the two detectors; neither has them.
        checkpoint["model"] |= {name: v for name, v in own.items() if name.endswith(_UPDATES)}
        # detectron2 keeps a position for the class token that its ViT does not have.
        if positions is not None and _POSITIONS in own:
            batch, length, width = own[_POSITIONS].shape
            if positions.shape == (batch, length + 1, width):
                checkpoint["model"][_POSITIONS] = positions[:, 1:]
        return super()._load_model(checkpoint)


def _format_in_config_beside(filename: str) -> dict:
    """The image format in the config.yaml of the training that a checkpoint lies in."""
    try:
        model = read_yaml(os.path.join(os.path.dirname(filename), "config.yaml"))["model"]
        found = {key: model[key] for key in (*PIXELS, "input_format") if key in model}
    except (KeyError, OSError, TypeError, ValueError):
        return {}  # a config.yaml of another program
    return {key: value for key, value in found.items() if "${" not in str(value)}


def _exported_header(filename: str) -> dict:
    """Class names and image format of an exported file; empty for another kind of file.

    Raises:
        InputError: If the header is damaged.
    """
    text = export_description(filename)
    if text is None:
        return {}
    try:
        content = json.loads(text)
        images = {key: content["model"][key] for key in (*PIXELS, "input_format")}
        images["image_format"] = content["image_format"]
        names = [str(name) for name in content["class_names"]]
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise InputError("its description is damaged: export it again") from error
    return {"classes": {"thing_classes": names}, "images": images}
