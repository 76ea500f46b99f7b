"""How long and how fast to train: linear scaling to the batch, and the plan in one sentence.

Linear scaling (https://arxiv.org/abs/1706.02677, section 2.1): with k times the images in an
iteration, k times the learning rate for a k-th of the iterations. Warm-up and milestones are
fractions of the training in every recipe, so they follow by themselves.
"""

import copy

from fvcore.common.param_scheduler import ParamScheduler
from omegaconf import DictConfig, OmegaConf
from torch import nn

from snnet_vitdet.building import build, told_as
from snnet_vitdet.errors import InputError
from snnet_vitdet.validators import check, number

from .setting_checks import SETTINGS

__all__ = [
    "apply_linear_scaling",
    "build_schedule",
    "check_schedule",
    "scale_iterations",
    "training_plan",
]

# Numbers of iterations; 0 is off where it is allowed.
_ITERATIONS = (
    *("train.max_iter", "train.eval_period", "train.checkpointer.period"),
    *("train.freeze_anchors", "train.ends.first"),
)
_REFERENCE = "train.reference_batch_size"
_BATCH = "dataloader.train.total_batch_size"
_LR = "optimizer.lr"
# Parts of a training that its schedule is looked at after.
_PLACES = 1000
_FACTOR = number(0)
# As late as schedules in steps can be asked: fvcore rounds by a millionth.
_LAST = 1 - 2e-6


def scale_iterations(iterations: int, reference: int, batch: int) -> int:
    """The number of iterations in which as many images are seen.

    Args:
        iterations: Number of iterations at the reference; 0 stands for off and stays.
        reference: Images an iteration that the number was written for.
        batch: Images an iteration now.

    Returns:
        The nearest whole number, at least 1.
    """
    return max(1, round(iterations * reference / batch)) if iterations else 0


def apply_linear_scaling(config: DictConfig) -> list[str]:
    """Scales learning rate and iterations from ``train.reference_batch_size`` to the batch.

    The reference is taken out, so that nothing is scaled twice: neither by another call nor from
    the config.yaml in which a training saves what it used.

    Args:
        config: The whole config, overrides applied; changed in place. Without a reference, nothing
            is.

    Returns:
        What was scaled in one sentence for the log, if anything.

    Raises:
        InputError: If the reference, the batch or a value to be scaled is no number that can be.
    """
    reference = OmegaConf.select(config, _REFERENCE)
    if reference is None:
        return []
    batch = OmegaConf.select(config, _BATCH)
    for key in (_REFERENCE, _BATCH, _LR, *_ITERATIONS):
        check(key, OmegaConf.select(config, key), SETTINGS[key])
    if batch == reference:
        OmegaConf.update(config, _REFERENCE, None)
        return []
    lr = OmegaConf.select(config, _LR)
    scaled = {_LR: (lr, lr * (batch / reference))}
    for key in _ITERATIONS:
        value = OmegaConf.select(config, key)
        scaled[key] = (value, scale_iterations(value, reference, batch))
    for key, (_, value) in scaled.items():
        OmegaConf.update(config, key, value)
    OmegaConf.update(config, _REFERENCE, None)
    changes = (
        f"{key} {_text(old)} → {_text(new)}" for key, (old, new) in scaled.items() if old != new
    )
    return [
        f"Scaled linearly from {reference} to {batch} images an iteration: {', '.join(changes)}."
    ]


def check_schedule(config: DictConfig, model: nn.Module) -> None:
    """Checks that an optimizer can be built, and that its learning rates are ones all the way.

    Args:
        config: The whole config.
        model: The detector; it may be on the meta device.

    Raises:
        InputError: If it cannot, or a learning rate is negative, NaN or infinite.
    """
    optimizer = copy.deepcopy(config.optimizer)
    optimizer.params.model = model
    for group in build("optimizer", optimizer).param_groups:
        for name in ("lr", "weight_decay"):
            check(f"optimizer.{name} of a group of parameters", group.get(name, 0), _FACTOR)
    multiplier = build_schedule(config.lr_multiplier)
    with told_as("lr_multiplier fails with its config"):
        factors = [multiplier(place / _PLACES) for place in range(_PLACES + 1)]
    for place, factor in enumerate(factors):
        check(f"lr_multiplier after {place} of {_PLACES} parts of the training", factor, _FACTOR)


def build_schedule(node: DictConfig) -> ParamScheduler:
    """Makes the schedule of a config, which has a value at the very end, too.

    detectron2's hook asks for it after the last iteration, where the constant schedule and those in
    steps of fvcore have none: a training would end in an error with all its work done.

    Args:
        node: ``lr_multiplier``.

    Raises:
        InputError: If it cannot be built, or is no schedule.
    """
    multiplier = build("lr_multiplier", node)
    if not isinstance(multiplier, ParamScheduler):
        raise InputError(
            f"lr_multiplier is a {type(multiplier).__name__}, but must be a ParamScheduler of "
            "fvcore, such as detectron2's WarmupParamScheduler"
        )
    try:
        multiplier(1.0)
    except Exception:  # of many types; what fails before the end as well is told by its check
        return _UpToItsEnd(multiplier)
    return multiplier


class _UpToItsEnd(ParamScheduler):
    """A schedule that keeps its last value at the end."""

    def __init__(self, of: ParamScheduler) -> None:
        self._of = of

    def __call__(self, where: float) -> float:
        return self._of(min(where, _LAST))


def _text(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def training_plan(
    *,
    batch: int,
    num_processes: int,
    accumulation_steps: int,
    learning_rate: float,
    start_iter: int,
    max_iter: int,
    num_images: int,
) -> str:
    """What a training is going to do, in one sentence.

    Args:
        batch: Images an iteration over all processes.
        num_processes: Number of processes that share them.
        accumulation_steps: Micro-batches an iteration in each process.
        learning_rate: Before warm-up, milestones and layer-wise decay.
        start_iter: First iteration; above 0 if the training continues.
        max_iter: Number of iterations in all.
        num_images: Number of training images.
    """
    size = batch // (num_processes * accumulation_steps)
    places = f"{num_processes} process{'es' if num_processes > 1 else ''}"
    micro = f"{accumulation_steps} micro-batch{'es' if accumulation_steps > 1 else ''}"
    length = f"{max_iter} iterations" + (f", from {start_iter} on" if start_iter else "")
    return (
        f"{batch} images an iteration ({places} x {micro} of {size}), learning rate "
        f"{learning_rate:g}, {length}: {max_iter * batch / num_images:.2f} epochs of {num_images} "
        "images."
    )
