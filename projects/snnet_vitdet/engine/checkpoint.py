"""Checkpoint files: what they hold, and which one a run takes."""

import logging
import math
import os
import re
from collections.abc import Mapping

import torch

from snnet_vitdet.errors import InputError
from snnet_vitdet.weight_files import read_weight_file

__all__ = [
    "check_resumed_optimizer",
    "checkpoint_parts",
    "checkpoint_to_evaluate",
    "checkpoint_to_resume",
    "last_checkpoint",
    "periodic_checkpoints",
    "saved_facts",
]

logger = logging.getLogger(__name__)

# Whether an optional part of a checkpoint has the form that this project saves.
_HAS_FORM = {
    "classes": lambda part: (
        isinstance(part["thing_classes"], list)
        and all(isinstance(name, str) for name in part["thing_classes"])
    ),
    "trainer": lambda part: (
        # -1 in model_init.pth.
        type(part["iteration"]) is int and -1 <= part["iteration"] < 2**63 - 1
    ),
    "ema": lambda part: isinstance(part["weights"], dict) and type(part["num_steps"]) is int,
}


def last_checkpoint(output_dir: str) -> str:
    """File name of the last checkpoint of a training, empty without one.

    It is the name in the file ``last_checkpoint``. If that is lost, it is the checkpoint of the
    latest iteration, so that a new training does not overwrite what is there.

    Raises:
        InputError: If the name is that of a file outside of the folder, or cannot be read.
    """
    return _noted(output_dir)[0] or max(_checkpoints(output_dir), key=_iteration, default="")


def _noted(output_dir: str) -> tuple[str, str]:
    """The name in the file last_checkpoint, or an empty name and what is wrong with the file."""
    tag = os.path.join(output_dir, "last_checkpoint")
    if not os.path.isfile(tag):
        return "", "is no file" if os.path.lexists(tag) else "is gone"
    try:
        with open(tag, encoding="utf-8") as file:
            name = file.read(1024).strip()  # longer than the names of any file system
    except UnicodeDecodeError:
        return "", "holds no name"
    except OSError as error:
        raise InputError(
            f"{tag} cannot be read ({error.strerror}): check its permissions"
        ) from error
    if not name or not name.isprintable():
        return "", "holds no name" if os.path.getsize(tag) else "is empty"
    # A folder from elsewhere must not lead to other files of the machine.
    if name != os.path.basename(name) or name in (os.curdir, os.pardir):
        raise InputError(
            f"{tag} names {name!r}, which is not a file of its own folder: write the name of one "
            "into it, or remove it"
        )
    return name, ""


