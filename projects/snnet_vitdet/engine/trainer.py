"""detectron2's trainers, with a sampled stitch and accumulated gradients."""

import contextlib
import hashlib
import logging
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from snnet_vitdet.errors import InputError
from snnet_vitdet.modeling import StitchedViT
from snnet_vitdet.stitching import Stitch

from .resuming import check_resumed_optimizer

__all__ = ["StitchedAMPTrainer", "StitchedTrainer"]

logger = logging.getLogger(__name__)


def _has_no_sentence(record: logging.LogRecord) -> bool:
    """Whether an error that is logged is not one that ends the program in a sentence of its own."""
    return not (record.exc_info and isinstance(record.exc_info[1], InputError))


# detectron2 logs the traceback of whatever ends a training.
logging.getLogger("detectron2.engine.train_loop").addFilter(_has_no_sentence)

_SCOPES = ("shared", "process")
_ACCUMULATION_STITCHES = ("own", "same")


class StitchedTrainer(SimpleTrainer):
    """Full precision; on a CPU too.

    An iteration is one step of the optimizer. The batch of a process is split into micro-batches,
    whose gradients are accumulated: as much arithmetic, less memory, and with a stitch for each of
    them one process trains as many stitches an iteration as that many processes.

    Attributes:
        trained_iter: Index of the iteration whose step the weights and the optimizer have; None
            before the first step of this process, and while a step is under way.
    """

    trained_iter: int | None = None

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Sequence],
        optimizer: torch.optim.Optimizer,
        *,
        backbone: StitchedViT | None = None,
        sampler: Callable[[int, int], int] | None = None,
        scope: str = "shared",
        accumulation_steps: int = 1,
        accumulation_stitch: str = "own",
        clip_grad_norm: float | None = None,
        seed: int = 0,
        **kwargs: object,
    ) -> None:
        """
        Args:
            model: Gives a dict of losses for a micro-batch; wrapped for several processes or not.
            data_loader: Gives the batch of this process for each iteration.
            optimizer: Of the model's parameters.
            backbone: The stitched backbone inside the model, not wrapped; None trains a model
                without stitches (a baseline) with everything else alike.
            sampler: Gives the stitch id of (iteration, slot).
            scope: ``shared``: all processes train the same stitch in an iteration, so none waits
                for another. ``process``: each draws its own.
            accumulation_steps: Number of equal micro-batches of a process's batch.
            accumulation_stitch: ``own``: each micro-batch draws its own stitch. ``same``: one
                stitch for the whole iteration.
            clip_grad_norm: Largest norm of the gradient of all parameters together; a larger one
                is scaled down to it. None leaves it as it is.
            seed: Seed of the model's own randomness.
            **kwargs: Of detectron2's trainer. Gradients are always cleared before the forward, and
                metrics written before the next iteration.

        Raises:
            InputError: For an unknown scope or accumulation_stitch, or a norm that is not above 0.
        """
        super().__init__(model, data_loader, optimizer, **kwargs)
        if scope not in _SCOPES:
            raise InputError(f"train.stitch_scope must be one of {_SCOPES}, got {scope!r}")
        if accumulation_stitch not in _ACCUMULATION_STITCHES:
            raise InputError(
                f"train.accumulation.stitch must be one of {_ACCUMULATION_STITCHES}, got "
                f"{accumulation_stitch!r}"
            )
        if clip_grad_norm is not None and not clip_grad_norm > 0:
            raise InputError(f"train.clip_grad_norm must be above 0 or null, got {clip_grad_norm}")
        self.clip_grad_norm = clip_grad_norm
        self.backbone = backbone
        self.sampler = sampler
        self.accumulation_steps = accumulation_steps
        slots = range(accumulation_steps) if accumulation_stitch == "own" else [0]
        # Disjoint between processes that draw their own.
        first = comm.get_rank() * len(slots) if scope == "process" else 0
        self.slots = [first + slots[step % len(slots)] for step in range(accumulation_steps)]
        self.seed = seed

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Takes over the state of a training, before hooks are registered.

        The only one of them with a state is detectron2's of the learning rate, which finds its
        place by the iteration; that its state is not used would be a warning at every resume.

        Raises:
            InputError: If its optimizer has other settings than that of this trainer.
        """
        check_resumed_optimizer(self.optimizer, state_dict["optimizer"])
        super().load_state_dict({**state_dict, "hooks": {}})

    def run_step(self) -> None:
        """One iteration: a forward and backward for each micro-batch, then a step.

        Raises:
            FloatingPointError: If a loss or a proposal is not finite; names stitches and images.
                The weights are those before the iteration.
            InputError: If the batch cannot be split into equal micro-batches.
        """
        assert self.model.training, "the model was changed to eval mode"
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        self.optimizer.zero_grad()
        stitches: list[Stitch] = []
        losses: dict[str, torch.Tensor] = {}
        for step, micro_batch in enumerate(self._split(batch)):
            self._seed_model(step)
            if self.backbone is not None:
                stitch_id = self.sampler(self.iter, self.slots[step])
                stitches.append(self.backbone.set_stitch(stitch_id))
            # Forward included: that is where DDP decides whether the backward will reduce.
            with self._reduced_in_the_last_of(step):
                try:
                    loss_dict = self._forward(micro_batch)
                except FloatingPointError as error:
                    # detectron2 looks at what it proposes, which goes wrong before the losses do.
                    where = self._what_was_trained(stitches, losses, batch)
                    raise FloatingPointError(f"{error}\n{where}") from error
                self._backward(sum(loss_dict.values()) / self.accumulation_steps)
            for name, loss in loss_dict.items():
                share = loss.detach() / self.accumulation_steps
                losses[name] = losses[name] + share if name in losses else share
        self.after_backward()
        self._write(losses, data_time, stitches, batch)
        self.trained_iter = None
        self._update()
        self.trained_iter = self.iter

    def _split(self, batch: Sequence) -> list[Sequence]:
        """The micro-batches: equal parts of the batch, in its order."""
        size, rest = divmod(len(batch), self.accumulation_steps)
        if rest or not size:
            raise InputError(
                f"the batch of {len(batch)} images of a process cannot be split into "
                f"{self.accumulation_steps} equal micro-batches: change train.accumulation.steps"
            )
        return [batch[i * size : (i + 1) * size] for i in range(self.accumulation_steps)]

    def _seed_model(self, step: int) -> None:
        # Stochastic depth and the sampling of anchors and proposals draw from torch's global
        # generator. Seeding it by iteration makes them, like the draw of the stitch, exact after a
        # resume; by the place of the micro-batch in the batch of all processes, because each has
        # other images, and the same ones however they are shared out.
        place = comm.get_rank() * self.accumulation_steps + step
        torch.manual_seed(_step_seed(self.seed, self.iter, place))

    def _reduced_in_the_last_of(self, step: int) -> contextlib.AbstractContextManager:
        """Without exchange of gradients between processes, unless the step is the last."""
        if step + 1 < self.accumulation_steps and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()

    def _forward(self, batch: Sequence) -> dict[str, torch.Tensor]:
        return self.model(batch)

    def _backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def _update(self) -> None:
        self._clip_gradients()
        self.optimizer.step()

    def _clip_gradients(self) -> None:
        if self.clip_grad_norm is None:
            return
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.clip_grad_norm)
        self.storage.put_scalar("grad_norm", norm.item())

    def _write(
        self,
        losses: dict[str, torch.Tensor],
        data_time: float,
        stitches: list[Stitch],
        batch: Sequence,
    ) -> None:
        if stitches:
            self.storage.put_scalars(
                stitch_id=stitches[-1].id,
                stitch_kind=self.backbone.space.kinds.index(stitches[-1].kind),
                smoothing_hint=False,
            )
        # The metrics are means over the processes; this tells which of them it was. One look at
        # the device for all losses: this is done in every iteration.
        finite = torch.isfinite(torch.stack(list(losses.values()))).all().item()
        if not finite:
            where = self._what_was_trained(stitches, losses, batch)
            logger.error("A loss is not finite in %s", where)
        try:
            self._write_metrics(losses, data_time)
        except FloatingPointError as error:
            if finite:
                where = self._what_was_trained(stitches)
                where += ", its own losses are finite; another process's log names the images"
            raise FloatingPointError(f"{error}\n{where}") from error

    def _what_was_trained(
        self,
        stitches: list[Stitch],
        losses: Mapping[str, torch.Tensor] | None = None,
        batch: Sequence = (),
    ) -> str:
        names = [f"stitch {s.id} ({s.name}, kind {s.kind})" for s in dict.fromkeys(stitches)]
        where = f"iteration {self.iter}, process {comm.get_rank()}: "
        where += ", ".join(names) or "a baseline"
        if losses is None:
            return where
        parts = "".join(f", {name} {loss.item():g}" for name, loss in losses.items())
        return f"{where}{parts}; images: {', '.join(_file_names(batch)) or 'without file names'}"


def _file_names(batch: Sequence) -> list[str]:
    samples = (sample for sample in batch if isinstance(sample, Mapping))
    return [str(sample["file_name"]) for sample in samples if "file_name" in sample]


def _step_seed(seed: int, iteration: int, place: int) -> int:
    packed = struct.pack("<3Q", seed, iteration, place)
    # torch takes a seed of 63 bits on every device.
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1


class StitchedAMPTrainer(StitchedTrainer, AMPTrainer):
    """Automatic mixed precision; takes ``precision`` and ``grad_scaler`` as AMPTrainer does.

    The state of the scaler is in the checkpoints as detectron2's trainer writes it. The metric
    ``skipped_steps`` counts, since the start or the last resume, the steps that were left out
    because the scaled gradient overflowed.
    """

    _skipped = 0

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Takes over the state of a training, of another precision, too."""
        if not state_dict.get("grad_scaler"):
            # Of bfloat16, which needs no scaling.
            state_dict = {**state_dict, "grad_scaler": self.grad_scaler.state_dict()}
        super().load_state_dict(state_dict)

    def _forward(self, batch: Sequence) -> dict[str, torch.Tensor]:
        device = next(self.model.parameters()).device.type
        with torch.autocast(device, dtype=self.precision):
            return super()._forward(batch)

    def _backward(self, loss: torch.Tensor) -> None:
        self.grad_scaler.scale(loss).backward()

    def _update(self) -> None:
        if self.clip_grad_norm is not None:
            self.grad_scaler.unscale_(self.optimizer)
        self._clip_gradients()
        self.grad_scaler.step(self.optimizer)
        before = self.grad_scaler.get_scale()
        self.grad_scaler.update()
        if self.grad_scaler.is_enabled():
            # The scale falls where the gradient has overflowed, and then alone.
            self._skipped += self.grad_scaler.get_scale() < before
            self.storage.put_scalar("skipped_steps", self._skipped, smoothing_hint=False)
