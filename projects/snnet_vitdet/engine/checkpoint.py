"""Checkpoints that fit the model exactly, and know their classes."""

import logging
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer

from snnet_vitdet.errors import InputError, first_line
from snnet_vitdet.files import replacing, write_atomically
from snnet_vitdet.text import listed, shown
from snnet_vitdet.weight_files import check_state_dict, read_weight_file

__all__ = [
    "ClassNames",
    "StrictCheckpointer",
    "checkpoint_to_evaluate",
    "checkpoint_to_resume",
    "last_checkpoint",
    "saved_facts",
]

logger = logging.getLogger(__name__)

_MAX_CLASSES = 65536

# Whether a part of a checkpoint, where it has one, is as this project saves it.
_FORMS = {
    "classes": lambda part: (
        isinstance(part, dict)
        and isinstance(part["thing_classes"], list)
        and all(isinstance(name, str) for name in part["thing_classes"])
    ),
    "trainer": lambda part: (
        # Of model_init.pth, -1.
        isinstance(part, dict)
        and type(part["iteration"]) is int
        and -1 <= part["iteration"] < 2**63 - 1
    ),
    "ema": lambda part: (
        isinstance(part, dict)
        and isinstance(part["weights"], dict)
        and type(part["num_steps"]) is int
    ),
}


class ClassNames:
    """The class names a model was trained for, kept in its checkpoints."""

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
        """What the checkpoint keeps."""
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


def last_checkpoint(output_dir: str) -> str:
    """File name of the last checkpoint of a training, empty without one.

    It is the one that the training noted in its folder. Where the note is lost, it is the one of
    the latest iteration: what is there must not be taken for nothing and be overwritten.

    Raises:
        InputError: If the note names a file outside of the folder, or cannot be read.
    """
    if noted := _noted(output_dir):
        return noted
    names = os.listdir(output_dir) if os.path.isdir(output_dir) else []
    return max((n for n in names if not math.isnan(_iteration(n))), key=_iteration, default="")


def _noted(output_dir: str) -> str:
    """What the file last_checkpoint says; empty if it is gone, empty or no text."""
    tag = os.path.join(output_dir, "last_checkpoint")
    if not os.path.isfile(tag):
        return ""
    try:
        with open(tag, encoding="utf-8") as file:
            # A name is shorter than this on every file system.
            name = file.read(1024).strip()
    except UnicodeDecodeError:
        return ""
    except OSError as error:
        raise InputError(
            f"{tag} cannot be read ({error.strerror}): check its permissions"
        ) from error
    if not name.isprintable():
        return ""
    # A folder from elsewhere must not lead to other files of the machine.
    if name != os.path.basename(name) or name in (os.curdir, os.pardir):
        raise InputError(
            f"{tag} names {name!r}, which is not a file of its own folder: write the name of one "
            "into it, or remove it"
        )
    return name


def _fault_of_note(output_dir: str) -> str:
    """Why the file last_checkpoint says nothing."""
    tag = os.path.join(output_dir, "last_checkpoint")
    if not os.path.lexists(tag):
        return "is gone"
    if not os.path.isfile(tag):
        return "is no file"
    return "holds no name" if os.path.getsize(tag) else "is empty"


def checkpoint_to_evaluate(init_checkpoint: str, output_dir: str) -> str:
    """The checkpoint of an evaluation: the one that is named, else the last of the output folder.

    Raises:
        InputError: If it is not there.
    """
    path = init_checkpoint
    if not path:
        last = last_checkpoint(output_dir)
        if not last:
            raise InputError(
                f"there is nothing to evaluate: {output_dir} has no checkpoint; give one with "
                "train.init_checkpoint=…"
            )
        path = os.path.join(output_dir, last)
    if not os.path.isfile(path):
        raise InputError(f"checkpoint {path} does not exist: check train.init_checkpoint")
    return path


def checkpoint_to_resume(output_dir: str) -> str:
    """The checkpoint a training goes on from: its last one, or the last before it that is whole.

    Returns:
        Its path, empty where there is no training to resume.

    Raises:
        InputError: If there are checkpoints, and none of them can be read.
    """
    last = last_checkpoint(output_dir)
    if not last:
        return ""
    if not _noted(output_dir):
        logger.warning(
            "%s has checkpoints, but its file last_checkpoint %s: the latest counts, %s. To train "
            "anew, choose another train.output_dir.",
            output_dir,
            _fault_of_note(output_dir),
            last,
        )
    damaged = ""
    for name in [last, *_before(last, os.listdir(output_dir))]:
        path = os.path.join(output_dir, name)
        try:
            # What is at the end of a file, the list of its contents, is read; the weights are not.
            saved_facts(path)
        except InputError as error:
            logger.warning("%s", error)
            damaged = damaged or name
            continue
        if damaged:
            what = "starts again from" if _iteration(name) < 0 else "goes on from"
            logger.warning("Instead of %s, the training %s %s.", damaged, what, name)
        return path
    raise InputError(
        f"no checkpoint in {output_dir} can be read, {last} being the last: train anew in another "
        "train.output_dir"
    )