def checkpoint_to_evaluate(init_checkpoint: str, output_dir: str) -> str:
    """The checkpoint of an evaluation: the given one, else the last of the output folder.

    Raises:
        InputError: If it does not exist.
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
    """The checkpoint a training goes on from: its last one, or the one before if that is damaged.

    Returns:
        Its path, empty where there is no training to resume.

    Raises:
        InputError: If there are checkpoints, and none of them can be read.
    """
    last = last_checkpoint(output_dir)
    if not last:
        return ""
    name, fault = _noted(output_dir)
    if not name:
        logger.warning(
            "%s has checkpoints, but its file last_checkpoint %s: the latest counts, %s. To train "
            "anew, choose another train.output_dir.",
            output_dir,
            fault,
            last,
        )
    # A last checkpoint with a name of another kind counts as later than all others.
    earlier = [n for n in _checkpoints(output_dir) if not _iteration(n) >= _iteration(last)]
    damaged = ""
    for name in [last, *reversed(earlier)]:
        path = os.path.join(output_dir, name)
        try:
            saved_facts(path)  # reads the table of contents at the end of the file, no weights
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


def _checkpoints(output_dir: str) -> list[str]:
    """File names of the checkpoints in a folder, the earliest first."""
    names = os.listdir(output_dir) if os.path.isdir(output_dir) else []
    return sorted((n for n in names if not math.isnan(_iteration(n))), key=_iteration)


def _iteration(name: str) -> float:
    """Orders the file names of checkpoints; NaN for other files."""
    number = re.fullmatch(r"model_(\d+|init|final)\.pth", name)
    if number is None:
        return math.nan
    return {"init": -1.0, "final": math.inf}.get(number[1]) or float(number[1])


def periodic_checkpoints(output_dir: str) -> list[str]:
    """Paths of the checkpoints that are named by their iteration, the earliest first."""
    names = [n for n in _checkpoints(output_dir) if 0 <= _iteration(n) < math.inf]
    return [os.path.join(output_dir, name) for name in names]


def saved_facts(checkpoint: str) -> tuple[list[str] | None, int | None]:
    """Class names and number of iterations of a checkpoint, without reading its weights.

    Returns:
        Both, each None where the file does not have it.

    Raises:
        InputError: If the file is no checkpoint.
    """
    saved = checkpoint_parts(checkpoint, on_disk=True)
    names = saved["classes"]["thing_classes"] if "classes" in saved else None
    # The checkpoint has the index of the last iteration.
    iterations = saved["trainer"]["iteration"] + 1 if "trainer" in saved else None
    return names, iterations


def checkpoint_parts(path: str, *, on_disk: bool = False) -> dict:
    """The parts of a checkpoint; a file that is a state dict itself has the part "model" alone.

    Args:
        path: Path of the file.
        on_disk: Whether to leave the weights on the disk.

    Raises:
        InputError: If it cannot be read, or a part has another form than this project saves.
    """
    saved = read_weight_file(path, on_disk=on_disk)
    if not (isinstance(saved, Mapping) and "model" in saved):
        saved = {"model": saved}
    for name, has_form in _HAS_FORM.items():
        try:
            fits = name not in saved or (isinstance(saved[name], dict) and has_form(saved[name]))
        except KeyError:
            fits = False
        if not fits:
            raise InputError(
                f"the part {name!r} of checkpoint {path} is not as this project saves it: take it "
                "out of the file, or use another checkpoint"
            )
    return dict(saved)


def check_resumed_optimizer(optimizer: torch.optim.Optimizer, state: Mapping) -> None:
    """Refuses a checkpoint whose optimizer has other settings than the config, or is damaged.

    In contrast to config.yaml, which can be edited, this state is what would be used.

    Args:
        optimizer: The optimizer that the config builds.
        state: State of the checkpoint's optimizer, which would replace the settings.

    Raises:
        InputError: If a setting of a group differs, or the state of a parameter has another shape
            or is not finite.
    """
    for own, saved in zip(optimizer.param_groups, state["param_groups"], strict=False):
        # The schedule changes lr and keeps initial_lr.
        saved = {**saved, "lr": saved.get("initial_lr", saved.get("lr"))}
        for key in ("lr", "weight_decay", "betas", "momentum", "eps"):
            if key in own and key in saved and not _same(own[key], saved[key]):
                raise InputError(
                    f"the optimizer of the checkpoint has {key}={saved[key]} where the config has "
                    f"{key}={own[key]}, for the same parameters: resume it with the optimizer.* "
                    "it began with, or start another training from the checkpoint with "
                    "train.init_checkpoint and a train.output_dir of its own"
                )
        for parameter, index in zip(own["params"], saved["params"], strict=False):
            for key, value in state["state"].get(index, {}).items():
                # A single number is the count of steps.
                if torch.is_tensor(value) and value.ndim and not _fits(value, parameter):
                    raise InputError(
                        f"the optimizer of the checkpoint is damaged: its {key} for a parameter of "
                        f"the shape {tuple(parameter.shape)} has another shape or values that are "
                        "not finite; resume from an earlier checkpoint, or start another training "
                        "from this one with train.init_checkpoint"
                    )


def _fits(value: torch.Tensor, parameter: torch.Tensor) -> bool:
    return value.shape == parameter.shape and bool(torch.isfinite(value).all())


def _same(own: object, saved: object) -> bool:
    return list(own) == list(saved) if isinstance(own, tuple | list) else own == saved
