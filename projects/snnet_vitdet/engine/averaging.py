"""An exponential moving average of the weights, which is often better than the last weights."""

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
    """Averages all parameters and buffers of a model, once after every step of its optimizer.

    The decay of step t = 1, 2, … is min(decay, (1 + t) / (10 + t)), so that a short training is not
    ruled by its start. Follows the optimizer itself, so it has what the weights have at any moment:
    a step that loss scaling leaves out, or that an error prevents, is none.

    A model of its own holds the average, which can be evaluated while the other one stays as it
    is, to be trained and saved. What is never trained is one tensor in both, in the memory and in
    a checkpoint. The rest takes memory and room in checkpoints once more.

    Attributes:
        model: The averaged model, in evaluation mode.
        num_steps: How many steps were averaged.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, decay: float) -> None:
        """
        Args:
            model: The detector, not wrapped for several processes; what is trainable of it now is
                what will be trained. The average begins at its weights.
            optimizer: Of its parameters.
            decay: The part of the average that stays in a step, late in the training; from 0 to
                less than 1.
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
        # Such as a count.
        self._copied = [(own, source) for own, source in pairs if not own.is_floating_point()]
        optimizer.register_step_post_hook(lambda *_: self._update())

    def restart(self) -> None:
        """Begins anew at the weights that the model has now."""
        self.num_steps = 0
        _copy(self._averaged + self._copied)

    def resume(self, checkpoint: Mapping[str, object]) -> None:
        """Goes on from the average of a checkpoint, or without one begins at the model's weights.

        Args:
            checkpoint: What is left of a checkpoint whose weights have been loaded.

        Raises:
            InputError: If the average is one of another model.
        """
        if "ema" in checkpoint:
            self.load_state_dict(checkpoint["ema"])
            return
        self.restart()
        logger.info("The checkpoint has no moving average of the weights: it begins at these.")

    def state_dict(self) -> dict[str, object]:
        """What a checkpoint keeps."""
        return {"weights": self.model.state_dict(), "num_steps": self.num_steps}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Takes over what a checkpoint has kept.

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
