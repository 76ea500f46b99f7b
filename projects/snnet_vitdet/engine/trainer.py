"""detectron2's trainers, with one sampled stitch an iteration."""

import hashlib
import struct
from collections.abc import Callable

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.utils import comm

from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import StitchedViT

__all__ = ["SCOPES", "StitchedAMPTrainer", "StitchedTrainer"]

SCOPES = ("shared", "process")


class _StitchSampling:
    """Selects the iteration's stitch, then leaves the step to the trainer it is mixed into."""

    def __init__(
        self,
        *args: object,
        backbone: StitchedViT | None = None,
        sampler: Callable[[int, int], int] | None = None,
        scope: str = "shared",
        seed: int = 0,
        **kwargs: object,
    ) -> None:
        """
        Args:
            *args: Of the trainer.
            backbone: The stitched backbone inside the model, not wrapped; None trains a model
                without stitches (a baseline) with everything else alike.
            sampler: Gives the stitch id of (iteration, slot).
            scope: ``shared``: all processes train the same stitch in an iteration, so none waits
                for another. ``process``: each draws its own.
            seed: Seed of the model's own randomness.
            **kwargs: Of the trainer.

        Raises:
            InputError: For an unknown scope.
        """
        super().__init__(*args, **kwargs)
        if scope not in SCOPES:
            raise InputError(f"train.stitch_scope must be one of {SCOPES}, got {scope!r}")
        self.backbone = backbone
        self.sampler = sampler
        self.slot = comm.get_rank() if scope == "process" else 0
        self.seed = seed

    def run_step(self) -> None:
        """One iteration on one stitch.

        Raises:
            FloatingPointError: If the loss is not finite; names the stitch.
        """
        # Stochastic depth and the sampling of anchors and proposals draw from torch's global
        # generator. Seeding it by iteration makes them, like the draw of the stitch, exact after a
        # resume; by process, because each has other images.
        torch.manual_seed(_step_seed(self.seed, self.iter, comm.get_rank()))
        if self.backbone is None:
            super().run_step()
            return
        stitch = self.backbone.set_stitch(self.sampler(self.iter, self.slot))
        self.storage.put_scalars(
            stitch_id=stitch.id,
            stitch_kind=self.backbone.space.kinds.index(stitch.kind),
            smoothing_hint=False,
        )
        try:
            super().run_step()
        except FloatingPointError as error:
            raise FloatingPointError(
                f"{error}\nstitch {stitch.id} ({stitch.name}, kind {stitch.kind}), "
                f"iteration {self.iter}"
            ) from error


def _step_seed(seed: int, iteration: int, rank: int) -> int:
    packed = struct.pack("<3Q", seed, iteration, rank)
    # torch takes a seed of 63 bits on every device.
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1


class StitchedTrainer(_StitchSampling, SimpleTrainer):
    """Full precision; on a CPU too."""


class StitchedAMPTrainer(_StitchSampling, AMPTrainer):
    """Automatic mixed precision on a GPU."""
