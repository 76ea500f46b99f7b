"""The learning rate: decay by layer, scaling with the batch, schedule.

Layer-wise decay is ViTDet's rule (https://arxiv.org/abs/2203.16527, appendix): layer 0 is the
embedding, layer i + 1 is block i, and layer l of n blocks learns at ``rate ** (n + 1 - l)``. Each
anchor has its own n and rate, as its individual baseline has; detectron2's
``get_vit_lr_decay_rate`` knows one depth.

Linear scaling (https://arxiv.org/abs/1706.02677, section 2.1): with k times the images in an
iteration, k times the learning rate for a k-th of the iterations. Warm-up and milestones are
fractions of the training in every recipe, so they need no scaling.
"""

import copy
import re
from collections.abc import Mapping
from typing import Any

from fvcore.common.param_scheduler import ParamScheduler
from omegaconf import OmegaConf
from torch import nn

from snnet_vitdet.building import build, told_as
from snnet_vitdet.errors import InputError
from snnet_vitdet.validators import check, number

from .setting_checks import SETTINGS
from .settings import Config

__all__ = [
    "LayerwiseDecay",
    "apply_linear_scaling",
    "build_schedule",
    "check_schedule",
    "scale_iterations",
]

_EMBEDDING = ("pos_embed", "patch_embed.", "norm_pre.")
_BLOCK = re.compile(r"^blocks\.(\d+)\.")

# Numbers of iterations; 0 is off where it is allowed.
_ITERATIONS = (
    *("train.max_iter", "train.eval_period", "train.checkpointer.period"),
    *("train.freeze_anchors", "train.ends.first"),
)
_REFERENCE = "train.reference_batch_size"
_BATCH = "dataloader.train.total_batch_size"
_LR = "optimizer.lr"
# Number of places in a training at which its schedule is checked.
_PLACES = 1000
_FACTOR = number(0)
# fvcore's schedules in steps round by a millionth; after this they have no value.
_LAST = 1 - 2e-6


class LayerwiseDecay:
    """Factor of the learning rate by parameter name; for ``lr_factor_func`` of detectron2."""

    def __init__(
        self,
        depths: Mapping[str, int],
        rates: Mapping[str, float],
        prefix: str = "backbone.net",
    ) -> None:
        """
        Args:
            depths: Number of blocks by anchor: ``small`` and ``large`` for a stitched backbone,
                ``net`` for an anchor alone.
            rates: Decay per layer by anchor, the same keys; 1 for none.
            prefix: Name of the backbone inside the detector.

        Raises:
            InputError: If the keys differ, or a rate is not in (0, 1].
        """
        if depths.keys() != rates.keys():
            raise InputError(
                f"layer-wise decay has depths for {sorted(depths)} but rates for {sorted(rates)}"
            )
        for anchor, rate in rates.items():
            if not 0 < rate <= 1:
                raise InputError(f"layer-wise decay of {anchor!r} must be in (0, 1], got {rate}")
        self.prefix = f"{prefix}."
        self.depths = dict(depths)
        self.rates = dict(rates)

    def __call__(self, name: str) -> float:
        """The factor for a parameter.

        Args:
            name: Full name in the detector.

        Raises:
            InputError: For a parameter of the backbone that no rule covers.
        """
        if not name.startswith(self.prefix):
            return 1.0  # pyramid and heads
        inside = name.removeprefix(self.prefix)
        if inside.startswith("stitching_layers."):
            return 1.0  # new, as pyramid and heads are
        for anchor, depth in self.depths.items():
            own = "" if anchor == "net" else f"{anchor}."
            if inside.startswith(own):
                layer = self._layer(inside.removeprefix(own))
                if layer is not None and layer <= depth:
                    return self.rates[anchor] ** (depth + 1 - layer)
        raise InputError(
            f"no rule of the layer-wise learning-rate decay covers the parameter {name!r} (anchors "
            f"{self.depths}): set optimizer.params.lr_factor_func for this backbone"
        )

    @staticmethod
    def _layer(name: str) -> int | None:
        if name.startswith(_EMBEDDING):
            return 0
        block = _BLOCK.match(name)
        return int(block[1]) + 1 if block else None


def scale_iterations(iterations: int, reference: int, batch: int) -> int:
    """The number of iterations in which as many images are seen.

    Args:
        iterations: Number of iterations at the reference; 0 stands for off and stays.
        reference: Images per iteration that the number was written for.
        batch: Images per iteration now.

    Returns:
        The nearest whole number, at least 1.
    """
    return max(1, round(iterations * reference / batch)) if iterations else 0


def apply_linear_scaling(config: Config) -> list[str]:
    """Scales learning rate and iterations from ``train.reference_batch_size`` to the batch.

    The reference is set to null, so that nothing is scaled twice: neither by another call nor from
    the config.yaml that a training saves.

    Args:
        config: The whole config, overrides applied; changed in place. Unchanged without a
            reference.

    Returns:
        What was scaled, as a sentence for the log; empty if nothing was.

    Raises:
        InputError: If the reference, the batch or a value to be scaled is not a valid number.
    """
    reference = OmegaConf.select(config, _REFERENCE)
    if reference is None:
        return []
    batch = OmegaConf.select(config, _BATCH)
    for key in (_REFERENCE, _BATCH, _LR, *_ITERATIONS):
        check(key, OmegaConf.select(config, key), SETTINGS[key])
    # All are read before any is changed: one may refer to another.
    before = {key: OmegaConf.select(config, key) for key in (_LR, *_ITERATIONS)}
    OmegaConf.update(config, _REFERENCE, None)
    if batch == reference:
        return []
    changes = []
    for key, old in before.items():
        new = old * (batch / reference) if key == _LR else scale_iterations(old, reference, batch)
        OmegaConf.update(config, key, new)
        if new != old:
            changes.append(f"{key} {_shown(old)} → {_shown(new)}")
    return [
        f"Scaled linearly from {reference} to {batch} images an iteration: {', '.join(changes)}."
    ]


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def check_schedule(config: Config, model: nn.Module) -> None:
    """Checks that the optimizer can be built, and its learning rates over the whole training.

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


def build_schedule(node: Any) -> ParamScheduler:
    """Builds the schedule of a config; it has a value at the very end, too.

    detectron2's hook asks for it after the last iteration, where fvcore's constant schedule and its
    schedules in steps have none: a finished training would end in an error.

    Args:
        node: ``lr_multiplier``.

    Raises:
        InputError: If it cannot be built, or is not a schedule.
    """
    multiplier = build("lr_multiplier", node)
    if not isinstance(multiplier, ParamScheduler):
        raise InputError(
            f"lr_multiplier is a {type(multiplier).__name__}, but must be a ParamScheduler of "
            "fvcore, such as detectron2's WarmupParamScheduler"
        )
    try:
        multiplier(1.0)
    except Exception:  # of many types; check_schedule reports what fails before the end as well
        return _UpToItsEnd(multiplier)
    return multiplier


class _UpToItsEnd(ParamScheduler):
    """A schedule that keeps its last value at the end."""

    def __init__(self, schedule: ParamScheduler) -> None:
        self._schedule = schedule

    def __call__(self, where: float) -> float:
        return self._schedule(min(where, _LAST))
