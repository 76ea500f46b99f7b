"""Anchors that stand still at the start, while what is new beside them learns."""

import logging

from detectron2.engine import HookBase
from torch import nn

from .initialise import anchors_of

__all__ = ["FreezeAnchors"]

logger = logging.getLogger(__name__)


class FreezeAnchors(HookBase):
    """Trains without the parameters of the anchors until an iteration, then with them.

    Stitching layers, pyramid and heads train from the start. Whether the anchors do depends on the
    iteration alone, so a resumed training goes on as if it had not stopped. Make the optimizer and
    the wrapper for several processes before the training: they take parameters that are trainable.
    A frozen parameter has no gradient, and AdamW then leaves it alone, weight decay included.
    """

    def __init__(self, model: nn.Module, iterations: int) -> None:
        """
        Args:
            model: The detector, not wrapped for several processes.
            iterations: The first iteration that trains the anchors; 0 freezes nothing.
        """
        # With parameter-efficient tuning, most of an anchor is never trained.
        self._parameters = [
            parameter
            for anchor in anchors_of(model).values()
            for parameter in anchor.parameters()
            if parameter.requires_grad
        ]
        self._iterations = iterations
        self._frozen = False

    def before_step(self) -> None:
        """Freezes at the first iteration, and thaws at the one that trains the anchors."""
        frozen = self.trainer.iter < self._iterations
        if frozen and not self._frozen:
            logger.info("The anchors are frozen until iteration %d.", self._iterations)
        elif self._frozen and not frozen:
            logger.info("The anchors are trained from iteration %d on.", self._iterations)
        self._set(frozen)

    def after_train(self) -> None:
        """Leaves the model as it was, also if the training ends frozen or in an error."""
        self._set(False)

    def _set(self, frozen: bool) -> None:
        if frozen == self._frozen:
            return
        for parameter in self._parameters:
            parameter.requires_grad_(not frozen)
        self._frozen = frozen
