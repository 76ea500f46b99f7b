"""Exponential moving average (EMA) of the weights, often better than the last weights."""

import copy
import logging
from collections.abc import Mapping

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from snnet_vitdet.errors import InputError
from snnet_vitdet.text import listed

__all__ = ["AveragedWeights"]

logger = logging.getLogger(__name__)


class AveragedWeights:
    """Averages all parameters and buffers of a model after every step of its optimizer.

    The decay of step t = 1, 2, … is min(decay, (1 + t) / (10 + t)), so that the start does not
    dominate a short training. A hook of the optimizer updates the average: a step that loss scaling
    skips, or that an error prevents, is not counted. With loss scaling and a fused optimizer, the
    hook waits for the device once a step to know which is the case.

    The average lives in a model of its own, which can be evaluated while the other is trained and
    saved. Tensors that are never trained are shared by both models, in memory and in checkpoints.
    torch's ``AveragedModel`` shares none and has no warm-up.

    Attributes:
        model: The averaged model, in evaluation mode.
        num_steps: Number of steps averaged.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, decay: float) -> None:
        """
        Args:
            model: The detector, not wrapped for several processes. The average starts at its
                weights and follows what is trainable now.
            optimizer: Optimizer of its parameters.
            decay: Part of the average that a late step keeps; in [0, 1).
        """
        frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
        self.model = copy.deepcopy(model, frozen).eval().requires_grad_(False)
        self.decay = decay
        self.num_steps = 0
        pairs = [
            (own, source)
            for own, source in zip(_tensors(self.model), _tensors(model), strict=True)
            if own is not source
        ]
        self._averaged = [(own, source) for own, source in pairs if own.is_floating_point()]
        # Integers, such as counters.
        self._copied = [(own, source) for own, source in pairs if not own.is_floating_point()]
        optimizer.register_step_post_hook(self._after_step)

    def resume(self, checkpoint: Mapping[str, object]) -> None:
        """Continues the average of a checkpoint; without one, restarts at the model's weights.

        Args:
            checkpoint: The parts of a checkpoint that are left after its weights were loaded.

        Raises:
            InputError: If the average is one of another model.
        """
        if "ema" in checkpoint:
            self.load_state_dict(checkpoint["ema"])
            return
        self.num_steps = 0
        _copy(self._averaged + self._copied)
        logger.info("The checkpoint has no moving average of the weights: it starts from them.")

    def state_dict(self) -> dict[str, object]:
        """The part of a checkpoint."""
        return {"weights": self.model.state_dict(), "num_steps": self.num_steps}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Loads the part of a checkpoint.

        Raises:
            InputError: If it is of another model.
        """
        saved = {name: value.shape for name, value in state["weights"].items()}
        own = {name: value.shape for name, value in self.model.state_dict().items()}
        other = sorted(n for n in saved.keys() | own.keys() if saved.get(n) != own.get(n))
        if other:
            raise InputError(
                f"the moving average in the checkpoint is not one of this model: {len(other)} "
                f"missing, unexpected or misshapen ({listed(other)}). Give the config and "
                "overrides it was trained with"
            )
        self.model.load_state_dict(state["weights"])
        self.num_steps = state["num_steps"]

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        # torch's GradScaler calls a fused optimizer for every step and hands it this flag, by which
        # the optimizer skips the step itself.
        overflowed = getattr(optimizer, "found_inf", None)
        if overflowed is None or not overflowed.item():
            self._update()

    def _update(self) -> None:
        self.num_steps += 1
        decay = min(self.decay, (1 + self.num_steps) / (10 + self.num_steps))
        averages, weights = zip(*self._averaged, strict=True)
        get_ema_multi_avg_fn(decay)(averages, [w.detach() for w in weights], self.num_steps)
        _copy(self._copied)


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


@torch.no_grad()
def _copy(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for own, source in pairs:
        own.copy_(source)