def _before(last: str, names: Sequence[str]) -> list[str]:
    """The checkpoints that were written before the last one, the latest of them first."""
    # Of a last one that is named otherwise, all are.
    earlier = [
        name
        for name in names
        if not math.isnan(_iteration(name)) and not _iteration(name) >= _iteration(last)
    ]
    return sorted(earlier, key=_iteration, reverse=True)


def _iteration(name: str) -> float:
    """Orders the names of checkpoints; NaN for other files."""
    number = re.fullmatch(r"model_(\d+|init|final)\.pth", name)
    if number is None:
        return math.nan
    return {"init": -1.0, "final": math.inf}.get(number[1]) or float(number[1])


def saved_facts(checkpoint: str) -> tuple[list[str] | None, int | None]:
    """The class names and the number of iterations a checkpoint was trained for.

    Each is None where the file does not say it; weights stay unread.

    Raises:
        InputError: If the file is no checkpoint.
    """
    saved = _parts(checkpoint, on_disk=True)
    names = saved["classes"]["thing_classes"] if "classes" in saved else None
    # The checkpoint has the index of the last iteration.
    iterations = saved["trainer"]["iteration"] + 1 if "trainer" in saved else None
    return names, iterations


def _parts(path: str, *, on_disk: bool = False) -> dict:
    """The parts of a checkpoint; a file that is a state dict itself has the part "model" alone.

    Raises:
        InputError: If it cannot be read, or a part is not as this project saves it.
    """
    saved = read_weight_file(path, on_disk=on_disk)
    if not (isinstance(saved, Mapping) and "model" in saved):
        saved = {"model": saved}
    for name, has_form in _FORMS.items():
        try:
            right = name not in saved or has_form(saved[name])
        except KeyError:
            right = False
        if not right:
            raise InputError(
                f"the part {name!r} of checkpoint {path} is not as this project saves it: take it "
                "out of the file, or use another checkpoint"
            )
    names = saved["classes"]["thing_classes"] if "classes" in saved else []
    if len(names) > _MAX_CLASSES:
        raise InputError(
            f"checkpoint {path} names {len(names)} classes, of which {_MAX_CLASSES} can be used: "
            "it is damaged; use another checkpoint"
        )
    return dict(saved)


class _NotWrittenError(Exception):
    """What torch raises where the disk is full, told from its other errors."""


class StrictCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer, which only warns of missing keys and other shapes, as an error."""

    def __init__(self, *args: object, new_classes: bool = False, **kwargs: object) -> None:
        """
        Args:
            *args: As for detectron2's.
            new_classes: Whether the checkpoint may be of other classes, by number or name: the last
                layers of the heads then stay as initialised. Likewise, one of the two may have no
                mask head. For starting a training on other data.
            **kwargs: As for detectron2's.
        """
        super().__init__(*args, **kwargs)
        self.new_classes = new_classes
        self._averaged = False

    def load(
        self, path: str, checkpointables: Sequence[str] | None = None, *, averaged: bool = False
    ) -> dict:
        """Loads a checkpoint. Unlike for detectron2's, a path is never an address.

        Args:
            path: Its file; if empty, nothing is loaded.
            checkpointables: What to load besides the weights; None for all that the file has.
            averaged: Whether to take the moving average of the weights where the checkpoint has
                one, as for everything but going on with its training.

        Returns:
            What of the checkpoint was not loaded into anything; ``ema`` is in it if the checkpoint
            has an average that is not among the checkpointables.

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
            # Of the optimizer, whose state only its own class can judge.
            raise InputError(
                f"what checkpoint {path} holds besides the weights does not fit this training "
                f"({type(error).__name__}: {first_line(error)}): resume it with the settings it "
                "began with, or start a new one from it with train.init_checkpoint"
            ) from error
        return checkpoint

    def save(self, name: str, *, tag: bool = True, **kwargs: object) -> None:
        """Writes a checkpoint, as a whole or not at all.

        Args:
            name: Of the file, without its suffix.
            tag: Whether it is what the training is resumed from.
            **kwargs: What else it holds.

        Raises:
            InputError: If it cannot be written; the checkpoints before it are whole.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: part.state_dict() for key, part in self.checkpointables.items()}
        checkpoint = {"model": self.model.state_dict(), **states, **kwargs}
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        self._remove_halves()
        with replacing(path, _NotWrittenError) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:
                # Of its writer, a full disk. Of others, what only comes to light here: a worker of
                # the data that has died, a failure of the GPU.
                if not re.search("inline_container|PytorchStreamWriter", str(error)):
                    raise
                raise _NotWrittenError("it could not be written to its end") from error
        if tag:
            self.tag_last_checkpoint(f"{name}.pth")

    def save_iteration(self, iteration: int) -> None:
        """Writes a checkpoint as detectron2's periodic ones are, in its name and what it holds.

        Args:
            iteration: Index of the last iteration that was trained.

        Raises:
            InputError: If it cannot be written.
        """
        self.save(f"model_{iteration:07d}", iteration=iteration)

    def save_copy(self, checkpoint: str, name: str) -> None:
        """Writes a copy of a checkpoint, with all it holds, as one of this training.

        Args:
            checkpoint: Its file.
            name: Of the new file, without its suffix.

        Raises:
            InputError: If it cannot be written.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        with replacing(os.path.join(self.save_dir, f"{name}.pth")) as temporary:
            shutil.copyfile(checkpoint, temporary)
        self.tag_last_checkpoint(f"{name}.pth")

    def periodic_checkpoints(self) -> list[str]:
        """Paths of the checkpoints that are named by their iteration, the earliest first."""
        names = [n for n in os.listdir(self.save_dir) if 0 <= _iteration(n) < math.inf]
        return [os.path.join(self.save_dir, name) for name in sorted(names, key=_iteration)]

    def _remove_halves(self) -> None:
        """Takes away what a killed process left, of a name that may not come again."""
        for path in Path(self.save_dir).glob(".tmp.model_*.pth"):
            path.unlink(missing_ok=True)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Notes which checkpoint the training is resumed from."""
        path = os.path.join(self.save_dir, "last_checkpoint")
        write_atomically(path, last_filename_basename.encode())

    def _load_file(self, filename: str) -> dict:
        """Instead of detectron2's, which runs what a pickle says."""
        checkpoint = _parts(filename)
        check_state_dict(checkpoint["model"], f"weight file {filename}")
        if "ema" in checkpoint:
            average = checkpoint["ema"]["weights"]
            check_state_dict(average, f"the moving average in weight file {filename}")
        return checkpoint

    def _load_model(self, checkpoint: dict):
        if self._averaged and "ema" in checkpoint:
            checkpoint["model"] = checkpoint["ema"]["weights"]
            logger.info("The weights are the moving average of their training.")
        if self.new_classes:
            self._forget_other_classes(checkpoint)
        new_head = self._new_mask_head(checkpoint) if self.new_classes else set()
        own = self.model.state_dict()
        # detectron2 takes this prefix away.
        saved = {key.removeprefix("module."): v for key, v in checkpoint["model"].items()}
        # Which copying would turn into each other without a word.
        types = [
            f"{key} {saved[key].dtype} instead of {own[key].dtype}"
            for key in sorted(saved.keys() & own.keys())
            if saved[key].is_floating_point() != own[key].is_floating_point()
        ]
        incompatible = super()._load_model(checkpoint)
        shapes = [
            f"{key} {saved} instead of {own}"
            for key, saved, own in incompatible.incorrect_shapes
            if not (self.new_classes and _is_class_layer(key))
        ]
        skipped = {key for key, _, _ in incompatible.incorrect_shapes}
        if self.new_classes:
            skipped |= {key for key in incompatible.missing_keys if _is_class_layer(key)} - new_head
        missing = sorted(set(incompatible.missing_keys) - skipped - new_head)
        unexpected = sorted(incompatible.unexpected_keys)
        problems = [
            f"{len(keys)} {what} ({listed(keys)})"
            for what, keys in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("misshapen", shapes),
                ("of another type", types),
            )
            if keys
        ]
        if problems:
            if (
                not self.new_classes
                and "classes" in checkpoint
                and "classes" in self.checkpointables
            ):
                # Other classes explain other shapes, and say more.
                self.checkpointables["classes"].load_state_dict(checkpoint["classes"])
            remedy = "Give the config and overrides it was trained with"
            own = {key for key in self.model.state_dict() if ".mask_head." in key}
            for keys, learnt in ((unexpected, True), (missing, False)):
                # A whole mask head, or some of it is damaged.
                whole = not own if learnt else own == set(keys)
                if keys and whole and all(".mask_head." in key for key in keys):
                    remedy = f"It was trained {'with' if learnt else 'without'} masks: set "
                    remedy += f"data.masks={str(learnt).lower()}"
            raise InputError(
                f"the checkpoint is not one of this model: {'; '.join(problems)}. {remedy}"
            )
        if skipped:
            logger.warning("Other classes than in the checkpoint: %s start anew.", sorted(skipped))
        if new_head:
            logger.warning("The checkpoint has no mask head: it starts anew.")
        return incompatible

    def _forget_other_classes(self, checkpoint: dict) -> None:
        """Takes the layers of other classes out; a different number shows in their shapes."""
        own, saved = self.checkpointables.get("classes"), checkpoint.get("classes")
        if own is None or saved is None or list(saved["thing_classes"]) == own.names:
            return
        state = checkpoint["model"]
        checkpoint["model"] = {key: state[key] for key in state if not _is_class_layer(key)}

    def _new_mask_head(self, checkpoint: dict) -> set[str]:
        """Takes out a mask head that the model has not; what a head that is new consists of."""
        state = checkpoint["model"]
        own, saved = (
            {key for key in keys if key.startswith("roi_heads.mask_head.")}
            for keys in (self.model.state_dict(), state)
        )
        if saved and not own:
            checkpoint["model"] = {key: state[key] for key in state if key not in saved}
            logger.info("The checkpoint's mask head is left out: boxes alone are trained.")
        return set() if saved else own


def _is_class_layer(key: str) -> bool:
    return key.startswith("roi_heads.") and ("predictor" in key)
